"""Structure control: a ControlNet (Zhang et al. 2023, arXiv 2302.05543) that keeps edges, depth or poses in place.

It looks at the same noisy latents as the UNet, and at a control picture, and adds to what goes on inside of the UNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor

from inst.arguments import LARGEST_FACTOR, check_path, check_type, checked
from inst.backbone.loading.part import find_folder, load_weights
from inst.backbone.model import Backbone
from inst.errors import InstError, UsageError
from inst.pictures.edges import canny, find_opencv
from inst.pictures.given import read_one
from inst.pictures.io import resize
from inst.sampling.tiles import pad_to_multiple

if TYPE_CHECKING:
    from collections.abc import Callable

    from inst.backbone.text import Frame, TextEmbedding
    from inst.sampling.denoiser import Denoise


COMPUTED = ("canny",)
"""The kinds of control pictures that are made of the photo; those of others are given."""

_SAME_AS_UNET = (
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet and what it is to hold on to.

    Attributes:
        model: from `load_controlnet`.
        picture: such as a map of depth, of the photo's (or result's) proportions; a tensor [3, H, W] in [-1, 1], which
            every other form (`inst.pictures.given.Picture`) is read into. None takes the photo's own edges, for the
            kind "canny".
        kind: what the ControlNet was trained with: "canny", "depth", "normal", "pose" and so on.
        scale: how much it counts; 0 is not at all, 1 as trained.
    """

    model: ControlNetModel
    picture: Tensor | None = None
    kind: str = "canny"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.picture is not None and not isinstance(self.picture, Tensor):
            object.__setattr__(self, "picture", read_one(self.picture, "control picture").picture)

    def check(self, backbone: Backbone, size: tuple[int, int] | None) -> None:
        """Check that the control can be used, without computing anything.

        Args:
            backbone: the model to be controlled.
            size: (height, width) of the photos or results; None where they take the control picture's proportions.

        Raises:
            UsageError: it cannot: no picture where one is needed or one that does not fit, a scale that is negative or
                not finite, a ControlNet of another model, or something else than a ControlNet and a tensor.
        """
        check_type("A ControlNet", self.model, ControlNetModel, "load one with inst.load_controlnet")
        check_controlnet(self.model, backbone)
        if self.model.device.type != backbone.device.type:
            raise UsageError(
                f"The ControlNet is on {self.model.device}, but the backbone computes on {backbone.device}",
                "move it there",
            )
        if not 0 <= checked("control scale", self.scale, "float") <= LARGEST_FACTOR:  # NaN is not either
            raise UsageError(
                f"A control scale of {self.scale} cannot be used",
                f"give 0 (none), 1 (as trained) or more, up to {LARGEST_FACTOR}",
            )
        if self.picture is None:
            return
        read_one(self.picture, "control picture")  # says what is wrong with shape or values
        if size is not None:
            (high, wide), (height, width) = self.picture.shape[1:], size
            # A map that was made of a smaller copy may be off by a pixel of that copy.
            if abs(high * width / height - wide) > 1 + 0.01 * wide:
                raise UsageError(
                    f"A control picture of {wide} x {high} pixels does not fit {width} x {height}",
                    "make one of the same proportions",
                )

    def look(self, photos: Tensor | None, size: tuple[int, int], multiple: int) -> Tensor:
        """Make what the ControlNet looks at.

        Args:
            photos: [B, 3, H, W] in [-1, 1], to find edges in; None where there is a control picture.
            size: (H, W), to which the control picture is resized.
            multiple: both sides are reflected at the right and the bottom up to multiples of it.

        Returns:
            [B or 1, 3, H', W'] in [0, 1].

        Raises:
            InstError: the edges are wanted, but OpenCV is not installed.
        """
        if self.picture is not None:
            pictures = resize(self.picture[None], size)
        else:
            assert photos is not None
            pictures = canny(photos)
        return pad_to_multiple(pictures, multiple) / 2 + 0.5


