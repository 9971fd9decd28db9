"""Structure control: a ControlNet (Zhang et al. 2023, arXiv 2302.05543) that keeps edges, depth or poses in place.

Its inputs are the noisy latents of the UNet and a control picture. Its outputs are added to the features inside the
UNet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inst.arguments import check_factor, check_path, check_type
from inst.backbone.libraries import ControlNetModel
from inst.backbone.loading.part import find_folder, load_weights
from inst.backbone.model import Backbone, check_backbone
from inst.backbone.parts import COLOURS, unsupported_inputs
from inst.backbone.text import Frame, TextEmbedding
from inst.errors import InstError, UsageError
from inst.pictures.edges import canny, find_opencv
from inst.pictures.given import to_photo
from inst.pictures.reading import USUAL_SIZE
from inst.pictures.resizing import resize
from inst.sampling.denoiser import Denoise
from inst.sampling.tiles import pad_to_multiple

COMPUTED_KINDS = ("canny",)
"""The kinds of control pictures that inst computes from the photo. The user gives the pictures of all other kinds."""

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
    """A ControlNet and its control picture.

    Attributes:
        model: from `load_controlnet`.
        picture: the control picture, such as a depth map, with the proportions of the photo or the result. A tensor
            [3, H, W] in [-1, 1]; every other form (`inst.pictures.given.Picture`) is converted to it. None: the edges
            of the photo are used, for the kind "canny".
        kind: the kind of picture that the ControlNet was trained with: "canny", "depth", "normal", "pose" and so on.
        scale: strength of the control; 0 is none, 1 as trained.
    """

    model: ControlNetModel
    picture: Any = None  # any `Picture`; `__post_init__` converts it to a tensor
    kind: str = "canny"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.picture is not None and not isinstance(self.picture, Tensor):
            object.__setattr__(self, "picture", to_photo(self.picture, "control picture", USUAL_SIZE).picture)

    def check(self, backbone: Backbone, size: tuple[int, int] | None) -> None:
        """Check that the control can be used, without computing anything.

        Args:
            backbone: the model to control.
            size: (height, width) of the photos or results; None if the result takes the proportions of the control
                picture.

        Raises:
            UsageError: `model` is not a ControlNet, or it was made for another model or is on another device; the
                scale is negative, not finite or too large; or the picture cannot be used or does not fit the size.
        """
        check_type("A ControlNet", self.model, ControlNetModel, "load one with inst.load_controlnet")
        check_controlnet(self.model, backbone)
        if self.model.device.type != backbone.device.type:
            raise UsageError(
                f"The ControlNet is on {self.model.device}, but the backbone computes on {backbone.device}",
                f"move the ControlNet to {backbone.device}",
            )
        check_factor("control scale", self.scale, "give 0 (none), 1 (as trained) or more")
        if self.picture is None:
            return
        to_photo(self.picture, "control picture")  # checks the shape and the values
        if size is not None:
            (picture_height, picture_width), (height, width) = self.picture.shape[1:], size
            # A map made from a smaller copy may differ by one pixel of that copy.
            if abs(picture_height * width / height - picture_width) > 1 + 0.01 * picture_width:
                raise UsageError(
                    f"A control picture of {picture_width} x {picture_height} pixels does not fit {width} x {height}",
                    "give a control picture with the same proportions",
                )

    def control_pictures(self, photos: Tensor | None, size: tuple[int, int], multiple: int) -> Tensor:
        """Make the input pictures of the ControlNet.

        Args:
            photos: [B, 3, H, W] in [-1, 1]; their edges are used. None if there is a control picture.
            size: (H, W); the control picture is resized to it.
            multiple: the pictures are padded by reflection at the right and the bottom, to multiples of this.

        Returns:
            [B or 1, 3, H', W'] in [0, 1].

        Raises:
            InstError: the edges are needed, but OpenCV is not installed.
        """
        if self.picture is not None:
            pictures = resize(self.picture[None], size)
        else:
            assert photos is not None
            pictures = canny(photos)
        return pad_to_multiple(pictures, multiple) / 2 + 0.5


def check_control(control: Any, backbone: Backbone, size: tuple[int, int] | None, *, photo: bool) -> None:
    """Check the argument `control` of `inst.transfer` and `inst.generate`; None is accepted.

    Args:
        control: the argument.
        backbone: the model to control.
        size: see `Control.check`.
        photo: whether there is a photo whose edges can be used.

    Raises:
        UsageError, InstError: as `check_kind` and `Control.check`, or it is not a `Control`.
    """
    if control is None:
        return
    check_type("A control", control, Control, "make one with inst.Control")
    check_kind(control.kind, given=control.picture is not None, photo=photo)
    control.check(backbone, size)


def check_kind(kind: str, *, given: bool, photo: bool) -> None:
    """Check that there is a control picture, or that inst can compute one.

    Args:
        kind: kind of the control picture.
        given: whether a control picture is given.
        photo: whether a photo is given.

    Raises:
        UsageError: a control picture is needed, but not given.
        InstError: OpenCV is needed, but not installed.
    """
    if given:
        return
    if kind not in COMPUTED_KINDS:
        raise UsageError(
            f'inst cannot compute a control picture of the kind "{kind}" (only {", ".join(COMPUTED_KINDS)})',
            "give a control picture",
        )
    if not photo:
        raise UsageError("There is no photo to find edges in", "give a control picture")
    find_opencv()


def load_controlnet(path: str | Path, backbone: Backbone) -> ControlNetModel:
    """Load a ControlNet for a backbone, on its device and in its precision. Pickles are never read.

    The ControlNet stays on the device, also with a backbone of `low_memory`: it runs with the UNet at every step.

    Args:
        path: a folder in the diffusers layout, with config.json and diffusion_pytorch_model.safetensors.
        backbone: the model to control.

    Raises:
        InstError: the folder is missing, incomplete or damaged, or does not hold a ControlNet.
        UsageError: the ControlNet was made for another model.
    """
    check_backbone(backbone)
    check_path("A ControlNet", path)
    folder = find_folder(path)
    if folder is None:
        raise InstError(f"{path}: no such folder", "give the folder of a ControlNet in the diffusers layout")

    model = load_weights(ControlNetModel, folder, backbone.dtype)
    check_controlnet(model, backbone, str(folder))
    model.requires_grad_(False)
    return torch.nn.Module.to(model, backbone.device)  # diffusers' own `to` imports quantisers, which write warnings


def check_controlnet(model: ControlNetModel, backbone: Backbone, name: str = "The ControlNet") -> None:
    """Raise UsageError unless the ControlNet was made for models like the backbone. `name` names it in the message."""
    unet, config = backbone.unet.config, model.config
    for key in _SAME_AS_UNET:
        found, needed = (list(x) if isinstance(x, tuple) else x for x in (config.get(key), unet.get(key)))
        if found != needed:
            raise UsageError(
                f"{name} was made for another model than {backbone.name or 'this one'} (its {key} is {found}, not "
                f"{needed})",
                "use a ControlNet for this model",
            )
    if special := unsupported_inputs(config):
        raise UsageError(
            f"{name} needs inputs that InST does not support ({', '.join(special)})", "use another ControlNet"
        )
    if (channels := config.get("conditioning_channels")) != COLOURS:
        raise UsageError(
            f"{name} takes control pictures of {channels} channels, not {COLOURS}", "use another ControlNet"
        )
    # Each block of the ControlNet's picture encoder halves the sides, except the first block.
    downscale = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    if downscale != backbone.downscale:
        raise UsageError(
            f"{name} takes control pictures {downscale} times as large as the latents, but the backbone's pictures "
            f"are {backbone.downscale} times as large",
            "use another ControlNet",
        )
    if config.get("global_pool_conditions"):
        raise UsageError(
            f"{name} pools its picture (as ControlNets of the kind shuffle do), so it keeps no structure in place",
            "use another ControlNet",
        )


def with_controlnet(backbone: Backbone, control: Control) -> Callable[..., Tensor]:
    """Return `Backbone.predict_noise` with a ControlNet.

    The latents that it takes have the control picture in extra channels (`with_control_channels`). So code that cuts
    the latents into tiles, or joins them into a batch, does the same to the picture.
    """
    model, channels = control.model, backbone.latent_channels

    def predict_noise(extended: Tensor, timestep: int, text: TextEmbedding, *, frame: Frame | None = None) -> Tensor:
        latents = extended[:, :channels]
        pictures = F.pixel_shuffle(extended[:, channels:], backbone.downscale)
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


def with_control_channels(denoise: Denoise, pictures: Tensor, downscale: int) -> Denoise:
    """Add control pictures [B or 1, 3, H, W] as extra channels to the latents [B, C, h, w] that `denoise` takes.

    The `downscale` x `downscale` pixels of each latent position become its 3 `downscale`^2 channels.
    """
    channels = F.pixel_unshuffle(pictures, downscale)

    def denoise_extended(latents: Tensor, timestep: int) -> Tensor:
        return denoise(torch.cat([latents, channels.expand(len(latents), -1, -1, -1).to(latents)], dim=1), timestep)

    return denoise_extended
