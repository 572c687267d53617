"""The perceptual distances of scoft_losses.py: one contract for all, and each against its library called directly."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate_scoft
import prepare_ccub
import train_scoft_lora
from scoft.distances import DISTANCES, Row, distance_options, load_distance
from scoft.distances.clip_conv import ClipConv
from scoft.errors import DataError


TYPED = [name for name in DISTANCES if name != "dreamsim"]  # those that compute in the dtype they are asked for


def load(name: str, folder, **options):
    """`name` from a tiny model's folder."""
    return load_distance(
        name, model_name_or_path=str(folder), device="cpu", dreamsim_type="open_clip_vitb32", **options
    )


@pytest.fixture(scope="session")
def folders(request):
    """Maps a distance's name to its tiny model's folder, built when first asked for."""
    return lambda name: request.getfixturevalue(f"tiny_{name}")


@pytest.fixture(scope="session", params=DISTANCES)
def distance(request, folders):
    return load(request.param, folders(request.param))


@pytest.fixture(scope="session")
def clip_conv(tiny_clip_conv):
    return load("clip_conv", tiny_clip_conv)


def images(count: int, *, size: int | tuple[int, int] = 20, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """`count` unlike smooth pictures in [-1, 1]: a coarse random pattern, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=dtype) * 2 - 1
    return F.interpolate(coarse, size=size, mode="bilinear")


def pixel_images(count: int, *, size: int, seed: int = 0) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Random pictures as the distances take them, and as 8-bit arrays (H, W, 3) for a library's own processor."""
    arrays = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1, list(arrays)


# The contract, for all of them


def test_identical_images_are_exactly_zero_apart(distance):
    """S(x, x) is 0, not merely small."""
    x = images(2)
    assert torch.equal(distance(x, x.clone()), torch.zeros(2))


def test_distance_is_symmetric_and_positive(distance):
    """Unlike images are a positive distance apart, the same in both directions."""
    x, y = images(2, seed=1), images(2, seed=2)
    d = distance(x, y)
    assert d.shape == (2,) and d.dtype == torch.float32
    assert (d > 1e-3).all()
    torch.testing.assert_close(d, distance(y, x), rtol=0, atol=0)


def test_a_batch_is_its_images_one_by_one(distance):
    """No image of a batch influences another's distance."""
    x, y = images(3, seed=3), images(3, seed=4)
    one_by_one = torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(x, y), one_by_one, rtol=1e-4, atol=1e-6)


def test_embed_and_compare_are_the_two_halves(distance):
    """Features computed once and compared later, also one against K, give the distances of the images."""
    x, negatives = images(2, seed=5), images(6, seed=6)
    f_x, f_negatives = distance.embed(x), distance.embed(negatives)
    torch.testing.assert_close(f_x.norm(dim=-1), torch.ones(f_x.shape[:2]))

    d = distance.compare(f_x[:, None], f_negatives.unflatten(0, (2, 3)))
    assert d.shape == (2, 3)
    expected = distance(x.repeat_interleave(3, dim=0), negatives).view(2, 3)
    torch.testing.assert_close(d, expected, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_the_image_and_no_weight(distance):
    """Every image gets a finite, non-zero gradient; the encoder is frozen."""
    x = images(2, seed=7).requires_grad_()
    distance(x, images(2, seed=8)).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in distance.parameters())


def test_stays_in_eval_mode(distance):
    """train() on it, or on a model that holds it, switches no dropout on."""
    torch.nn.Sequential(distance).train()
    assert not any(module.training for module in distance.modules())


@pytest.mark.parametrize("size", [(16, 16), (48, 40), (300, 260)])
def test_resizes_as_pillow_does(distance, size):
    """An image of any size is as good as that image squashed by Pillow's antialiased bicubic filter."""
    x = images(1, size=size, seed=9)
    x += 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(10))  # detail that aliasing would keep
    square = (distance.size, distance.size)
    channels = [Image.fromarray(channel.numpy()).resize(square, Image.Resampling.BICUBIC) for channel in x[0]]
    resized = torch.stack([torch.from_numpy(np.array(channel)) for channel in channels])[None]
    assert distance(x, resized) < 1e-6 < 1e-4 < distance(x, x.flip(3))


def test_autocast_changes_nothing(distance):
    """A caller's autocast region leaves the distance as it is, to the bit."""
    x, y = images(2, seed=11), images(2, seed=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(x, y)
    assert torch.equal(inside, distance(x, y))


def test_refuses_what_is_not_a_batch_of_images(distance):
    """Negatives of shape (B, K, 3, H, W) have to be flattened by the caller."""
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 5, 3, 20, 20\)"):
        distance.embed(images(10).unflatten(0, (2, 5)))


@pytest.mark.parametrize("name", DISTANCES)
def test_missing_folder_names_the_flag_and_the_value(name, tmp_path):
    """A path that is not there is reported with the flag it came by."""
    with pytest.raises(DataError, match="^model_name_or_path .*absent.*cannot be loaded as"):
        load(name, tmp_path / "absent")
    with pytest.raises(DataError, match="^--filter_model .*absent.*cannot be loaded as") as raised:
        load(name, tmp_path / "absent", flags=("--filter_distance", "--filter_model"))
    assert "name_or_path" not in str(raised.value)


