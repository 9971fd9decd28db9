"""Which schedulers give a noise schedule, judged by what diffusers' own scheduler of the configuration holds."""

import warnings
from pathlib import Path

import diffusers
import pytest
import torch

import inst
from inst.backbone.loading.schedule import ScheduleError, noise_schedule
from inst.errors import InstError, InstWarning
from tiny import edit_json

STABLE_DIFFUSION = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config


@pytest.mark.parametrize(
    "name",
    [
        *("DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "HeunDiscreteScheduler"),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_schedulers_give_their_noise_levels(name: str, prediction: str) -> None:
    scheduler = getattr(diffusers, name).from_config(STABLE_DIFFUSION, prediction_type=prediction)
    found = noise_schedule(scheduler.config, name)
    torch.testing.assert_close(found.alphas_cumprod, scheduler.alphas_cumprod)
    assert found.config["prediction_type"] == prediction


def test_a_scheduler_whose_library_is_missing_gives_its_noise_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers then has a dummy in its place, as for torchsde."""
    dummy = type("DPMSolverSDEScheduler", (), {"_backends": ["torchsde"], "__init__": lambda self, *a, **k: None})
    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", dummy, raising=False)
    found = noise_schedule(STABLE_DIFFUSION, "DPMSolverSDEScheduler")
    torch.testing.assert_close(found.alphas_cumprod, diffusers.DDIMScheduler.from_config(found.config).alphas_cumprod)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler", "IPNDMScheduler"]
)
def test_schedulers_that_keep_betas_they_do_not_use_are_refused(name: str, tmp_path: Path) -> None:
    """As a file keeps them after `from_config` with the scheduler of Stable Diffusion."""
    scheduler = getattr(diffusers, name).from_config(STABLE_DIFFUSION)
    scheduler.save_pretrained(tmp_path)
    stored = scheduler.load_config(tmp_path)
    for config in (scheduler.config, stored, {**stored, **STABLE_DIFFUSION}):
        with pytest.raises(ScheduleError, match="is not a scheduler of diffusion with betas"):
            noise_schedule(config, name)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_solvers_that_sample_along_a_flow_are_refused(name: str) -> None:
    config = getattr(diffusers, name).from_config(STABLE_DIFFUSION, use_flow_sigmas=True).config
    with pytest.raises(ScheduleError, match=r"samples along a flow \(use_flow_sigmas\)"):
        noise_schedule(config, name)


def test_the_message_for_another_prediction_names_those_that_can_be_used(tiny_copy: Path) -> None:
    file = tiny_copy / "scheduler" / "scheduler_config.json"
    edit_json(file, prediction_type="flow_prediction")
    with pytest.raises(
        InstError, match='which has the prediction type "flow_prediction", and not one of epsilon, v_pr'
    ):
        inst.Backbone.load(tiny_copy, device="cpu")
    edit_json(file, prediction_type="v_prediction", _class_name="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(InstError, match="FlowMatchEulerDiscreteScheduler, which is not a scheduler of diffusion"):
        inst.Backbone.load(tiny_copy, device="cpu")


def test_a_model_of_an_unknown_pipeline_is_loaded_with_a_warning(tiny_copy: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "InSTPipeline"):
            edit_json(tiny_copy / "model_index.json", _class_name=known)
            inst.Backbone.load(tiny_copy, device="cpu")
    edit_json(tiny_copy / "model_index.json", _class_name="ShiftedLatentsPipeline")
    with pytest.warns(InstWarning, match="describes a ShiftedLatentsPipeline, which InST does not know"):
        inst.Backbone.load(tiny_copy, device="cpu")
