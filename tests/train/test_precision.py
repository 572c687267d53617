"""In 16 bits the LoRA's matrices stay in float32 and are computed in the UNet's dtype, without autocast around it."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from scoft.base_model import StableDiffusion
from scoft.lora_folder import LORA_FILE
from scoft.train.processes import start_processes


GENERATOR = torch.Generator().manual_seed(0)
Z, C = (torch.randn(shape, generator=GENERATOR) for shape in ((2, 4, 4, 4), (2, 77, 32)))
T = torch.tensor([300, 700])


def loaded(folder, dtype: torch.dtype) -> tuple[StableDiffusion, list[torch.nn.Parameter]]:
    """The tiny base model with a LoRA that does something."""
    options = dict.fromkeys(("revision", "variant", "cache_dir", "prediction_type"))
    model = StableDiffusion.load(str(folder), **options, dtype=dtype)
    torch.manual_seed(0)
    parameters = model.add_lora(rank=4, alpha=6.0, target_modules=["to_k", "to_q", "to_v", "to_out.0", "conv1"])
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1)
    return model, parameters


def gradient(predict, parameters) -> torch.Tensor:
    for parameter in parameters:
        parameter.grad = None
    (predict(Z, T, C.to(torch.bfloat16)).float() * Z).sum().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in parameters)
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def test_gradients_are_those_under_autocast(tiny_pipeline):
    """The casts that autocast makes around each of the LoRA's layers are made once, to the same bits."""
    model, parameters = loaded(tiny_pipeline, torch.bfloat16)
    found = gradient(model.predict, parameters)
    wrapped, its_parameters = loaded(tiny_pipeline, torch.bfloat16)
    wrapped.unet = Accelerator(cpu=True, mixed_precision="bf16").prepare(wrapped.unet)

    def under_autocast(z, t, c):
        return wrapped.unet(z.to(torch.bfloat16), t, c, return_dict=False)[0]

    expected = gradient(under_autocast, its_parameters)
    assert found.norm() > 0 and torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9999


def test_activations_computed_anew_are_of_the_same_matrices(tiny_pipeline):
    model, parameters = loaded(tiny_pipeline, torch.bfloat16)
    expected = gradient(model.predict, parameters)
    model.speed_up(gradient_checkpointing=True, xformers=False, compile=False)
    model.unet.train()  # else diffusers computes nothing anew
    torch.testing.assert_close(gradient(model.predict, parameters), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_prediction_and_picture_is_of_the_lora_as_it_is(tiny_pipeline, dtype):
    """What an update changes shows at once, with gradient, without and in pictures."""
    model, parameters = loaded(tiny_pipeline, dtype)
    model.decode_in(model.image_dtype)
    c = C[:1].to(dtype)
    size = {"inference_steps": 2, "guidance_scale": 2.0, "resolution": 16}

    def seen() -> list[torch.Tensor]:
        pictures = model.draw(c, c, seeds=[0], **size)
        predictions = [predict(Z[:1], T[:1], c).detach() for predict in (model.predict, model.predict_frozen)]
        return [torch.tensor(list(pictures[0].tobytes())), *predictions]

    before = seen()
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-2)
    pictures = model.draw(c, c, seeds=[0], **size)  # first of all: what it sees no prediction has made fresh
    after = seen()
    assert all(not torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(torch.tensor(list(pictures[0].tobytes())), after[0])
    assert torch.equal(after[1], after[2])


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_merged_it_predicts_the_same(tiny_pipeline, dtype, near):
    """W + BA in copies, of dense layers and of convolutions; the weights themselves stay as they are, to the bit."""
    model, parameters = loaded(tiny_pipeline, dtype)
    c, weights = C.to(dtype), {name: weight.clone() for name, weight in model.unet.named_parameters()}
    expected, base = model.predict_frozen(Z, T, c), model.predict_base(Z, T, c)
    with model.merged_lora() as predict:
        found = predict(Z, T, c)
        assert not found.requires_grad
    assert (found - expected).norm() < near * expected.norm() < (expected - base).norm() / 5
    with pytest.raises(KeyboardInterrupt), model.merged_lora():
        raise KeyboardInterrupt
    assert torch.equal(model.predict_frozen(Z, T, c), expected) and torch.equal(model.predict_base(Z, T, c), base)
    after = dict(model.unet.named_parameters())
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-2)
    with model.merged_lora() as predict:  # the LoRA as it has become
        changed = predict(Z, T, c)
    assert (changed - model.predict_frozen(Z, T, c)).norm() < near * changed.norm() < (changed - found).norm() / 5


def test_what_is_saved_is_in_float32(tiny_pipeline, tmp_path):
    model, parameters = loaded(tiny_pipeline, torch.bfloat16)
    model.predict(Z, T, C.to(torch.bfloat16))
    model.save_lora(tmp_path, kohya_name="kohya.safetensors")
    saved = load_file(tmp_path / LORA_FILE).values()
    assert {tensor.dtype for tensor in saved} == {torch.float32}
    assert sorted(tensor.sum().item() for tensor in saved) == sorted(each.sum().item() for each in parameters)


def test_no_autocast_is_around_the_unet(tiny_pipeline, tmp_path):
    places = {"output_dir": tmp_path, "logging_dir": "logs"}
    accelerator = start_processes(
        mixed_precision="bf16", report_to="none", allow_tf32=False, cpu_threads=None, compile=False, **places
    )
    model, _ = loaded(tiny_pipeline, torch.bfloat16)
    model.trained, seen = accelerator.prepare(model.unet), []
    model.unet.conv_in.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for predict in (model.predict, model.predict_frozen, model.predict_base):
        assert predict(Z, T, C.to(torch.bfloat16)).dtype is torch.float32
    assert seen == [False] * 3


def test_compiled_it_sees_what_updates_change_and_is_traced_once(tiny_pipeline):
    """The matrices go into the graph as inputs: neither baked in, nor a reason to trace again."""
    graphs = []

    def backend(graph, inputs):  # generating code for the graph would take minutes here
        graphs.append(graph)
        return graph.forward

    eager, its_parameters = loaded(tiny_pipeline, torch.bfloat16)
    model, parameters = loaded(tiny_pipeline, torch.bfloat16)
    model.unet.compile(dynamic=False, backend=backend)
    traced = []
    for _ in range(3):
        expected, found = gradient(eager.predict, its_parameters), gradient(model.predict, parameters)
        torch.testing.assert_close(found, expected)
        traced.append(len(graphs))
        with torch.no_grad():
            for parameter in (*parameters, *its_parameters):
                parameter.mul_(-1.5)
    assert traced[0] > 0 and traced == [traced[0]] * 3
    torch._dynamo.reset()
