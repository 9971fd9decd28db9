"""The metrics by name, and the columns that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from inst.errors import Argument, InstError, UsageError
from inst.evaluation.metrics.cfsd import CFSD
from inst.evaluation.metrics.clip import PictureTextEncoder, cosine
from inst.evaluation.metrics.colour import ColourDistance
from inst.evaluation.metrics.gram import GramDistance, MeanStdDistance
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from inst.evaluation.networks.vgg import VGG19Features

NAMES = ("lpips-vgg", "lpips-alex", "cfsd", "gram", "mean-std", "colour", "clip", "fid", "artfid")
"""What can be asked for."""


@dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        key: in JSON and CSV.
        title: for people.
        better: which way is good.
        against: what a picture is compared with; "set" where whole sets are compared.
        means: one sentence.
    """

    key: str
    title: str
    better: Literal["lower", "higher"]
    against: Literal["photo", "painting", "prompt", "set"]
    means: str


@dataclass(frozen=True, eq=False)
class PairMetric:
    """A figure of each picture: `compare(network(picture), network(other))`, [B].

    Metrics that have the very same `network` share its work.
    """

    column: Column
    network: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Metrics:
    """What is to be measured.

    Attributes:
        pairs: figures of single pictures against a photo or a painting.
        encoder: measures the likeness to prompts too; None if that is not wanted.
        inception: pictures to the features [B, D] of FID; None if neither FID nor ArtFID is wanted.
        sets: the columns of sets, in their order.
        problems: metrics that had to be left out, one line each.
    """

    pairs: tuple[PairMetric, ...]
    encoder: PictureTextEncoder | None = None
    inception: Callable[[Tensor], Tensor] | None = None
    sets: tuple[Column, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns that there can be; those of which nothing could be measured stay empty."""
        texts = () if self.encoder is None or self.encoder.texts is None else (text_column(self.encoder),)
        return (*(metric.column for metric in self.pairs), *texts, *self.sets)


def text_column(encoder: PictureTextEncoder) -> Column:
    """The column of the likeness to prompts (editability)."""
    return Column(
        f"{encoder.name.lower()}-text",
        f"{encoder.name} text similarity",
        "higher",
        "prompt",
        f"Editability: cosine with the prompt without its placeholder, in the space of {encoder.source}.",
    )


_FID = (
    Column("fid", "FID", "lower", "set", "Frechet distance of Inception features to the paintings, all as one set."),
    Column("fid-inf", "FID∞", "lower", "set", "FID extrapolated to infinitely many pictures."),
)
_ARTFID = (
    Column("artfid", "ArtFID", "lower", "set", "(1 + LPIPS to the photos) (1 + FID), with LPIPS Alex."),
    Column("artfid-inf", "ArtFID∞", "lower", "set", "ArtFID with the extrapolated FID."),
)


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError for a name that is not of `NAMES`, or for none."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise UsageError(f"There is no metric {', '.join(unknown) or 'to measure'}", f"choose of {', '.join(NAMES)}")


def load_metrics(
    names: Sequence[str] = NAMES,
    *,
    encoder: Callable[[], PictureTextEncoder] | None = None,
    device: str | torch.device = "cpu",
    photos: bool = True,
) -> Metrics:
    """Load the networks of the metrics `names`; weights that cannot be had are among the problems, the others go on.

    Args:
        names: of `NAMES`. "artfid" measures "fid" and "lpips-alex" as well.
        encoder: loads what "clip" is measured with; without one, "clip" is left out.
        device: where the networks run.
        photos: whether there are photos; without them, what is measured against photos is left out silently.

    Raises:
        UsageError: an unknown name, or none.
        InstError: no weights at all could be had.
    """
    check_names(names)
    wanted = set(names) | ({"fid", "lpips-alex"} if "artfid" in names else set())
    if not photos:
        wanted -= {"lpips-vgg", "lpips-alex", "cfsd", "artfid"}
    problems: list[str] = []

    def attempt(names: Sequence[str], load: Callable[[], Any]) -> Any:
        try:
            return load()
        except InstError as error:
            problems.append(f"{', '.join(names)} {'are' if names[1:] else 'is'} left out: {error}")
            return None

    pairs: list[PairMetric] = []
    nets: tuple[tuple[Literal["vgg", "alex"], str], ...] = (("vgg", "VGG"), ("alex", "Alex"))
    for net, title in nets:
        load = partial(LPIPS.load, net=net)
        if f"lpips-{net}" in wanted and (lpips := attempt([f"lpips-{net}"], load)):
            lpips.to(device)
            means = "Perceptual distance to the photo: 0 for the photo itself."
            column = Column(f"lpips-{net}", f"LPIPS {title}", "lower", "photo", means)
            pairs.append(PairMetric(column, lpips.network, lpips.compare))
    styles = [name for name in ("cfsd", "gram", "mean-std") if name in wanted]
    if styles and (vgg := attempt(styles, lambda: VGG19Features.load().to(device))):
        pairs += [_of_vgg19(name, vgg) for name in styles]
    if "colour" in wanted:
        colour = ColourDistance().to(device)
        means = (
            "Hellinger distance of the colour histograms to the painting's: 0 the same palette, 1 nothing in common."
        )
        column = Column("colour", "Colour histogram", "lower", "painting", means)
        pairs.append(PairMetric(column, colour.network, colour.compare))
    seen = attempt(["clip"], encoder) if encoder and "clip" in wanted else None
    if seen is not None:
        means = f"Accuracy: cosine with the painting, in the space of {seen.source}."
        column = Column(f"{seen.name.lower()}-image", f"{seen.name} image similarity", "higher", "painting", means)
        pairs.append(PairMetric(column, seen.pictures, cosine))
    inception = attempt(["fid"], lambda: InceptionFID.load().to(device)) if "fid" in wanted else None
    sets = () if inception is None else _FID
    if "artfid" in wanted:
        had = {"fid": inception is not None, "lpips-alex": any(one.column.key == "lpips-alex" for one in pairs)}
        if lacking := [name for name, there in had.items() if not there]:
            problems.append(f"artfid is left out: it takes {' and '.join(lacking)}")
        else:
            sets = (*sets, *_ARTFID)
    if not pairs and inception is None:
        if problems:
            raise InstError(problems[0])
        raise InstError("Nothing can be measured without photos", "give ", Argument("photos"))
    return Metrics(tuple(pairs), seen, inception, sets, tuple(problems))


def _of_vgg19(name: str, vgg: VGG19Features) -> PairMetric:
    compare: Callable[[Any, Any], Tensor]
    if name == "cfsd":
        compare = CFSD.compare
        column = Column(name, "CFSD", "lower", "photo", "Change of the places' likeness to each other since the photo.")
    elif name == "gram":
        compare = GramDistance.compare
        means = (
            "Relative distance of VGG-19's Gram matrices to the painting's: 0 its textures, about 1 a grey picture's."
        )
        column = Column(name, "Gram distance", "lower", "painting", means)
    else:
        compare = MeanStdDistance.compare
        means = "Distance of the means and standard deviations of VGG-19's channels to the painting's (AdaIN's loss)."
        column = Column(name, "Mean and std", "lower", "painting", means)
    return PairMetric(column, vgg, compare)
