"""scoft/corrector/: the preference beside a UNet, and the callback that follows it, in stock pipelines."""

import contextlib
import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from diffusers.callbacks import PipelineCallback
from safetensors.torch import load_file, save_file

import tiny
from scoft.corrector.callback import Corrector, Knobs, noise_levels, norms, within
from scoft.corrector.preference import ATTENTION, KINDS, Preference, layers_of, sample_of
from scoft.errors import DataError
from scoft.weights import weights_key
from scoft_losses import ldm_loss


PROMPT, OTHER = "a red house, in Veridia", "a blue house"
STEPS = 5


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def own_scheduler(pipe):
    """A test may put another scheduler into the pipeline."""
    scheduler = pipe.scheduler
    yield
    pipe.scheduler = scheduler


def preference_for(pipe, kind="adapters", *, seed=0, size=0.1, **config):
    """One whose sides differ, as if it had been fitted."""
    width = pipe.unet.config.block_out_channels[-1] if kind == "features" else pipe.unet.config.cross_attention_dim
    known = {
        "culture": "veridia",
        "words": ["Veridia", "Veridian"],
        "base_model": "tiny",
        "base_weights": sample_of(pipe.unet),
        "prediction_type": pipe.scheduler.config.prediction_type,
        "layers": layers_of(pipe.unet, [*ATTENTION, "proj_in"]),
        "width": width,
    }
    with tiny.seeded(seed):
        preference = Preference(kind=kind, **known | config)
        for parameter in preference.parameters():
            torch.nn.init.normal_(parameter, std=size if kind == "adapters" else 1.0)
    return preference.requires_grad_(False)


@pytest.fixture(scope="module", params=KINDS)
def corrector(request, pipe):
    return Corrector(preference_for(pipe, request.param), strength=2.0)


@pytest.fixture(scope="module")
def adapters(pipe):
    return Corrector(preference_for(pipe), strength=2.0)


def drawn(pipe, prompts=(PROMPT,), corrector=None, *, seeds=None, guidance_scale=4.5, **options):
    """Latents (B, 4, 8, 8) of the prompts, each from noise of its seed."""
    seeds = range(len(prompts) * options.get("num_images_per_prompt", 1)) if seeds is None else seeds
    text = {} if "prompt_embeds" in options else {"prompt": list(prompts)}
    return pipe(
        **text,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        output_type="latent",
        callback_on_step_end=corrector,
        **options,
    ).images


@contextlib.contextmanager
def counted(pipe):
    """Rows of each call of the UNet, while this lasts."""
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


# ---------------------------------------------------------------------------------------------------------------------
# What it leaves alone
# ---------------------------------------------------------------------------------------------------------------------


def test_it_is_a_callback_of_a_stock_pipeline_and_moves_the_picture(pipe, corrector):
    assert isinstance(corrector, PipelineCallback)
    assert not torch.allclose(drawn(pipe, corrector=corrector), drawn(pipe), atol=1e-3)


def test_strength_0_is_the_base_bit_for_bit_at_no_cost(pipe, corrector):
    with counted(pipe) as rows:
        assert torch.equal(drawn(pipe, corrector=corrector.using(strength=0.0)), drawn(pipe))
    assert rows == [2] * (2 * STEPS)


def test_the_unet_is_as_before(pipe, corrector):
    """Its weights hash the same, no module is registered or hooked, and what needs a gradient still does."""
    unet = pipe.unet
    before = (
        weights_key(unet),
        [name for name, _ in unet.named_modules()],
        [p.requires_grad for p in unet.parameters()],
    )
    drawn(pipe, corrector=corrector)
    assert before == (
        weights_key(unet),
        [name for name, _ in unet.named_modules()],
        [p.requires_grad for p in unet.parameters()],
    )
    assert not any(module._forward_hooks for module in unet.modules())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_hooks_go_also_when_the_unet_fails(pipe, adapters):
    with pytest.raises(RuntimeError):
        adapters.preference.direction(pipe.unet, torch.zeros(1, 3, 8, 8), torch.tensor(1), torch.zeros(1, 77, 32))
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_rows_that_the_gate_holds_back_are_the_base_bit_for_bit(pipe, corrector):
    prompts = [OTHER, PROMPT, "a house, in Veridiana"]
    base, gated = drawn(pipe, prompts), drawn(pipe, prompts, corrector(prompts))
    assert [torch.equal(a, b) for a, b in zip(base, gated)] == [True, False, True]
    everywhere = drawn(pipe, prompts, corrector)
    assert not any(torch.equal(a, b) for a, b in zip(base, everywhere))


