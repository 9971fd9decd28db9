"""What a learning starts from: a module that fits the backbone, fresh or pretrained, and whether all fits together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inst.backbone.fingerprints import denoiser_fingerprint_of
from inst.backbone.inversion import AttentionInversion, DirectInversion, Inversion, InversionConfig, build_inversion
from inst.backbone.loading.image_encoder import how_to_give
from inst.backbone.model import Backbone
from inst.backbone.text import coarse_word
from inst.errors import Argument, UsageError
from inst.learning.data import CAPTIONS
from inst.learning.settings import LearningSettings
from inst.learning.state import LearningState
from inst.pictures.io import Photo
from inst.version import __version__


def check_start(
    backbone: Backbone, paintings: Sequence[Photo], settings: LearningSettings, resume: LearningState | None
) -> None:
    """Check what `LearningRun` is given, without computing anything.

    Raises:
        UsageError: the settings allow no module, or none that fits the backbone; the word is too long for a caption; or
            `resume` belongs to something else.
    """
    backbone.tokenize(CAPTIONS, {"[C]": _configure(backbone, settings).vectors})
    if resume is not None:
        resume.check(settings, belongings(backbone, paintings, settings.variant))


def style_name(painting: Photo) -> str:
    """What to call a style that nobody named: after its (first) painting."""
    return Path(painting.name).stem or "unnamed"


def about_style(name: str, backbone: Backbone, paintings: Sequence[Photo], variant: str, steps: int) -> dict[str, Any]:
    """The provenance that every style has which comes from paintings (`Style.about`)."""
    return {
        "name": name,
        "backbone": backbone.name,
        "variant": variant,
        "steps": steps,
        "paintings": [{"name": one.name, "sha256": one.sha256} for one in paintings],
        "inst": __version__,
    }


def belongings(backbone: Backbone, paintings: Sequence[Photo], variant: str) -> dict[str, Any]:
    """What a state belongs to: going on with anything else would not give what never stopping would have given.

    The variant "direct" looks at no painting: of it, the image encoder is no part.
    """
    about = {
        "text space": backbone.fingerprint,
        "denoiser": backbone.denoiser_fingerprint,
        "precision": str(backbone.dtype).removeprefix("torch."),
        "set of paintings": [_digest(one) for one in paintings],
    }
    if variant != "direct" and backbone.image_encoder is not None:
        weights = backbone.image_encoder.state_dict()
        about["image encoder"] = denoiser_fingerprint_of({key: one[:1].cpu() for key, one in weights.items()})
    return about


def _configure(backbone: Backbone, settings: LearningSettings) -> InversionConfig:
    """The configuration of the module that learning starts from: the pretrained one's, or a fresh one."""
    if settings.pretrained and backbone.inversion is not None:
        return replace(backbone.inversion.config, dropout=settings.dropout, free=True)
    return fresh_config(backbone, settings.variant, settings.vectors, settings.layers, settings.dropout)


def start_module(backbone: Backbone, settings: LearningSettings, generator: torch.Generator) -> Inversion:
    """The module that learning starts from: a copy of the pretrained one, or a fresh one."""
    with torch.random.fork_rng(devices=()):  # modules draw their first weights from the caller's generator
        if settings.pretrained and backbone.inversion is not None:
            module = build_inversion(_configure(backbone, settings))
            module.load_state_dict({"moved": module.moved, **backbone.inversion.state_dict()})
            return module.to(backbone.device)
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        return fresh_inversion(backbone, settings.variant, settings.vectors, settings.layers, settings.dropout)


def fresh_config(
    backbone: Backbone, variant: str = "attention", vectors: int = 8, layers: int = 3, dropout: float = 0.05
) -> InversionConfig:
    """Configure a module with free parts that fits a backbone, to learn from scratch.

    Args:
        backbone: gives the widths and the token table.
        variant: one of `VARIANTS`.
        vectors: number n of pseudo-word vectors.
        layers: number of cross-attention layers; "direct" has none.
        dropout: dropout rate in every layer.

    Raises:
        UsageError: a value out of range, or a network where the backbone has no image encoder.
    """
    width, encoder = backbone.text_width, backbone.image_encoder
    if variant == "direct":
        return InversionConfig(0, 0, width, vectors, 0, 1, 0.0, variant, free=True)
    if encoder is None:
        raise UsageError(
            f'{backbone.name or "This backbone"} has no image encoder, which the variant "{variant}" looks through',
            *how_to_give(backbone.text_encoder.config),
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
    """Make the module that `fresh_config` describes, which stands where the coarse word does, to learn from scratch.

    Returns:
        The module in fp32 on the backbone's device. Its weights are drawn from the CPU's default generator.

    Raises:
        UsageError: as `fresh_config` does.
    """
    module = build_inversion(fresh_config(backbone, variant, vectors, layers, dropout)).to(backbone.device)
    module.start_at(coarse_word(backbone), backbone.token_table, backbone.text_widths)
    return module


def _digest(painting: Photo) -> str:
    return painting.sha256 or hashlib.sha256(painting.picture.cpu().contiguous().numpy().tobytes()).hexdigest()
