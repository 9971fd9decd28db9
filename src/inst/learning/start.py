"""The start of learning: check the inputs, and make a fresh or pretrained module that fits the backbone."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.arguments import check_choice, checked
from inst.backbone.fingerprints import denoiser_fingerprint_of
from inst.backbone.inversion import (
    FREE_RATE,
    VARIANTS,
    AttentionInversion,
    DirectInversion,
    Inversion,
    InversionConfig,
    build_inversion,
)
from inst.backbone.loading.image_encoder import image_encoder_remedy
from inst.backbone.model import Backbone
from inst.backbone.text import coarse_word
from inst.errors import Argument, InstError, InstWarning, UsageError
from inst.files.listing import readable_name
from inst.learning.checking import check_tensors
from inst.learning.data import CAPTIONS
from inst.learning.settings import MOST, LearningSettings
from inst.learning.state import LearningState
from inst.pictures.reading import Photo
from inst.styles.style import Style
from inst.version import __version__


def choose_settings(
    backbone: Backbone,
    *,
    variant: str | None,
    layers: int | None,
    vectors: int | None,
    pretrained: bool | None,
    **others: Any,
) -> LearningSettings:
    """Replace None in the settings of `inst.learning.loop.learn`, and check whether they fit the backbone.

    Raises:
        UsageError: a setting has the wrong type, is out of range, or does not fit the backbone or another one.

    Warns:
        InstWarning: the variant "direct" is used because the backbone has no image encoder.
    """
    layers = None if layers is None else checked("layers", layers, "int")
    vectors = None if vectors is None else checked("vectors", vectors, "int")
    pretrained = None if pretrained is None else checked("pretrained", pretrained, "bool")
    if variant is None:
        variant = "direct" if backbone.image_encoder is None else "attention"
        if variant == "direct":
            warnings.warn(
                InstWarning(
                    f"{backbone.name or 'This backbone'} has no image encoder, so free vectors are learned, without "
                    "an embedding of the whole painting",
                    *image_encoder_remedy(backbone.text_encoder.config),
                    ", or choose this variant (",
                    Argument("variant", "direct"),
                    ")",
                ),
                stacklevel=3,
            )
    check_choice("variant", variant, VARIANTS)
    if variant == "direct" and layers:
        raise UsageError(f"The variant direct has no layers, but {layers} are given", "leave out ", Argument("layers"))
    if pretrained is None:
        pretrained = _pretrained_mismatch(backbone, variant, layers, vectors) is None
    elif pretrained and (mismatch := _pretrained_mismatch(backbone, variant, layers, vectors)):
        raise UsageError(mismatch, "learn from scratch instead")
    start = backbone.inversion.config if pretrained and backbone.inversion else None
    return LearningSettings(
        variant=variant,
        layers=0 if variant == "direct" else (start.layers if start else 3) if layers is None else layers,
        vectors=(start.vectors if start else 8) if vectors is None else vectors,
        pretrained=pretrained,
        **others,
    )


def _pretrained_mismatch(backbone: Backbone, variant: str, layers: int | None, vectors: int | None) -> str | None:
    """Return why the backbone's pretrained module does not fit the given arguments; None if it fits."""
    if backbone.inversion is None:
        return f"The backbone {backbone.name} has no pretrained inversion module"
    config = backbone.inversion.config
    for label, actual, wanted in (
        ("the variant", config.variant, variant),
        ("layers:", config.layers, layers),
        ("vectors:", config.vectors, vectors),
    ):
        if wanted is not None and wanted != actual:
            return f"The pretrained inversion module has {label} {actual}, not {wanted}"
    return None


