"""`inst evaluate`: figures of pictures, beside the controls that say what they are worth."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.defaults import defaults_of
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError

if TYPE_CHECKING:
    from inst.evaluation.collection import Collection
    from inst.evaluation.metrics.clip import PictureTextEncoder

_EVALUATE = defaults_of("inst.evaluation.evaluate", "evaluate")
_PAGE = defaults_of("inst.evaluation.page", "write_page")
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        help="Some of lpips-vgg, lpips-alex, cfsd, gram, mean-std, colour, clip, fid, artfid, with commas between "
        "them; by default all.",
        show_default=False,
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        help="CLIP's folder, or its name on the model hub (fetched with --download); by default the "
        "backbone's own encoders.",
    ),
]
_NAMED = 20
"""Problems that are printed; all of them are in figures.json and on the page."""


@with_session
def evaluate(
    session: Session,
    results: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures PHOTO__PAINTING.png; a folder of such folders, one for each method, as "
            "`inst compare` makes it; or one picture.",
            metavar="RESULTS",
            show_default=False,
        ),
    ],
    paintings: Annotated[
        Path | None, typer.Option("--paintings", help="A folder, or one painting; by default RESULTS/paintings.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos", help="A folder, or one photo; by default RESULTS/photos. None for pictures made from text."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="What was asked for: lines of NAME, a tab, and the prompt; JSON; or one line."),
    ] = None,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = OUTPUTS / "evaluation",
    size: Annotated[int, typer.Option("--size", min=32, help="Short side to judge at, in pixels.")] = _EVALUATE["size"],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures at a time.")] = _EVALUATE["batch"],
    replicates: Annotated[int, typer.Option("--replicates", min=100, help="Draws of the bootstrap.")] = _EVALUATE[
        "replicates"
    ],
    shown: Annotated[int, typer.Option("--shown", min=1, help="Pairs of pictures on the page.")] = _PAGE["shown"],
    seed: SeedOption = _EVALUATE["seed"],
) -> None:
    """Measure how good pictures are: as JSON, CSV, Markdown, and a page of pictures.

    Exit code 1 says that something was left out; the rest was computed.
    """
    from inst.evaluation.collection import collect

    names = metric_names(metrics)
    collection = collect(results, paintings, photos, prompts)
    check_clip(session, clip, names)
    settings: dict[str, Any] = {"size": size, "batch": batch, "replicates": replicates, "seed": seed}
    judged = judge(session, collection, out, metrics=names, clip=clip, shown=shown, **settings)
    session.report(judged.lines, **judged.facts)
    if judged.problems:
        raise typer.Exit(InstError.exit_code)


def metric_names(metrics: str | None) -> Sequence[str]:
    """Read `--metrics`; None is all. Raises UsageError for an unknown name, or none."""
    from inst.evaluation.metrics.table import NAMES, check_names

    names = NAMES if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    check_names(names)
    return names


def load_encoder(session: Session, clip: str | None) -> PictureTextEncoder:
    """Load what similarities are measured with: CLIP where `--clip` names it, else the backbone's own encoders."""
    from inst.backbone.devices import choose_device
    from inst.evaluation.metrics.clip import PictureTextEncoder

    if clip is None:
        return PictureTextEncoder.of_backbone(session.load())
    return PictureTextEncoder.load_clip(clip, choose_device(session.device), session.download)


def check_clip(session: Session, clip: str | None, metrics: Sequence[str]) -> None:
    """Load CLIP, if `--clip` names one that is measured with, and let go of it again, before anything else is done.

    Raises:
        InstError: it cannot be had.
    """
    from inst.evaluation.metrics.clip import PictureTextEncoder

    if clip is not None and "clip" in metrics:
        PictureTextEncoder.load_clip(clip, "cpu", session.download)


@dataclass(frozen=True)
class Judged:
    """What there is to say of judged pictures: lines for people, facts for --json, and what was left out."""

    lines: list[str]
    facts: dict[str, Any]
    problems: tuple[str, ...]


def judge(
    session: Session,
    collection: Collection,
    out: Path,
    *,
    metrics: Sequence[str],
    clip: str | None,
    shown: int = _PAGE["shown"],
    said: Container[str] = (),
    **settings: Any,
) -> Judged:
    """Judge pictures by metrics (`metric_names`), with a progress bar, and write the reports and the page into `out`.

    `settings` are those of `inst.evaluation.evaluate.evaluate`. What was left out or squashed is said on stderr. The
    problems in `said`, which the caller has told of, are in the files alone, and not among `Judged.problems`.
    """
    from inst.backbone.devices import choose_device
    from inst.evaluation.evaluate import evaluate
    from inst.evaluation.metrics.table import load_metrics
    from inst.evaluation.page import write_page
    from inst.evaluation.report import as_json, number, used_columns, write_reports
    from inst.files.writing import make_folder
    from inst.runs import complete

    device = choose_device(session.device)
    with_photos = collection.pairs[0].photo is not None
    loaded = load_metrics(metrics, encoder=lambda: load_encoder(session, clip), device=device, photos=with_photos)
    make_folder(out)
    with session.progress("judging", len(collection.pairs)) as move:
        done = complete(
            evaluate(collection, loaded, device=device, **settings),
            lambda step: move(step.done, step.total, step.name),
        )
    with session.waiting("writing the page"):
        files = [*write_reports(done, out), write_page(done, out, shown)]

    columns = used_columns(done)
    widths = [max(len(one.title), 7) for one in columns]
    first = max(len(row.label) for row in done.rows)
    lines = ["  ".join([" " * first, *(one.title.rjust(width) for one, width in zip(columns, widths, strict=True))])]
    for row in done.rows:
        figures = [number(row.figures[one.key].value) if one.key in row.figures else "-" for one in columns]
        cells = (figure.rjust(width) for figure, width in zip(figures, widths, strict=True))
        lines.append("  ".join([row.label.ljust(first), *cells]))
    for note in done.notes:
        session.note(note)
    problems = tuple(problem for problem in done.problems if problem not in said)
    for problem in problems[:_NAMED]:
        session.left_out(problem)
    if len(problems) > _NAMED:
        session.note(f"Left out: {len(problems) - _NAMED} more, named in {files[0]}")
    return Judged(
        lines=[*lines, "", f"{files[-1]}   the page: open it in a browser"],
        facts={**as_json(done), "page": str(files[-1])},
        problems=problems,
    )
