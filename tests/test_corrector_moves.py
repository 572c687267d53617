"""scoft/corrector/callback.py: how far a corrector moves the latents, held against the schedulers' own steps."""

import copy

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from scoft.corrector.callback import Corrector, noise_levels
from test_corrector import SCHEDULERS, STEPS, preference_for, random_batch


@pytest.fixture(scope="module")
def pipes(tiny_pipeline, tiny_pipeline_v):
    """By what they predict."""
    folders = {"epsilon": tiny_pipeline, "v_prediction": tiny_pipeline_v}
    return {kind: StableDiffusionPipeline.from_pretrained(folder) for kind, folder in folders.items()}


def stepped(scheduler, prediction, t, latents):
    """The latents behind one step of a scheduler that remembers no other."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.scale_model_input(latents, t)
    return scheduler.step(prediction, t, latents).prev_sample


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_before_each_step_a_move_does_what_the_direction_does_in_its_prediction(pipes, predicted, kind, spacing):
    """Whatever is predicted, a step from the moved latent ends where one with strength d added to that ends."""
    pipe = pipes[predicted]
    corrector = Corrector(preference_for(pipe), strength=2.0)
    z, _, c, prediction = random_batch(pipe)
    order = {"solver_order": 1} if kind is DPMSolverMultistepScheduler else {}
    scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing=spacing, **order)
    scheduler.set_timesteps(STEPS)
    assert scheduler.config.prediction_type == predicted
    levels = noise_levels(scheduler)[:, 0].sqrt().float()
    for place in range(1, STEPS):
        t, scale = scheduler.timesteps[place], levels[place] if kind is EulerDiscreteScheduler else 1.0
        with torch.no_grad():
            direction = corrector.preference.direction(pipe.unet, z, t, c)
        moved = corrector.moved(pipe.unet, scheduler, z / scale, c, t=t, place=place)
        found = stepped(scheduler, prediction, t, moved)
        expected = stepped(scheduler, prediction + 2.0 * direction, t, z / scale)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        if place < STEPS - 1:  # the last step of some leads nowhere
            assert not torch.allclose(expected, stepped(scheduler, prediction, t, z / scale), atol=1e-2)


@pytest.mark.parametrize("parts", [2, 3])
def test_inner_steps_divide_the_move(pipes, parts):
    """Each goes its share of the whole move that would begin where it begins."""
    pipe = pipes["epsilon"]
    corrector = Corrector(preference_for(pipe), strength=2.0)
    z, _, c, _ = random_batch(pipe)
    pipe.scheduler.set_timesteps(STEPS)
    place = {"t": pipe.scheduler.timesteps[2], "place": 2}
    expected = z
    for _ in range(parts):
        whole = corrector.moved(pipe.unet, pipe.scheduler, expected, c, **place)
        expected = expected + (whole - expected) / parts
    found = corrector.using(inner_steps=parts).moved(pipe.unet, pipe.scheduler, z, c, **place)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, corrector.moved(pipe.unet, pipe.scheduler, z, c, **place), atol=1e-4)
