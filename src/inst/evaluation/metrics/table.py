"""Load metrics by name, and define their columns in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from inst.backbone.devices import choose_device
from inst.errors import Argument, InstError, UsageError
from inst.evaluation.metrics.cfsd import CFSD
from inst.evaluation.metrics.clip import PictureTextEncoder, cosine
from inst.evaluation.metrics.colour import ColourDistance
from inst.evaluation.metrics.gram import GramDistance, MeanStdDistance
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from inst.evaluation.networks.vgg import VGG19Features
from inst.texts import cut

NAMES = ("lpips-vgg", "lpips-alex", "cfsd", "gram", "mean-std", "colour", "clip", "fid", "artfid")
"""The names of all metrics."""


@dataclass(frozen=True)
class Column:
    """A column of scores in the table.

    Attributes:
        key: name in JSON and CSV files.
        title: title of the column.
        better: "lower" or "higher".
        against: what a picture is compared with; "set" if whole sets are compared.
        means: meaning of the score, in one sentence.
    """

    key: str
    title: str
    better: Literal["lower", "higher"]
    against: Literal["photo", "painting", "prompt", "set"]
    means: str


@dataclass(frozen=True, eq=False)
class PairMetric:
    """A metric with a score for each picture: `compare(network(picture), network(other))`, [B].

    Metrics with the same `network` object share its features.
    """

    column: Column
    network: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of an evaluation.

    Attributes:
        pairs: metrics that compare single pictures with a photo or a painting.
        encoder: encoder for the similarity to prompts; None if it is not wanted.
        inception: network from pictures to the features [B, D] of FID; None if neither FID nor ArtFID is wanted.
        sets: columns that compare sets, in order.
        problems: metrics that were left out, one line each.
    """

    pairs: tuple[PairMetric, ...]
    encoder: PictureTextEncoder | None = None
    inception: Callable[[Tensor], Tensor] | None = None
    sets: tuple[Column, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return all columns; a column without scores stays empty."""
        texts = () if self.encoder is None or self.encoder.texts is None else (text_column(self.encoder),)
        return (*(metric.column for metric in self.pairs), *texts, *self.sets)


def text_column(encoder: PictureTextEncoder) -> Column:
    """Return the column of the similarity to prompts (editability)."""
    return Column(
        f"{encoder.name.lower()}-text",
        f"{encoder.name} text similarity",
        "higher",
        "prompt",
        f"Editability: cosine with the prompt without its placeholder, in the space of {encoder.source}.",
    )


_FID = (
    Column(
        "fid",
        "FID",
        "lower",
        "set",
        "Frechet distance between the Inception features of all pictures and all paintings.",
    ),
    Column("fid-inf", "FID∞", "lower", "set", "FID extrapolated to infinitely many pictures."),
)
_ARTFID = (
    Column("artfid", "ArtFID", "lower", "set", "(1 + LPIPS to the photos) (1 + FID), with LPIPS Alex."),
    Column("artfid-inf", "ArtFID∞", "lower", "set", "ArtFID with the extrapolated FID."),
)


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError if a name is not in `NAMES`, or if there is no name."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise UsageError(
            f"There is no metric {cut(', '.join(unknown), 60) or 'to measure'}", f"choose from {', '.join(NAMES)}"
        )


def load_metrics(
    names: Sequence[str] = NAMES,
    *,
    encoder: Callable[[], PictureTextEncoder] | None = None,
    device: str | torch.device = "cpu",
    photos: bool = True,
) -> Metrics:
    """Load the networks of metrics. A metric whose weights are missing becomes a problem; the others are loaded.

    Args:
        names: names from `NAMES`. "artfid" also adds "fid" and "lpips-alex".
        encoder: loads the encoder for "clip"; without it, "clip" is left out.
        device: device of the networks.
        photos: whether there are photos; without them, the metrics that compare with photos are left out silently.

    Raises:
        UsageError: an unknown name, or no name; or there is no such device.
        InstError: no metric could be loaded.
    """
    check_names(names)
    device = choose_device(device)
    wanted = set(names) | ({"fid", "lpips-alex"} if "artfid" in names else set())
    if not photos:
        wanted -= {"lpips-vgg", "lpips-alex", "cfsd", "artfid"}
    problems: list[str] = []

    def load_or_skip(names: Sequence[str], load: Callable[[], Any]) -> Any:
        try:
            return load()
        except InstError as error:
            problems.append(f"{', '.join(names)} {'are' if names[1:] else 'is'} left out: {error}")
            return None

    pairs: list[PairMetric] = []
    nets: tuple[tuple[Literal["vgg", "alex"], str], ...] = (("vgg", "VGG"), ("alex", "Alex"))
    for net, title in nets:
        load = partial(LPIPS.load, net=net)
        if f"lpips-{net}" in wanted and (lpips := load_or_skip([f"lpips-{net}"], load)):
            lpips.to(device)
            means = "Perceptual distance to the photo: 0 for the photo itself."
            column = Column(f"lpips-{net}", f"LPIPS {title}", "lower", "photo", means)
            pairs.append(PairMetric(column, lpips.network, lpips.compare))
    vgg19_names = [name for name in ("cfsd", "gram", "mean-std") if name in wanted]
    if vgg19_names and (vgg := load_or_skip(vgg19_names, lambda: VGG19Features.load().to(device))):
        pairs += [_vgg19_metric(name, vgg) for name in vgg19_names]
    if "colour" in wanted:
        colour = ColourDistance().to(device)
        means = (
            "Hellinger distance between the colour histograms of picture and painting: 0 for the same palette, "
            "1 for no colours in common."
        )
        column = Column("colour", "Colour histogram", "lower", "painting", means)
        pairs.append(PairMetric(column, colour.network, colour.compare))
    clip = load_or_skip(["clip"], encoder) if encoder and "clip" in wanted else None
    if clip is not None:
        means = f"Accuracy: cosine with the painting, in the space of {clip.source}."
        column = Column(f"{clip.name.lower()}-image", f"{clip.name} image similarity", "higher", "painting", means)
        pairs.append(PairMetric(column, clip.pictures, cosine))
    inception = load_or_skip(["fid"], lambda: InceptionFID.load().to(device)) if "fid" in wanted else None
    sets = () if inception is None else _FID
    if "artfid" in wanted:
        loaded = {"fid": inception is not None, "lpips-alex": any(one.column.key == "lpips-alex" for one in pairs)}
        if missing := [name for name, is_loaded in loaded.items() if not is_loaded]:
            problems.append(f"artfid is left out: it needs {' and '.join(missing)}")
        else:
            sets = (*sets, *_ARTFID)
    if not pairs and inception is None:
        if problems:
            raise InstError(problems[0])
        raise InstError("Nothing can be measured without photos", "give ", Argument("photos"))
    return Metrics(tuple(pairs), clip, inception, sets, tuple(problems))


def _vgg19_metric(name: str, vgg: VGG19Features) -> PairMetric:
    compare: Callable[[Any, Any], Tensor]
    if name == "cfsd":
        compare = CFSD.compare
        means = "Change of the similarities between places of the picture, compared with the photo."
        column = Column(name, "CFSD", "lower", "photo", means)
    elif name == "gram":
        compare = GramDistance.compare
        means = (
            "Relative distance between the Gram matrices of VGG-19 of picture and painting: 0 for the same textures, "
            "about 1 for a grey picture."
        )
        column = Column(name, "Gram distance", "lower", "painting", means)
    else:
        compare = MeanStdDistance.compare
        means = "Distance between means and deviations of VGG-19's channels of picture and painting (AdaIN's loss)."
        column = Column(name, "Mean and std", "lower", "painting", means)
    return PairMetric(column, vgg, compare)