@pytest.mark.parametrize("name, package", [("clip_conv", "timm"), ("dreamsim", "dreamsim")])
def test_missing_package_names_the_pip_line(name, package, tmp_path, monkeypatch):
    """Without its package a distance says how to install it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"^--filter_distance {name}: .*pip install {package}"):
        load(name, tmp_path, flags=("--filter_distance", "--filter_model"))


def test_bad_choices_are_refused(tmp_path):
    """An unknown distance or DreamSim type lists what is allowed; float16 is refused."""
    with pytest.raises(DataError, match="^name 'vgg' is none of clip_conv, "):
        load("vgg", tmp_path)
    with pytest.raises(DataError, match="^dreamsim_type 'vgg' is none of ensemble, "):
        load_distance("dreamsim", model_name_or_path=None, device="cpu", dreamsim_type="vgg")
    with pytest.raises(ValueError, match="torch.float16 is not supported"):
        load("clip_conv", tmp_path, dtype=torch.float16)


@pytest.mark.parametrize("name", TYPED)
def test_bfloat16_encoder(name, folders):
    """Encoders compute in bfloat16 when asked; features and gradient stay float32, distances stay close."""
    exact, rounded = load(name, folders(name)), load(name, folders(name), dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    x, y = images(2, seed=13).requires_grad_(), images(2, seed=14)
    d = rounded(x, y)
    d.sum().backward()
    assert d.dtype == x.grad.dtype == torch.float32
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    torch.testing.assert_close(d, exact(x, y), rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", TYPED)
def test_gradient_equals_finite_differences(name, folders):
    """In float64 the gradient is the derivative, resize included."""
    distance = load(name, folders(name), dtype=torch.float64)
    x = images(2, seed=15, dtype=torch.float64).requires_grad_()
    y = images(2, seed=16, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distance(x, y), (x,), fast_mode=True)


def test_pixels_beyond_the_range_still_get_a_gradient(clip_conv):
    """Images are not clamped: a decoder that overshoots is pulled back."""
    x = (images(1, seed=17) + 3).requires_grad_()
    clip_conv(x, images(1, seed=18)).sum().backward()
    assert x.detach().min() > 1
    assert (x.grad != 0).any()


def test_compare_by_hand(clip_conv):
    """1 - cosine at each place, averaged; a place empty on both sides counts as alike, on one side as half unlike."""
    f_x = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]])
    f_y = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.6, 0.8]]])
    torch.testing.assert_close(clip_conv.compare(f_x, f_y), torch.tensor([(1 + 0.4 + 0 + 0.5) / 4]))


def test_features_that_are_all_zero(tiny_clip_conv):
    """Where a ReLU leaves nothing, the distance is 0 and its gradient is finite."""
    distance = load("clip_conv", tiny_clip_conv)
    distance.encoder.register_forward_hook(lambda module, args, maps: [torch.relu(maps[0] - 1e9)])
    x = images(2, seed=19).requires_grad_()
    d = distance(x, images(2, seed=20))
    d.sum().backward()
    assert torch.equal(d.detach(), torch.zeros(2)) and torch.equal(x.grad, torch.zeros_like(x))


# Each against its library called directly


def test_clip_conv_is_timm_by_hand(clip_conv, tiny_clip_conv):
    """1 - cosine over channels of timm's last feature map, averaged over its 2 x 2 places."""
    import timm

    model = timm.create_model(f"local-dir:{tiny_clip_conv}", pretrained=True).eval()
    x, y = images(2, size=64, seed=21), images(2, size=64, seed=22)
    with torch.no_grad():  # this model's own mean and std are 0.5, so its pixels are those in [-1, 1]
        map_x, map_y = model.forward_features(x), model.forward_features(y)
    assert map_x.shape[2:] == (2, 2) and model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == [0.5] * 3
    expected = 1 - F.cosine_similarity(map_x, map_y, dim=1).mean((1, 2))
    torch.testing.assert_close(clip_conv(x, y), expected, rtol=1e-4, atol=1e-6)


