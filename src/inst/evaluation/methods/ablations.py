"""The ablations: sets of methods that differ in one thing, for `inst ablate` (paper sec. 4.3, and our own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inst.backbone.model import Backbone
from inst.errors import InstError
from inst.evaluation.methods.styles import StyleMaker, StyleMethod, instant, learned

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """A comparison in which one thing is varied.

    Attributes:
        question: the question that it answers, one line.
        methods: (backbone, arguments of `learn` common to all, arguments of `transfer` common to all) -> the methods.
    """

    question: str
    methods: Callable[[Backbone, Arguments, Arguments], Sequence[StyleMethod]]


def _vary_transfer(settings: Mapping[str, Arguments]) -> Callable[..., Sequence[StyleMethod]]:
    """Return a function that makes methods: one learned style, transferred with different arguments."""

    def methods(backbone: Backbone, learning: Arguments, transfer: Arguments) -> Sequence[StyleMethod]:
        maker = learned(backbone, **learning)
        return [StyleMethod(name, backbone, maker, {**transfer, **own}) for name, own in settings.items()]

    return methods


def _vary_learning(settings: Mapping[str, Arguments]) -> Callable[..., Sequence[StyleMethod]]:
    """Return a function that makes methods: styles learned with different arguments, all transferred the same way."""

    def methods(backbone: Backbone, learning: Arguments, transfer: Arguments) -> Sequence[StyleMethod]:
        return [
            StyleMethod(name, backbone, learned(backbone, name, **{**learning, **own}), transfer)
            for name, own in settings.items()
        ]

    return methods


def _instant_or_learned(backbone: Backbone, learning: Arguments, transfer: Arguments) -> Sequence[StyleMethod]:
    if backbone.inversion is None:
        raise InstError(
            f"The backbone {backbone.name} has no pretrained inversion module and so no instant styles",
            "choose another backbone",
        )
    makers: list[StyleMaker] = [instant(backbone), learned(backbone, **learning)]
    return [StyleMethod(maker.name, backbone, maker, transfer) for maker in makers]


_SCRATCH = {"pretrained": False}

_BOTH = {
    "style_attention": 1.0,
    "attention_blocks": "up",
    "query_preservation": 0.0,
    "attention_temperature": 1.0,
}
_ATTENTION: Mapping[str, Arguments] = {
    "word": {**_BOTH, "style_attention": 0.0},
    "attention": {**_BOTH, "style_weight": 0.0},
    "both": _BOTH,
    **{f"weight-{value}": {**_BOTH, "style_attention": value} for value in (0.5, 0.75)},
    **{f"blocks-{name}": {**_BOTH, "attention_blocks": name} for name in ("fine", "all")},
    **{f"gamma-{value}": {**_BOTH, "query_preservation": value} for value in (0.5, 0.75)},
    **{f"tau-{value}": {**_BOTH, "attention_temperature": value} for value in (0.75, 1.5)},
}
"""Each method differs from "both" in one argument. "both" is weight 1, blocks "up", gamma 0 and tau 1; "word" is weight
0. So no method is there twice."""

ABLATIONS: Mapping[str, Ablation] = {
    "stochastic": Ablation(
        "How much of the photo does stochastic inversion keep, compared with plain noise and DDIM inversion?",
        _vary_transfer({f"inversion-{kind}": {"inversion": kind} for kind in ("stochastic", "none", "ddim")}),
    ),
    "strength": Ablation(
        "How do style and content change with the strength?",
        _vary_transfer({f"strength-{value}": {"strength": value} for value in (0.2, 0.35, 0.5, 0.65, 0.8)}),
    ),
    "attention": Ablation(
        "What do pseudo-word and style attention give, alone and together, and what do the settings of attention do?",
        _vary_transfer(_ATTENTION),
    ),
    "layers": Ablation(
        "How much do attention layers help: none, one or several, over patch tokens or one pooled token?",
        _vary_learning(
            {
                "direct": {"variant": "direct", **_SCRATCH},
                "pooled-3": {"variant": "pooled", "layers": 3, **_SCRATCH},
                "attention-1": {"variant": "attention", "layers": 1, **_SCRATCH},
                "attention-3": {"variant": "attention", "layers": 3, **_SCRATCH},
                "attention-6": {"variant": "attention", "layers": 6, **_SCRATCH},
            }
        ),
    ),
    "dropout": Ablation(
        "Does dropout in the attention layers help?",
        _vary_learning(
            {f"dropout-{rate}": {"variant": "attention", "dropout": rate, **_SCRATCH} for rate in (0.0, 0.05, 0.2)}
        ),
    ),
    "instant": Ablation("Is a learned style closer to the painting than an instant one?", _instant_or_learned),
    "vectors": Ablation(
        "How many pseudo-word vectors does a style need?",
        _vary_learning({f"vectors-{n}": {"vectors": n, **_SCRATCH} for n in (1, 2, 4, 8, 16)}),
    ),
    "steps": Ablation(
        "How many learning steps are worth their time?",
        _vary_learning({f"steps-{steps}": {"steps": steps, "patience": steps} for steps in (25, 50, 100, 200, 400)}),
    ),
}
"""The ablations by name. `inst.evaluation.learning_curves.measure` is another one, which compares learning curves."""