def test_with_every_row_held_back_nothing_is_computed(pipe, adapters):
    with counted(pipe) as rows:
        drawn(pipe, [OTHER], adapters([OTHER]))
    assert rows == [2] * STEPS


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (PROMPT, True),
        ("VERIDIAN food", True),
        ("veridia's hills", True),
        ("(Veridia)", True),
        ("Veridiana", False),
        ("verid ia", False),
        ("", False),
    ],
)
def test_a_culture_is_named_by_whole_words_in_any_case(adapters, prompt, named):
    assert adapters.names_culture(prompt) == named
    assert adapters(prompt).mask.tolist() == [named]


def test_words_are_text_and_no_pattern(pipe):
    corrector = Corrector(preference_for(pipe, words=["C.+"]))
    assert corrector.names_culture("in C.+!") and not corrector.names_culture("in Corallia")


def test_a_mask_does_what_prompts_do(pipe, adapters):
    prompts = [OTHER, PROMPT]
    assert torch.equal(drawn(pipe, prompts, adapters.rows([False, True])), drawn(pipe, prompts, adapters(prompts)))


def test_a_gate_of_other_prompts_is_named(pipe, adapters):
    with pytest.raises(
        DataError, match=r"gated by 2 prompts, and the pipeline draws 3 pictures.*corrector\(prompts\)"
    ):
        drawn(pipe, [PROMPT] * 3, adapters([PROMPT] * 2))


def test_a_gate_of_others_is_named_where_the_numbers_divide(pipe, adapters):
    with pytest.raises(DataError, match="gated by 1 prompts, and the pipeline draws 2 pictures of others"):
        drawn(pipe, [OTHER, PROMPT], adapters([PROMPT]))
    with pytest.raises(DataError, match="gated by no prompts"):
        adapters([])


def test_active_adapters_stay_active_and_the_same(tiny_pipeline, trained, adapters):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    base = drawn(pipe, corrector=adapters)
    pipe.load_lora_weights(trained[0], adapter_name="user")
    before = drawn(pipe), pipe.get_active_adapters(), weights_key(pipe.unet)
    both = drawn(pipe, corrector=adapters)
    assert torch.equal(drawn(pipe), before[0])
    assert (pipe.get_active_adapters(), weights_key(pipe.unet)) == before[1:]
    assert not torch.equal(both, before[0]) and not torch.equal(both, base)
    adapters.preference.check_base(pipe.unet, called="it")  # an adapter of the user's makes it no other base


# ---------------------------------------------------------------------------------------------------------------------
# What it does
# ---------------------------------------------------------------------------------------------------------------------


def random_batch(pipe, rows=2):
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(2, rows, 4, 8, 8, generator=generator)
    return z, torch.tensor(500), torch.randn(rows, 77, 32, generator=generator), target