def check_kind(kind: str, *, given: bool, photo: bool) -> None:
    """Check that there is a control picture, or that one can be made.

    Args:
        kind: of the control.
        given: whether there is a control picture.
        photo: whether there is a photo.

    Raises:
        UsageError: one is needed and not given.
        InstError: it takes OpenCV, which is not installed.
    """
    if given:
        return
    if kind not in COMPUTED:
        raise UsageError(
            f'A control picture of the kind "{kind}" is not made here (only {", ".join(COMPUTED)} is)', "give one"
        )
    if not photo:
        raise UsageError("There is no photo whose edges could be taken", "give a control picture")
    find_opencv()


def load_controlnet(path: str | Path, backbone: Backbone) -> ControlNetModel:
    """Load a ControlNet for a backbone, onto its device and in its precision. Never from a pickle.

    It stays on the device where the backbone was loaded with `low_memory`, too: it runs beside the UNet at every step.

    Args:
        path: a folder in the diffusers layout, with config.json and diffusion_pytorch_model.safetensors.
        backbone: what it is to control.

    Raises:
        InstError: the folder is missing, incomplete, broken, or holds something else.
        UsageError: it was made for another model.
    """
    check_type("A backbone", backbone, Backbone, "load one with inst.Backbone.load")
    check_path("A ControlNet", path)
    folder = find_folder(path)
    if folder is None:
        raise InstError(f"{path}: no such folder", "give a ControlNet's folder in the diffusers layout")
    model = load_weights(ControlNetModel, folder, backbone.dtype)
    check_controlnet(model, backbone, str(folder))
    return model.requires_grad_(False).to(backbone.device)


def check_controlnet(model: ControlNetModel, backbone: Backbone, name: str = "The ControlNet") -> None:
    """Raise UsageError, which calls the model `name`, unless it was made for models like the backbone."""
    unet, own = backbone.unet.config, model.config
    for key in _SAME_AS_UNET:
        found, needed = (list(x) if isinstance(x, tuple) else x for x in (own.get(key), unet.get(key)))
        if found != needed:
            raise UsageError(
                f"{name} was made for another model than {backbone.name or 'this one'}: their {key} ({found} and "
                f"{needed}) differ. Use a ControlNet for this model."
            )
    # Each block of the picture's encoder but the first halves its sides.
    shrinks = 2 ** (len(own["conditioning_embedding_out_channels"]) - 1)
    if shrinks != backbone.downscale:
        raise UsageError(
            f"{name} takes control pictures {shrinks} times as large as the latents, but the backbone's pictures are "
            f"{backbone.downscale} times as large",
            "use another one",
        )
    if own.get("global_pool_conditions"):
        raise UsageError(f"{name} pools its picture (as those of the kind shuffle do): it holds no structure in place.")


def controlled(backbone: Backbone, control: Control) -> Callable[..., Tensor]:
    """Let a ControlNet add to what `Backbone.predict_noise` does inside.

    The latents that the result takes carry the control picture along in more channels (`carrying`), so that whatever
    cuts them into tiles or puts several of them into a batch does the same to the picture.
    """
    model, channels = control.model, backbone.latent_channels

    def predict_noise(carried: Tensor, timestep: int, text: TextEmbedding, *, frame: Frame | None = None) -> Tensor:
        latents = carried[:, :channels]
        pictures = F.pixel_shuffle(carried[:, channels:], backbone.downscale)
        text = text.expand(len(latents))
        residuals = model(
            latents.to(model.dtype),
            timestep,
            encoder_hidden_states=text.tokens.to(model.dtype),
            controlnet_cond=pictures.to(model.dtype),
            conditioning_scale=control.scale,
            added_cond_kwargs=backbone.added_conditions(latents, text, frame),
            return_dict=False,
        )
        return backbone.predict_noise(latents, timestep, text, frame=frame, residuals=residuals)

    return predict_noise


def carrying(denoise: Denoise, pictures: Tensor, downscale: int) -> Denoise:
    """Put control pictures [B or 1, 3, H, W] into more channels of the latents [B, C, h, w] that `denoise` is given.

    The `downscale` x `downscale` pixels of each latent position become its 3 `downscale`^2 channels.
    """
    cells = F.pixel_unshuffle(pictures, downscale)

    def denoise_carrying(latents: Tensor, timestep: int) -> Tensor:
        return denoise(torch.cat([latents, cells.expand(len(latents), -1, -1, -1).to(latents)], dim=1), timestep)

    return denoise_carrying
