"""The built-in methods of a comparison, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from inst.backbone.model import Backbone
from inst.errors import Argument, InstError, UsageError
from inst.evaluation.methods.adain import AdaIN, AdaINDecoder
from inst.evaluation.methods.gatys import Gatys
from inst.evaluation.methods.method import Method
from inst.evaluation.methods.styles import StyleMethod, captioned, instant, learned
from inst.evaluation.networks.vgg import VGG19Features

_OTHERS = ("adain", "gatys")
"""Those that do without a backbone."""


def built_in(
    names: Sequence[str],
    backbone: Callable[[], Backbone],
    device: torch.device,
    *,
    learning: Mapping[str, Any],
    transfer: Mapping[str, Any],
    captions: Mapping[str, str],
) -> tuple[list[Method], list[str]]:
    """Make the methods of these names.

    Args:
        names: some of `inst.evaluation.methods.names.METHODS`.
        backbone: loads the backbone; called only where a method needs one.
        device: where the methods without a backbone compute.
        learning: arguments of `inst.learn`, for "inst" and "textual-inversion".
        transfer: arguments of `inst.transfer`, for all with a backbone.
        captions: for "sdm", by painting; see `inst.evaluation.methods.styles.captioned`.

    Returns:
        The methods in the order of the names, and a line for each that is left out, because its weights are not here.

    Raises:
        UsageError: arguments that cannot be used, or "inst-instant" with a backbone that has no instant style.
    """
    made: dict[str, Method] = {}
    if set(names) - set(_OTHERS):
        made |= _with_backbone(names, backbone(), learning, transfer, captions)
    missing: list[str] = []
    others = [name for name in _OTHERS if name in names]
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
        # As it comes: a caption, plain noise, and no help with the tone.
        plain = {**transfer, "tone": "none", "inversion": "none"}
        made["sdm"] = StyleMethod("sdm", backbone, captioned(backbone, captions), plain)
    if "inst-instant" in names and backbone.inversion is None:
        raise UsageError(
            f"The backbone {backbone.name} has no instant style", "leave inst-instant out of ", Argument("methods")
        )
    return made