def check_start(
    backbone: Backbone,
    paintings: Sequence[Photo],
    settings: LearningSettings,
    resume: LearningState | None,
    begin: Style | None,
) -> None:
    """Check the arguments of `LearningRun`, without computing anything.

    Raises:
        UsageError: no module with these settings fits the backbone; the word is too long for a caption; or `resume`
            comes from another learning.
        InstError: `resume` is damaged, or the module in `begin` is.
    """
    config = _configure(backbone, settings, begin)
    backbone.tokenize(CAPTIONS, {"[C]": config.vectors})
    if begin is not None and begin.module is not None:
        _check_module(begin, config)
    if resume is not None:
        resume.check(settings, resume_requirements(backbone, paintings, settings.variant))
        with torch.device("meta"):
            parameters = dict(build_inversion(config).named_parameters())
        order = [name for names, _ in learning_speeds(parameters) for name in names]
        check_tensors(resume, parameters, order, largest_loss_scale(backbone))


def _check_module(style: Style, config: InversionConfig) -> None:
    """Raise InstError unless the module in a style has the tensors of its configuration."""
    with torch.device("meta"):
        wanted = build_inversion(config).state_dict()
    given = {"moved": wanted["moved"], **(style.module or {})}  # a pretrained module has no free parts
    sizes, own = ({key: one.shape for key, one in tensors.items()} for tensors in (wanted, given))
    if sizes != own or not all(one.is_floating_point() for one in given.values()):
        raise InstError(
            f'The inversion module in the style "{style.name}" is damaged', "give another style, or learn it again"
        )


def learning_speeds(parameters: Mapping[str, Tensor]) -> list[tuple[list[str], float]]:
    """Return the names of the parameters of each learning rate, with the factor on it, as Adam numbers them."""
    network = [name for name in parameters if name != "moved"]
    free = [name for name in parameters if name == "moved"]
    return [(names, speed) for names, speed in ((network, 1.0), (free, FREE_RATE)) if names]


def largest_loss_scale(backbone: Backbone) -> float:
    """Return the scale of the loss at the start of learning, which keeps gradients in float16 from vanishing."""
    return 2.0**16 if backbone.dtype == torch.float16 else 1.0


def default_style_name(given: object, paintings: Sequence[Photo]) -> str:
    """Return the name of a style without a given name: that of the folder that was given, or of the first painting."""
    if isinstance(given, str | os.PathLike) and Path(given).is_dir():
        return readable_name(Path(given).resolve().name)
    return Path(paintings[0].name).stem or "unnamed"


def style_provenance(
    name: str, backbone: Backbone, paintings: Sequence[Photo], variant: str, steps: int
) -> dict[str, Any]:
    """Return the provenance of a style that comes from paintings (`Style.about`)."""
    return {
        "name": name,
        "backbone": backbone.name,
        "variant": variant,
        "steps": steps,
        "paintings": [{"name": painting.name, "sha256": painting.sha256} for painting in paintings],
        "inst": __version__,
    }


def resume_requirements(backbone: Backbone, paintings: Sequence[Photo], variant: str) -> dict[str, Any]:
    """Return what must be the same to resume a learning: fingerprints of the models, precision, and paintings.

    With anything else, the result would differ from that of a learning without interruption. The image encoder is
    included only if it is used: the variant "direct" does not use it.
    """
    stored = backbone.quantize
    about = {
        "text space": backbone.fingerprint,
        "denoiser": backbone.denoiser_fingerprint,
        "precision": str(backbone.dtype).removeprefix("torch.") + (f" with {stored} weights" if stored else ""),
        "set of paintings": [_digest(painting) for painting in paintings],
    }
    if variant != "direct" and backbone.image_encoder is not None:
        weights = backbone.image_encoder.state_dict()
        about["image encoder"] = denoiser_fingerprint_of({key: one[:1].cpu() for key, one in weights.items()})
    return about


def _configure(backbone: Backbone, settings: LearningSettings, begin: Style | None) -> InversionConfig:
    """Return the configuration of the module that learning starts from; see `start_module`."""
    known = None if backbone.inversion is None or not settings.pretrained else backbone.inversion.config
    if begin is not None and begin.module is not None:
        known = InversionConfig.of(module_config(begin))
    if known is not None:
        return replace(known, dropout=settings.dropout, free=True)
    return fresh_config(backbone, settings.variant, settings.vectors, settings.layers, settings.dropout)


