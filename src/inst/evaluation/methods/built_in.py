"""Make the built-in methods of a comparison by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from inst.backbone.model import Backbone
from inst.errors import InstError
from inst.evaluation.methods.adain import AdaIN, AdaINDecoder
from inst.evaluation.methods.gatys import Gatys
from inst.evaluation.methods.method import Method
from inst.evaluation.methods.styleid import StyleID
from inst.evaluation.methods.styles import StyleMethod, captioned, instant, learned
from inst.evaluation.networks.vgg import VGG19Features

_WITHOUT_BACKBONE = ("adain", "gatys")
"""The methods that need no backbone."""


def built_in(
    names: Sequence[str],
    backbone: Callable[[], Backbone],
    device: torch.device,
    *,
    learning: Mapping[str, Any],
    transfer: Mapping[str, Any],
    captions: Mapping[str, str],
) -> tuple[list[Method], list[str]]:
    """Make the methods with these names.

    Args:
        names: names from `inst.evaluation.methods.names.METHODS`.
        backbone: loads the backbone; called only if a method needs one.
        device: device of the methods without a backbone.
        learning: arguments of `inst.learn`, for "inst" and "textual-inversion".
        transfer: arguments of `inst.transfer`, for all methods with a backbone except "styleid".
        captions: captions by painting, for "sdm"; see `inst.evaluation.methods.styles.captioned`.

    Returns:
        The methods in the order of the names, and a line for each method that is left out because its weights are
        missing.

    Raises:
        UsageError: arguments that cannot be used.
    """
    made: dict[str, Method] = {}
    if set(names) - set(_WITHOUT_BACKBONE):
        made |= _with_backbone(names, backbone(), learning, transfer, captions)
    missing: list[str] = []
    others = [name for name in _WITHOUT_BACKBONE if name in names]
    if others:
        try:
            network = VGG19Features.load().to(device)
            made["gatys"] = Gatys(network)
            if "adain" in others:
                made["adain"] = AdaIN(network, AdaINDecoder.load().to(device))
        except InstError as error:
            missing = [f"{name} is left out: {error}" for name in names if name in set(others) - set(made)]
    return [made[name] for name in names if name in made], missing


def _with_backbone(
    names: Sequence[str],
    backbone: Backbone,
    learning: Mapping[str, Any],
    transfer: Mapping[str, Any],
    captions: Mapping[str, str],
) -> dict[str, Method]:
    makers = {
        "inst": learned(backbone, **learning),
        "inst-instant": instant(backbone),
        "textual-inversion": learned(backbone, "textual-inversion", variant="direct", **learning),
    }
    made: dict[str, Method] = {
        name: StyleMethod(name, backbone, makers[name], transfer) for name in names if name in makers
    }
    if "sdm" in names:
        # Plain Stable Diffusion: a caption, plain noise, and nothing of the painting itself.
        plain = {**transfer, "tone": "none", "style_attention": 0.0, "inversion": "none"}
        made["sdm"] = StyleMethod("sdm", backbone, captioned(backbone, captions), plain)
    if "styleid" in names:
        made["styleid"] = StyleID(backbone, backbone.default_size)
    return made
