"""Plot the report: votes by method, scores of factors, time for a vote."""

from __future__ import annotations

import io
import textwrap

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inst.files.provenance import describe
from inst.pictures.lettering import plot_fonts
from inst.study.factors import factor_name
from inst.study.report import Report
from inst.texts import cut, one_line

_OURS, _OTHER, _INK = "#1f5f8b", "#dcdcdc", "#1c1c1c"
_DPI = 200
_LONGEST_NAME = 60
"""Characters of a method's name."""


@plot_fonts()
def plot_report(report: Report) -> dict[str, bytes]:
    """Return the plots by file name, each as PNG and SVG; plots without answers are left out."""
    figures = {}
    if report.total.votes:
        figures = {"votes": _votes(report), "seconds": _seconds(report)}
    if report.ranked:
        figures["factors"] = _factors(report)
    votes = {name: one.votes for name, one in report.methods.items()}
    origin = {"title": report.title, "ours": report.ours, "votes": votes, "ranked": report.ranked}
    # No date and no random ids, so that the same answers give the same file.
    metadata = {"png": describe("plot of a user study", "inst study report", **origin), "svg": {"Date": None}}
    files = {}
    for name, figure in figures.items():
        for kind, texts in metadata.items():
            encoded = io.BytesIO()
            with rc_context({"svg.hashsalt": name}):
                figure.savefig(encoded, format=kind, dpi=_DPI, metadata=texts)
            files[f"{name}.{kind}"] = encoded.getvalue()
    return files


def _votes(report: Report) -> Figure:
    shares = {name: one for name, one in report.methods.items() if one.share is not None and one.wilson is not None}
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    for index, one in enumerate(shares.values()):
        assert one.share is not None
        assert one.wilson is not None
        share, low, high = (100 * value for value in (one.share, *one.wilson))
        axes.barh(index, share, color=_OURS, height=0.62)
        axes.barh(index, 100 - share, left=share, color=_OTHER, height=0.62)
        axes.errorbar(share, index, xerr=[[share - low], [high - share]], color=_INK, capsize=4, linewidth=1.4)
        axes.text(2, index, f"{share:.1f} %", va="center", color="white", fontweight="bold")
        axes.text(98, index, f"n = {one.votes}", va="center", ha="right", color=_INK, fontsize="small")
    axes.axvline(50, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    names = [_shown(name) for name in shares]
    axes.set_yticks(range(len(shares)), names, parse_math=False)  # a method's name may hold a $
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of votes for {_shown(report.ours)}, with Wilson's 95 % interval", parse_math=False)
    _hide_frame(axes)
    return figure


def _seconds(report: Report) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    longest = sorted(report.all_seconds)[int(0.98 * (len(report.all_seconds) - 1))]
    axes.hist([min(one, longest) for one in report.all_seconds], bins=40, color=_OURS)
    axes.axvline(report.seconds["median"], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(
        f"seconds for a vote (median {report.seconds['median']:.1f} s; the slowest 2 % are in the last bar)"
    )
    axes.set_ylabel("votes")
    axes.set_xlim(left=0)
    _hide_frame(axes)
    return figure


def _factors(report: Report) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = [textwrap.fill(factor_name(factor), 24) for factor in report.scores]
    bars = axes.barh(range(len(names)), list(report.scores.values()), color=_OURS, height=0.62)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, len(names))
    axes.set_xlabel(f"score: sum(frequency x weight) / {report.ranked} people")
    _hide_frame(axes)
    return figure


def _shown(name: str) -> str:
    return cut(one_line(name), _LONGEST_NAME)


def _hide_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
