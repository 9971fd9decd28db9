"""The same work with diffusers alone, as its documentation and its examples do it. Benchmarks compare with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from inst.backbone.model import Backbone

SAMPLING = {"spacing": "trailing", "cache_interval": 1}
"""Arguments of `inst.transfer` and `inst.generate` with which they do the same work."""


def image_to_image(backbone: Backbone) -> StableDiffusionImg2ImgPipeline:
    """Return the image-to-image pipeline of diffusers with the parts of a backbone."""
    return _quiet(StableDiffusionImg2ImgPipeline(**_components(backbone), requires_safety_checker=False))


def text_to_image(backbone: Backbone) -> StableDiffusionPipeline:
    """Return the text-to-image pipeline of diffusers with the parts of a backbone."""
    return _quiet(StableDiffusionPipeline(**_components(backbone), requires_safety_checker=False))


def learn(backbone: Backbone, picture: Tensor, batch: int, steps: int) -> Iterator[None]:
    """Learn a token by textual inversion, as the example of diffusers does it, and yield after each step.

    Each step encodes the picture, runs text encoder (in float32) and UNet, and updates the table of token embeddings.
    The text encoder is a copy.

    Args:
        backbone: the frozen model.
        picture: [3, S, S] in [-1, 1].
        batch: number of noisy latents in a step.
        steps: number of steps.
    """
    unet, vae, device = backbone.unet, backbone.vae, backbone.device
    text_encoder = type(backbone.text_encoder)(backbone.text_encoder.config).to(device)
    text_encoder.load_state_dict(backbone.text_encoder.state_dict())
    text_encoder.requires_grad_(False)
    table = text_encoder.get_input_embeddings().weight.requires_grad_(True)
    adam = torch.optim.AdamW([table], lr=5e-4)
    schedule = DDPMScheduler.from_config(backbone.scheduler.config)
    pictures = picture.expand(batch, -1, -1, -1)
    for _ in range(steps):
        pixels = pictures.to(device, vae.dtype)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config["scaling_factor"]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(len(backbone.alphas_cumprod), (batch,), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps).to(unet.dtype)
        tokens = backbone.tokenizer(["a painting"] * batch, padding="max_length", return_tensors="pt").input_ids
        text = text_encoder(tokens.to(device))[0].to(unet.dtype)
        predicted = unet(noisy, timesteps, encoder_hidden_states=text).sample
        F.mse_loss(predicted.float(), noise.float()).backward()
        adam.step()
        adam.zero_grad()
        yield


def _components(backbone: Backbone) -> dict[str, Any]:
    return {
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoder,
        "tokenizer": backbone.tokenizer,
        "unet": backbone.unet,
        "scheduler": DDIMScheduler.from_config(
            backbone.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