def test_dinov2_is_transformers_by_hand(tiny_dinov2):
    """1 - cosine of the pooled output, which is the normed class token, of what the image processor gives."""
    from transformers import AutoImageProcessor, Dinov2Model

    model, processor = Dinov2Model.from_pretrained(tiny_dinov2), AutoImageProcessor.from_pretrained(tiny_dinov2)
    x, arrays = pixel_images(2, size=28)
    pixels = processor(arrays, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    with torch.no_grad():
        a, b = model(pixels).pooler_output
    d = load("dinov2", tiny_dinov2)(x[:1], x[1:])
    torch.testing.assert_close(d, 1 - F.cosine_similarity(a[None], b[None]), rtol=1e-4, atol=1e-6)


def test_blip2_is_transformers_by_hand(tiny_blip2):
    """1 - cosine of what the Q-Former makes of the image in the model's own image-text contrast."""
    from transformers import AutoImageProcessor, Blip2ForImageTextRetrieval

    model = Blip2ForImageTextRetrieval.from_pretrained(tiny_blip2)
    outputs = []
    model.qformer.register_forward_hook(lambda module, args, output: outputs.append(output.last_hidden_state))
    x, arrays = pixel_images(2, size=28)
    pixels = AutoImageProcessor.from_pretrained(tiny_blip2)(arrays, do_resize=False, return_tensors="pt").pixel_values
    with torch.no_grad():
        model(pixels, input_ids=torch.ones(2, 3, dtype=torch.long), attention_mask=torch.ones(2, 3))
    a, b = outputs[0]  # the first call reads the image, the second the text
    assert a.shape == (4, 32)
    d = load("blip2", tiny_blip2)(x[:1], x[1:])
    torch.testing.assert_close(d, 1 - F.cosine_similarity(a, b, dim=-1).mean()[None], rtol=1e-4, atol=1e-6)


def test_blip2_keeps_only_what_reads_images(tiny_blip2):
    """The text side of BLIP-2 takes no memory."""
    children = {name for name, _ in load("blip2", tiny_blip2).encoder.named_children()}
    assert children == {"vision_model", "qformer"}


def test_dreamsim_is_the_package(tiny_dreamsim, tmp_path):
    """The package's own distance, found in the cache folder by default and in float32 whatever is asked for."""
    from dreamsim import dreamsim

    (tmp_path / "dreamsim").symlink_to(tiny_dreamsim)
    distance = load_distance(
        "dreamsim",
        model_name_or_path=None,
        device="cpu",
        dtype=torch.bfloat16,
        dreamsim_type="open_clip_vitb32",
        cache_dir=str(tmp_path),
    )
    assert {p.dtype for p in distance.parameters()} == {torch.float32}

    model, _ = dreamsim(device="cpu", cache_dir=str(tiny_dreamsim), dreamsim_type="open_clip_vitb32")
    x, y = images(2, size=224, seed=23), images(2, size=224, seed=24)
    expected = model((x + 1) / 2, (y + 1) / 2)
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-4, atol=1e-6)


def test_dreamsim_holds_no_graph(tiny_dreamsim):
    """The package's hooks keep an image's features, hence its graph; after embed nothing is kept."""
    distance = load("dreamsim", tiny_dreamsim)
    inner = distance.encoder.base_model.model
    # The class token is what the default ensemble takes of DINO, and the way by which the package uses its hooks.
    inner.extract_feats_list = [inner._get_extract_fn("open_clip_vitb32", "cls")[0]]
    assert distance.embed(images(1).requires_grad_()).requires_grad
    assert [extractor._feats for extractor in inner.extractor_list] == [[]]


class Dull(ClipConv):
    """A distance with an option of its own."""

    def __init__(self, model_name_or_path: str | None = None, *, dullness: int, **common):
        super().__init__(model_name_or_path, **common)
        self.dullness = dullness


def test_a_distance_brings_its_options_to_all_commands(monkeypatch, tiny_clip_conv, capsys):
    """A row of the table gives each command the flag, in its help, its parser and the distance; no other gets it."""
    options = {"dullness": {"type": int, "default": 3, "help": "how little it sees"}}
    monkeypatch.setitem(DISTANCES, "dull", Row(f"{__name__}:Dull", options))
    for door, words in (
        (train_scoft_lora, ["--dataset", "d", "--method", "finetune"]),
        (prepare_ccub, ["--culture", "korea"]),
        (evaluate_scoft, ["score", "folder", "--dataset", "d", "--culture", "korea"]),
    ):
        assert door.parse_args(words).dullness == 3
        args = door.parse_args([*words, "--dullness", "5"])
        with pytest.raises(SystemExit):
            door.parse_args([*words, "--dullness", "very"])
        assert "dullness: invalid int value: 'very'" in capsys.readouterr().err
    options = {option: getattr(args, option) for option in distance_options()}
    assert load_distance("dull", model_name_or_path=str(tiny_clip_conv), device="cpu", **options).dullness == 5
    load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device="cpu", **options)
    with pytest.raises(TypeError, match="no perceptual distance has an option sharpness"):
        load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device="cpu", sharpness=1)


def test_the_trainer_names_its_own_flag_of_a_bad_encoder(tmp_path):
    """Through its true command line: the trainer's flag and the folder, in one line of its own, before any update."""
    absent, out = tmp_path / "absent", tmp_path / "out"
    flags = f"--dataset pocket --culture veridia --perceptual_model_name_or_path {absent} --output_dir {out}"
    with pytest.raises(
        DataError, match="^--perceptual_model_name_or_path .*absent.* cannot be loaded as a timm model"
    ):
        train_scoft_lora.main([*flags.split(), "--cache_dir", str(tmp_path / "cache")])
    assert not (out / "metrics.jsonl").exists()