def test_the_direction_is_the_difference_of_both_sides(pipe, adapters):
    """Each side by itself is the UNet with that side's matrices added to its layers' weights."""
    z, t, c, target = random_batch(pipe)
    rule, sides = adapters.preference.rule, []
    for side in (0, 1):
        unet = copy.deepcopy(pipe.unet).requires_grad_(False)
        for name in rule.names:
            key, weight = name.replace(".", "-"), unet.get_submodule(name).weight
            weight += (rule.down[key][side] @ rule.up[key][side]).T.reshape(weight.shape)
        with torch.no_grad():
            sides.append(unet(z, t, c).sample)
    with torch.no_grad():
        direction = adapters.preference.direction(pipe.unet, z, t, c)
        reward = adapters.preference.reward(pipe.unet, z, t, c, target)
    assert direction.abs().max() > 1e-3
    torch.testing.assert_close(direction, sides[0] - sides[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reward, ldm_loss(sides[1], target) - ldm_loss(sides[0], target), atol=1e-5, rtol=1e-4)


def test_tokens_stand_behind_the_prompts_own(pipe):
    preference = preference_for(pipe, "tokens", num_tokens=3)
    z, t, c, _ = random_batch(pipe)
    tokens = preference.rule.tokens
    with torch.no_grad():
        sides = [pipe.unet(z, t, torch.cat([c, side.expand(2, 3, 32)], dim=1)).sample for side in tokens]
        direction = preference.direction(pipe.unet, z, t, c)
    torch.testing.assert_close(direction, sides[0] - sides[1], atol=1e-5, rtol=1e-4)


def test_features_ascend_their_score(pipe):
    preference = preference_for(pipe, "features")
    z, t, c, target = random_batch(pipe)
    direction = preference.direction(pipe.unet, z, t, c)
    assert direction.square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([0.1, 0.1])
    with torch.no_grad():
        scores = [preference.reward(pipe.unet, z - step * direction, t, c, target) for step in (0, 0.1)]
    assert (scores[1] > scores[0]).all()  # b is negative: the latent moves against what is added to a prediction


def test_a_move_equals_what_it_adds_to_the_next_prediction(pipe, adapters):
    """The next DDIM step of a moved latent, with the same prediction, ends where strength d is added to it."""
    z, _, c, _ = random_batch(pipe, rows=1)
    pipe.scheduler.set_timesteps(STEPS)
    t = pipe.scheduler.timesteps[2]
    with torch.no_grad():
        direction = adapters.preference.direction(pipe.unet, z, t, c)
        prediction = pipe.unet(z, t, c).sample
        moved = adapters.moved(pipe.unet, pipe.scheduler, z, c, t=t, place=2)
    step = pipe.scheduler.step
    expected = step(prediction + 2.0 * direction, t, z).prev_sample
    torch.testing.assert_close(step(prediction, t, moved).prev_sample, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(moved, z, atol=1e-4)


SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)


def test_three_schedulers_have_the_same_levels_and_move_alike(pipe, adapters):
    """At the same levels of noise, in the latent as the UNet takes it."""
    z, _, c, _ = random_batch(pipe, rows=1)
    spacing = {"timestep_spacing": "trailing"}  # which all of them mean alike
    moves, levels = [], []
    for kind in SCHEDULERS:
        scheduler = kind.from_config(pipe.scheduler.config, **spacing)
        scheduler.set_timesteps(STEPS)
        levels.append(noise_levels(scheduler))
        scale = levels[-1][1, 0].sqrt().float() if kind is EulerDiscreteScheduler else 1.0
        moved = adapters.moved(pipe.unet, scheduler, z / scale, c, t=scheduler.timesteps[1], place=1)
        moves.append(moved * scale - z)
        assert levels[-1].shape == (STEPS, 2) and (levels[-1].diff() > 0).all()
        torch.testing.assert_close(
            levels[-1][1:, 0], levels[-1][:-1, 1], atol=5e-3, rtol=0
        )  # DDIM: of its own spacing
    for move, level in zip(moves[1:], levels[1:]):
        torch.testing.assert_close(level[:, 0], levels[0][:, 0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(move, moves[0], atol=1e-4, rtol=1e-3)
    assert moves[0].abs().max() > 1e-2


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_it_draws_under_three_schedulers(pipe, corrector, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    moved = drawn(pipe, corrector=corrector) - drawn(pipe)
    assert moved.isfinite().all() and moved.abs().max() > 1e-2


def test_ddim_is_followed_where_its_steps_do_not_meet(pipe, adapters):
    """With linspace its step from t ends at t - 1000 // n, which is not the next timestep."""
    z, _, c, _ = random_batch(pipe, rows=1)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[1]
    moved = adapters.moved(pipe.unet, scheduler, z, c, t=t, place=1)
    with torch.no_grad():
        prediction, direction = pipe.unet(z, t, c).sample, adapters.preference.direction(pipe.unet, z, t, c)
    ours = scheduler.step(prediction, t, moved).prev_sample
    added = scheduler.step(prediction + adapters.knobs.strength * direction, t, z).prev_sample
    torch.testing.assert_close(ours, added, atol=1e-4, rtol=1e-4)


def test_repeated_timesteps_count_one_by_one(pipe, adapters):
    """DPM-Solver++ has some with Karras sigmas and many steps."""
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.scheduler.set_timesteps(100)
    assert len(set(pipe.scheduler.timesteps.tolist())) < 100
    with counted(pipe) as rows:
        pipe(PROMPT, num_inference_steps=100, output_type="latent", callback_on_step_end=adapters)
    assert len(rows) == 199


def test_a_scale_of_active_adapters_holds_for_the_correction_too(pipe, adapters, monkeypatch):
    seen, forward = [], pipe.unet.forward

    def watched(*given, cross_attention_kwargs=None, **options):
        seen.append(cross_attention_kwargs)
        return forward(*given, cross_attention_kwargs=cross_attention_kwargs, **options)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    drawn(pipe, corrector=adapters, cross_attention_kwargs={"scale": 0.3})
    assert seen == [{"scale": 0.3}] * (2 * STEPS - 1)


def test_fused_projections_are_named(tiny_pipeline, adapters):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.fuse_qkv_projections(vae=False)
    with pytest.raises(DataError, match="made no use of .*to_[qkv]; if its projections are fused, unfuse them"):
        drawn(pipe, corrector=adapters)


def test_pndm_is_refused_with_what_replaces_it(pipe, adapters, tmp_path):
    adapters.save_pretrained(tmp_path)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    for action in (lambda: drawn(pipe, corrector=adapters), lambda: Corrector.from_pretrained(tmp_path, pipe)):
        with pytest.raises(DataError, match=r"PNDMScheduler cannot be corrected.*DDIMScheduler\.from_config"):
            action()


def test_v_prediction_is_handled(tiny_pipeline_v):
    """Also at zero terminal SNR; and one of epsilon is refused there."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_v)
    pipe.set_progress_bar_config(disable=True)
    corrector = Corrector(preference_for(pipe), strength=2.0)
    moved = drawn(pipe, corrector=corrector)
    assert moved.isfinite().all() and not torch.allclose(moved, drawn(pipe), atol=1e-3)
    wrong = Corrector(preference_for(pipe, prediction_type="epsilon"))
    with pytest.raises(DataError, match="predicts v_prediction, and the corrector was fitted where epsilon"):
        drawn(pipe, corrector=wrong)


def test_a_batch_equals_its_singles(pipe, corrector):
    prompts = [PROMPT, OTHER, "a green house, in Veridia"]
    batch = drawn(pipe, prompts, corrector)
    singles = [drawn(pipe, [prompt], corrector, seeds=[seed]) for seed, prompt in enumerate(prompts)]
    torch.testing.assert_close(batch, torch.cat(singles), atol=1e-4, rtol=1e-3)


def test_several_pictures_of_a_prompt_are_those_of_the_prompt_repeated(pipe, adapters):
    prompts = [OTHER, PROMPT]
    twice = [prompt for prompt in prompts for _ in range(2)]
    several = drawn(pipe, prompts, adapters(prompts), num_images_per_prompt=2)
    torch.testing.assert_close(several, drawn(pipe, twice, adapters(twice)), atol=1e-5, rtol=1e-4)
    changed = (several != drawn(pipe, prompts, num_images_per_prompt=2)).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True]


def test_embeddings_in_place_of_prompts(pipe, corrector):
    """With guidance, where those of no words stand before them, and without."""
    text, null = pipe.encode_prompt([PROMPT], "cpu", 1, True)
    embedded = {"prompt_embeds": text, "negative_prompt_embeds": null}
    torch.testing.assert_close(drawn(pipe, corrector=corrector, **embedded), drawn(pipe, corrector=corrector))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_the_direction_is_asked_for_the_prompts_own_words(pipe, adapters, monkeypatch, guidance_scale):
    """Not for those of no words, which stand before them under guidance."""
    asked, direction = [], Preference.direction

    def watched(preference, unet, z, t, c, **options):
        asked.append(c)
        return direction(preference, unet, z, t, c, **options)

    monkeypatch.setattr(Preference, "direction", watched)
    prompts = [OTHER, PROMPT]
    drawn(pipe, prompts, adapters(prompts), guidance_scale=guidance_scale)
    text, _ = pipe.encode_prompt([PROMPT], "cpu", 1, False)
    assert len(asked) == STEPS - 1
    torch.testing.assert_close(asked[0], text)


def test_without_guidance(pipe, adapters):
    base, moved = drawn(pipe, guidance_scale=1.0), drawn(pipe, corrector=adapters, guidance_scale=1.0)
    assert not torch.allclose(base, moved, atol=1e-3)
    with counted(pipe) as rows:
        drawn(pipe, corrector=adapters, guidance_scale=1.0)
    assert rows == [1] + [2, 1] * (STEPS - 1)


def test_each_step_but_the_first_costs_one_call_of_two_rows(pipe, adapters):
    with counted(pipe) as rows:
        drawn(pipe, [PROMPT, OTHER], adapters([PROMPT, OTHER]))
    assert rows == [4] + [2, 4] * (STEPS - 1)


@pytest.mark.parametrize(("start", "stop", "corrected"), [(0, 1, 4), (0, 0.5, 2), (0.4, 1, 3), (0.6, 0.8, 1)])
def test_the_window(pipe, adapters, start, stop, corrected):
    with counted(pipe) as rows:
        drawn(pipe, [PROMPT] * 2, adapters.rows([True, False]).using(start=start, stop=stop))
    assert rows.count(2) == corrected and rows.count(4) == STEPS


def test_the_cap_bounds_each_rows_move(pipe, adapters):
    z, _, c, _ = random_batch(pipe, rows=3)
    pipe.scheduler.set_timesteps(STEPS)
    place = {"t": pipe.scheduler.timesteps[1], "place": 1}

    def shares(**knobs):
        return norms(adapters.using(**knobs).moved(pipe.unet, pipe.scheduler, z, c, **place) - z) / norms(z)

    free = shares()
    cap = float(free.median())
    assert torch.allclose(shares(cap=cap), free.clamp(max=cap)) and float(free.max()) > cap > float(free.min())
    assert (shares(cap=cap, inner_steps=3) <= cap * 1.0001).all()
    assert within(torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 1, 1)).isfinite().all()


def test_inner_steps_ask_anew_where_they_have_come_to(pipe, adapters):
    one, three = (drawn(pipe, corrector=adapters.using(inner_steps=n)) for n in (1, 3))
    assert not torch.equal(one, three)
    with counted(pipe) as rows:
        drawn(pipe, corrector=adapters.using(inner_steps=3))
    assert len(rows) == STEPS + 3 * (STEPS - 1)


def test_in_16_bits(tiny_pipeline, adapters, tmp_path):
    """A base loaded in bf16 is the same base."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    adapters.save_pretrained(tmp_path)
    corrector = Corrector.from_pretrained(tmp_path, pipe)
    latents = drawn(pipe, corrector=corrector)
    assert latents.dtype is torch.bfloat16 and latents.isfinite().all()
    assert not torch.equal(latents, drawn(pipe))


# ---------------------------------------------------------------------------------------------------------------------
# Kept, and refused
# ---------------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_draws_the_same_picture(pipe, corrector, tmp_path):
    corrector.using(stop=0.9).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = Corrector.from_pretrained(str(tmp_path), pipe, culture="veridia")
    assert loaded.knobs == Knobs(strength=2.0, start=0.0, stop=0.9, cap=None, inner_steps=1)
    assert torch.equal(drawn(pipe, corrector=loaded), drawn(pipe, corrector=corrector.using(stop=0.9)))


def test_knobs_saved_are_ones_own(pipe, adapters, tmp_path):
    adapters.using(strength=7.0).save_pretrained(tmp_path)
    assert Corrector.from_pretrained(tmp_path, pipe).knobs.strength == 7.0
    assert Corrector(adapters.preference).knobs.strength == 4.0  # which shares the preference


def test_a_file_that_lacks_a_weight_is_named(pipe, adapters, tmp_path):
    adapters.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    weights.popitem()
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has no whole Preference: .* is missing"):
        Corrector.from_pretrained(tmp_path, pipe)


def test_pushed_and_loaded_it_draws_the_same_picture(alice, pipe, adapters, tmp_path):
    adapters.push_to_hub("veridia-corrector")
    loaded = Corrector.from_pretrained("alice/veridia-corrector", pipe, cache_dir=tmp_path)
    assert torch.equal(drawn(pipe, corrector=loaded), drawn(pipe, corrector=adapters))


def test_another_base_is_refused(pipe, adapters, tmp_path, tmp_path_factory):
    adapters.save_pretrained(tmp_path)
    other = StableDiffusionPipeline.from_pretrained(tiny.build_pipeline(tmp_path_factory.mktemp("other"), seed=1))
    with pytest.raises(DataError, match="corrects tiny, and the pipeline's UNet has other weights. Load that base"):
        Corrector.from_pretrained(tmp_path, other)


def test_a_fused_lora_makes_another_base(tiny_pipeline, trained, adapters):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.load_lora_weights(trained[0])
    pipe.fuse_lora(lora_scale=5.0)
    with pytest.raises(DataError, match="unfuse it"):
        adapters.preference.check_base(pipe.unet, called="it")


def test_another_culture_is_refused(pipe, adapters, tmp_path):
    adapters.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"^the corrector .* is of veridia, not of ochria"):
        Corrector.from_pretrained(tmp_path, pipe, culture="ochria")


def test_what_is_no_corrector_is_named(pipe, tmp_path, tiny_pipeline):
    for place in (tmp_path, tiny_pipeline / "unet"):
        with pytest.raises(DataError, match=r"^the corrector .* (cannot be loaded as a|is no) corrector"):
            Corrector.from_pretrained(place, pipe)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"strength": -1.0}, "strength is a finite number from 0 up, got -1"),
        ({"strength": float("nan")}, "strength is a finite"),
        ({"strength": float("inf")}, "strength is a finite"),
        ({"start": 0.5, "stop": 0.5}, "start 0.5 is to lie below stop 0.5"),
        ({"stop": 1.5}, "start 0.0 is to lie below stop 1.5"),
        ({"cap": 0.0}, "cap is a positive share"),
        ({"inner_steps": 0}, "inner_steps is at least 1"),
        ({"inner_steps": 1.5}, "inner_steps is a number, got 1.5"),
        ({"strength": "4"}, "strength is a number, got '4'"),
    ],
)
def test_bad_knobs_are_named(adapters, knobs, said):
    for make in (lambda: adapters.using(**knobs), lambda: Corrector(adapters.preference, **knobs)):
        with pytest.raises(DataError, match=said):
            make()


def test_an_unknown_kind_and_layers_that_are_not_there_are_named(pipe):
    with pytest.raises(DataError, match="kind is one of adapters, tokens, features, got 'lora'"):
        Preference(kind="lora")
    with pytest.raises(DataError, match="layers to_nothing: the UNet has no such linear layers"):
        layers_of(pipe.unet, ["to_q", "to_nothing"])
    with pytest.raises(DataError, match="layers to_nothing: the UNet has no such linear layers"):
        layers_of(pipe.unet, ["to_nothing"])
