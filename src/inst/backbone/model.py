"""Backbone: the frozen parts of a text-to-image latent diffusion model, and the calls that the method makes on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from inst.arguments import check_path
from inst.backbone.devices import choose_device, choose_dtype
from inst.backbone.offload import Offload
from inst.backbone.parts import Parts, check_fit
from inst.backbone.text import Frame, TextEmbedding, TextEncoding
from inst.errors import Argument, InstError, UsageError

ControlResiduals = tuple[Sequence[Tensor], Tensor]
"""What a ControlNet adds inside the UNet: to the skip connections on the way down, and in the middle; as diffusers'
`down_block_res_samples` and `mid_block_res_sample`."""


@dataclass(eq=False, kw_only=True)
class Backbone(TextEncoding):
    """A frozen latent diffusion model in Stable Diffusion's layout. Make one with `Backbone.load`.

    Its parts are the attributes of `inst.backbone.parts.Parts`, and it has besides:

    Attributes:
        device: where the parts run, and where results are. On an accelerator the image encoder comes there when it is
            used, and leaves when paintings have been looked at; with `low_memory` every part comes and goes.
        dtype: the precision of the parts; the autoencoder may differ (see `inst.backbone.devices.autoencoder_dtype`).
        name: what to call it: a bundled model's name or one on the hub, or the folder's or file's base name.
        low_memory: whether it was loaded so (see `load`).
        latent_channels: C, channels of the latents.
        downscale: pixels of a picture's side per latent position.
        native_size: pixels of the (short) side of the pictures that the UNet was made for.
        size_multiple: sides of pictures, in pixels, that are multiples of this pass through autoencoder and UNet.

    Shapes: B pictures or prompts, H x W pixels, h x w = H / downscale x W / downscale, L text positions, d text width
    (the sum of both where there are two text encoders; columns are split by `text_widths`).
    Pictures, latents and noise are float32, whatever the precision of the parts.
    """

    device: torch.device
    dtype: torch.dtype
    name: str = ""
    low_memory: bool = False
    latent_channels: int = field(init=False)
    downscale: int = field(init=False)
    native_size: int = field(init=False)
    size_multiple: int = field(init=False)
    alphas_cumprod: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.latent_channels = self.vae.config["latent_channels"]
        self.downscale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        sample_size = self.unet.config["sample_size"] or 64  # where it is not said, Stable Diffusion 1.x's
        self.native_size = self.downscale * (sample_size if isinstance(sample_size, int) else min(sample_size))
        self.size_multiple = self.downscale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        # A schedule of zero terminal SNR (Lin et al. 2024) ends in 0, where noise says nothing about the clean latents.
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device, torch.float32).clamp_min(2**-24)

    @classmethod
    def load(
        cls,
        name: str | Path = "mini",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        config: str | Path | None = None,
        image_encoder: str | Path | Literal[False] | None = None,
        download: bool = False,
        low_memory: bool = False,
    ) -> Self:
        """Load a model of the families Stable Diffusion 1.x, 2.x (which predicts noise or v) or XL, all parts frozen.

        Nothing that a file says is ever run, and nothing comes from the network unless `download` allows it.

        Args:
            name: "mini" for the bundled model; a folder in the diffusers layout; a single file in the original layout;
                or a model on the hub, "owner/model" or "owner/model@revision".
            device: such as "cpu", "cuda:1" or "mps"; by default the best at hand.
            dtype: "float32", "bfloat16" or "float16"; by default what suits the device (`choose_dtype` in
                `inst.backbone.devices`).
                The autoencoder runs in float32 where that is float16 (`autoencoder_dtype`).
            config: for a single file of unusual sizes, where its configuration is (`read_single_file` in
                `inst.backbone.loading.single_file`).
            image_encoder: a CLIP image encoder in the place of the model's own, if it has one (Stable Diffusion's have
                none): a folder, or a name on the hub. The model's pretrained inversion module, which understands its
                own image encoder only, is then left out. None takes the one that matches a model without its own,
                where it is at hand or may be downloaded; False does not, for what looks at no painting.
            download: fetch from the hub what is not in its cache on this machine.
            low_memory: need less memory on an accelerator, and take longer. Each part is there only while it runs, the
                autoencoder sees one picture (or one smaller tile of it) at a time, and in learning the UNet's
                activations are computed twice instead of kept.

        Raises:
            UsageError: a device or precision that is not there, or a configuration where none is needed.
            InstError: the model is not found, incomplete, broken, of another kind, or its parts do not fit together.
        """
        # The readers import diffusers and transformers, which takes seconds: only who loads a model waits for them.
        from inst.backbone.loading.image_encoder import (
            find_image_encoder,
            find_matching_image_encoder,
            read_image_encoder,
        )
        from inst.backbone.loading.sources import find_source, known_as, read_parts

        check_path("A model", name)
        if config is not None:
            check_path("A configuration", config)
        if image_encoder is not None and image_encoder is not False:
            check_path("An image encoder", image_encoder)
        device = choose_device(device)
        dtype = choose_dtype(device, dtype)
        source = find_source(name, download=download)
        # What is mistyped shows before the model is read, which takes its time.
        encoder = find_image_encoder(image_encoder, download) if isinstance(image_encoder, str | Path) else None
        parts = read_parts(source, dtype, config)
        if image_encoder is None and parts.image_encoder is None:
            encoder = find_matching_image_encoder(parts.text_encoder.config, download)
        if encoder is not None:
            seeing, extractor = read_image_encoder(encoder, dtype)
            # A pretrained inversion module understands the image encoder that it was trained with only.
            parts = replace(
                parts,
                image_encoder=seeing,
                feature_extractor=extractor,
                image_encoder_replaced=image_encoder is not None,
                inversion=None,
            )
        return cls.of(parts, device, dtype, known_as(name, source), source, low_memory=low_memory)

    @classmethod
    def of(
        cls,
        parts: Parts,
        device: torch.device,
        dtype: torch.dtype,
        name: str,
        source: str | Path | None = None,
        *,
        low_memory: bool = False,
    ) -> Self:
        """Check that parts fit together, freeze them, and make a backbone of them.

        Args:
            parts: wherever they come from.
            device: where to compute.
            dtype: their precision.
            name: what to call the backbone.
            source: what to call it in messages; None is the name.
            low_memory: see `Backbone.load`.

        Raises:
            InstError: they do not fit together.
        """
        check_fit(parts, name if source is None else source)
        models = {name: part for name, part in vars(parts).items() if isinstance(part, nn.Module)}
        for model in models.values():
            model.requires_grad_(False).eval()
        if low_memory:
            parts.vae.enable_slicing()
            parts.unet.enable_gradient_checkpointing()
        if device.type != "cpu":
            # What looks at paintings is not needed for painting: it comes when one is looked at (see `look_at`).
            waiting = set(models) - {"inversion"} if low_memory else {"image_encoder"}
            Offload([model for kind, model in models.items() if kind in waiting], device)
            for kind in models.keys() - waiting:
                models[kind].to(device)
        return cls(**vars(parts), device=device, dtype=dtype, name=name, low_memory=low_memory)

    def encode(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pictures into latents.

        Args:
            pictures: [B, 3, H, W] in [-1, 1]; H and W are multiples of `downscale`.
            generator: draws a sample of the posterior; without one the posterior's mean is taken. A generator on the
                CPU gives the same sample on every device.

        Returns:
            [B, C, h, w], multiplied by the autoencoder's scaling factor: about unit variance.

        Raises:
            UsageError: the pictures have another shape.
        """
        mean, std = self.encode_moments(pictures)
        if generator is None:
            return mean
        return mean + std * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)

    def encode_moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the posterior that `encode` takes or draws latents from.

        Both [B, C, h, w] float32, multiplied by the autoencoder's scaling factor. Arguments and errors as `encode`.
        """
        _check_pictures(pictures)
        height, width = pictures.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise UsageError(
                f"A picture of {width} x {height} pixels cannot be encoded",
                f"crop or resize it to multiples of {self.downscale}",
            )
        posterior: Any = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config["scaling_factor"]
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] into pictures [B, 3, H, W], clamped to [-1, 1]."""
        latents = latents.to(self.device) / self.vae.config["scaling_factor"]
        decoded: Any = self.vae.decode(latents.to(self.vae.dtype))
        pictures: Tensor = decoded.sample
        return pictures.float().clamp(-1, 1)

    def embed_picture(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Run CLIP's image encoder tau (paper eq. 2).

        Args:
            pictures: [B, 3, H, W] in [-1, 1], of any size; resized and cropped to a centre square as CLIP does.

        Returns:
            The projected pooled embeddings [B, P], and the patch tokens [B, N, W]: the last hidden state without the
            class token. Both float32.

        Raises:
            InstError: this backbone has no image encoder.
            UsageError: the pictures have another shape.
        """
        _check_pictures(pictures)
        if self.image_encoder is None or self.feature_extractor is None:
            from inst.backbone.loading.image_encoder import how_to_give

            raise InstError(
                f"{self.name or 'This backbone'} has no image encoder",
                *how_to_give(self.text_encoder.config),
                ", or learn without one (",
                Argument("variant", "direct"),
                ")",
            )
        pixels = self.feature_extractor(pictures.to(self.device))
        output = self.image_encoder(pixel_values=pixels.to(self.dtype))
        return output.image_embeds.float(), output.last_hidden_state[:, 1:].float()

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor | int,
        text: TextEmbedding,
        *,
        frame: Frame | None = None,
        residuals: ControlResiduals | None = None,
    ) -> Tensor:
        """Predict the noise epsilon in noisy latents. Differentiable in `latents` and `text`.

        A model that was trained to predict v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022, arXiv
        2202.00512) is converted: eps = sqrt(abar) v + sqrt(1 - abar) z_t.

        Args:
            latents: z_t, [B, C, h, w].
            timesteps: t, an integer for all or [B] integers, each in [0, T). Their range is checked unless they are on
                an accelerator, where looking at them would stall it.
            text: B prompts from `embed_text`, or one for all.
            frame: where the latents lie in those of the whole picture; None is that they are the whole.
            residuals: what a ControlNet adds inside the UNet.

        Returns:
            [B, C, h, w] float32.

        Raises:
            UsageError: a timestep that is no integer in [0, T).
        """
        timesteps = torch.as_tensor(timesteps)
        self._check_timesteps(timesteps)
        latents = latents.to(self.device)
        timesteps = timesteps.to(self.device).expand(len(latents))
        text = text.expand(len(latents))
        more: dict[str, Any] = {"added_cond_kwargs": self.added_conditions(latents, text, frame)}
        if residuals is not None:
            down, mid = residuals
            more["down_block_additional_residuals"] = tuple(map(self._for_unet, down))
            more["mid_block_additional_residual"] = self._for_unet(mid)
        predicted: Tensor = self.unet(
            self._for_unet(latents),
            timesteps,
            encoder_hidden_states=self._for_unet(text.tokens),
            return_dict=False,
            **more,
        )[0]
        predicted = predicted.float()
        if self.scheduler.config["prediction_type"] == "epsilon":
            return predicted
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents.float()

    def added_conditions(
        self, latents: Tensor, text: TextEmbedding, frame: Frame | None = None
    ) -> dict[str, Tensor] | None:
        """Return what a UNet, or a ControlNet of it, is told besides timestep and text, by diffusers' names, or None.

        Stable Diffusion XL (sec. 2.2) is told the pooled text and, in pixels, the size that a picture had, where it was
        cropped, and the size that was left. A tile is a crop of the whole picture: told that it were a picture of its
        own, the model would compose one in each.

        Args:
            latents: [B, C, h, w].
            text: B prompts.
            frame: as for `predict_noise`.
        """
        if text.pooled is None:
            return None
        height, width = latents.shape[-2:]
        whole = Frame(height, width) if frame is None else frame
        sizes = [whole.height, whole.width, whole.top, whole.left, height, width]
        size_ids = latents.new_tensor(sizes, dtype=torch.float32) * self.downscale
        return {"text_embeds": self._for_unet(text.pooled), "time_ids": size_ids.expand(len(latents), -1)}

    def _for_unet(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.unet.dtype)

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"Timesteps of the type {timesteps.dtype} cannot be used", "give integers")
        last = len(self.alphas_cumprod) - 1
        if timesteps.device.type == "cpu" and ((timesteps < 0) | (timesteps > last)).any():
            raise UsageError(f"The timesteps {timesteps.tolist()} are not all in this model's range: 0 to {last}.")


def _check_pictures(pictures: Tensor) -> None:
    if pictures.dim() != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise UsageError(
            f"Pictures of the shape {list(pictures.shape)} cannot be used", "give [B, 3, H, W], in red, green and blue"
        )