def start_module(
    backbone: Backbone, settings: LearningSettings, generator: torch.Generator, begin: Style | None
) -> Inversion:
    """Make the module that learning starts from: that of the style `begin`, the pretrained module, or a fresh one."""
    with torch.random.fork_rng(devices=()):  # new modules draw weights; the caller's generator must not change
        known: Mapping[str, Tensor] | None = None if begin is None else begin.module
        if known is None and settings.pretrained and backbone.inversion is not None:
            known = backbone.inversion.state_dict()
        if known is not None:
            module = build_inversion(_configure(backbone, settings, begin))
            module.load_state_dict({"moved": module.moved, **known})
            return module.to(backbone.device)
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        return fresh_inversion(backbone, settings.variant, settings.vectors, settings.layers, settings.dropout)


def module_config(style: Style) -> dict[str, Any]:
    """Return the configuration of the module in a style; empty if the style has no module."""
    return dict(style.module_config or {}) if style.module is not None else {}


def settings_of(style: Style) -> Mapping[str, Any]:
    """Return the learning settings in the provenance of a style; empty if they are unknown."""
    settings = style.about.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def learned_steps(style: Style) -> int:
    """Return the setting `steps` of a style's learning, which may have stopped earlier; 0 if it is unknown."""
    steps = settings_of(style).get("steps")
    return steps if type(steps) is int and 0 < steps <= MOST["steps"] else 0


def steps_of(style: Style) -> int:
    """Return the number of learning steps that made a style; 0 if it is unknown or impossible."""
    steps = style.about.get("steps")
    return steps if type(steps) is int and 0 < steps <= MOST["steps"] else 0


def fresh_config(
    backbone: Backbone, variant: str = "attention", vectors: int = 8, layers: int = 3, dropout: float = 0.05
) -> InversionConfig:
    """Return the configuration of a module with free parts that fits a backbone, to learn from scratch.

    Args:
        backbone: gives the widths.
        variant: one of `VARIANTS`.
        vectors: number n of pseudo-word vectors.
        layers: number of cross-attention layers; "direct" has none.
        dropout: dropout rate in every layer.

    Raises:
        UsageError: a value is out of range, or the variant needs an image encoder and the backbone has none.
    """
    width, encoder = backbone.text_width, backbone.image_encoder
    if variant == "direct":
        return InversionConfig(0, 0, width, vectors, 0, 1, 0.0, variant, free=True)
    if encoder is None:
        raise UsageError(
            f'{backbone.name or "This backbone"} has no image encoder, which the variant "{variant}" needs',
            *image_encoder_remedy(backbone.text_encoder.config),
            ", or learn without one (",
            Argument("variant", "direct"),
            ")",
        )
    return InversionConfig(
        picture_width=encoder.config.hidden_size,
        pooled_width=encoder.config.projection_dim,
        text_width=width,
        vectors=vectors,
        layers=layers,
        heads=math.gcd(8, width),
        dropout=dropout,
        variant=variant,
        free=True,
    )


def fresh_inversion(
    backbone: Backbone, variant: str = "attention", vectors: int = 8, layers: int = 3, dropout: float = 0.05
) -> AttentionInversion | DirectInversion:
    """Make the module that `fresh_config` describes, to learn from scratch. Its first word is the coarse word.

    Returns:
        The module in float32 on the device of the backbone. Its weights are drawn from the CPU's default generator.

    Raises:
        UsageError: for the same reasons as `fresh_config`.
    """
    module = build_inversion(fresh_config(backbone, variant, vectors, layers, dropout)).to(backbone.device)
    module.start_at(coarse_word(backbone), backbone.token_table, backbone.text_widths)
    return module


def _digest(painting: Photo) -> str:
    return painting.sha256 or hashlib.sha256(painting.picture.cpu().contiguous().numpy().tobytes()).hexdigest()
