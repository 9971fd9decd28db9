"""The command `inst evaluate`, which computes scores of pictures and of controls to compare them with."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.defaults import defaults_of
from inst.errors import InstError
from inst.files.listing import readable_name
from inst.texts import cut, one_line

if TYPE_CHECKING:
    from inst.evaluation.collection import Collection
    from inst.evaluation.metrics.clip import PictureTextEncoder

_EVALUATE = defaults_of("inst.evaluation.evaluate", "evaluate")
_PAGE = defaults_of("inst.evaluation.page", "write_page")
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        help="Metrics to compute, separated by commas, from lpips-vgg, lpips-alex, cfsd, gram, mean-std, colour, clip, "
        "fid, artfid. By default all.",
        show_default=False,
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        help="CLIP model for similarities: a folder, or a model-hub id (downloaded with --download). By default the "
        "backbone's own encoders.",
    ),
]
_PRINTED_PROBLEMS = 20
"""Largest number of problems that are printed. All problems are in figures.json."""


@with_session
def evaluate(
    session: Session,
    results: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures named PHOTO__PAINTING.png; a folder with one such folder for each method, as "
            "`inst compare` writes it; or one picture.",
            metavar="RESULTS",
            show_default=False,
        ),
    ],
    paintings: Annotated[
        Path | None,
        typer.Option("--paintings", help="The paintings: a folder or one file. By default RESULTS/paintings."),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="The photos: a folder or one file. By default RESULTS/photos; not needed for pictures made from text.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="File with the prompts of the pictures: lines of NAME, a tab and the prompt; JSON; or one prompt.",
        ),
    ] = None,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the reports.")] = OUTPUTS / "evaluation",
    size: Annotated[
        int, typer.Option("--size", help="Short side in pixels at which pictures are evaluated, 32 to 4096.")
    ] = _EVALUATE["size"],
    batch: Annotated[int, typer.Option("--batch", help="Batch size in pictures, up to 1024.")] = _EVALUATE["batch"],
    replicates: Annotated[
        int,
        typer.Option(
            "--replicates", help="Number of bootstrap resamples for the confidence intervals, 100 to 100,000."
        ),
    ] = _EVALUATE["replicates"],
    shown: Annotated[
        int, typer.Option("--shown", help="Largest number of picture pairs on the page, up to 10,000.")
    ] = _PAGE["shown"],
    seed: SeedOption = _EVALUATE["seed"],
) -> None:
    """Measure the quality of stylised pictures. Writes scores as JSON, CSV and Markdown, and a page of pictures.

    Exit code 1 means that something was left out. The other scores were computed. If the command is interrupted, the
    same command continues.
    """
    from inst.backbone.devices import choose_device
    from inst.evaluation.collection import collect
    from inst.evaluation.evaluate import check_settings
    from inst.evaluation.page import check_shown

    names = metric_names(metrics)
    settings: dict[str, Any] = {"size": size, "batch": batch, "replicates": replicates, "seed": seed}
    check_settings(**settings)
    check_shown(shown)
    choose_device(session.device)
    collection = collect(results, paintings, photos, prompts)
    check_clip(session, clip, names)
    scores = score_pictures(session, collection, out, metrics=names, clip=clip, shown=shown, **settings)
    session.report(scores.lines, **scores.facts)
    if scores.problems:
        raise typer.Exit(InstError.exit_code)


def metric_names(metrics: str | None) -> Sequence[str]:
    """Return the names in `--metrics`; None means all. Raises UsageError if a name is unknown or none is given."""
    from inst.evaluation.metrics.table import NAMES, check_names

    names = NAMES if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    check_names(names)
    return names


def load_encoder(session: Session, clip: str | None) -> PictureTextEncoder:
    """Load the encoder for similarities: the CLIP model of `--clip`, or the backbone's own encoders."""
    from inst.backbone.devices import choose_device
    from inst.evaluation.metrics.clip import PictureTextEncoder

    if clip is None:
        return PictureTextEncoder.of_backbone(session.load())
    return PictureTextEncoder.load_clip(clip, choose_device(session.device), session.download)


def check_clip(session: Session, clip: str | None, metrics: Sequence[str]) -> None:
    """Check before anything is computed that the CLIP model of `--clip` can be loaded, if the metrics use it.

    Raises:
        InstError: it cannot be loaded.
    """
    from inst.evaluation.metrics.clip import PictureTextEncoder

    if clip is not None and "clip" in metrics:
        PictureTextEncoder.load_clip(clip, "cpu", session.download)


@dataclass(frozen=True)
class ScoreReport:
    """The scores of pictures: lines for people, facts for --json, and one line for each problem."""

    lines: list[str]
    facts: dict[str, Any]
    problems: tuple[str, ...]


def score_pictures(
    session: Session,
    collection: Collection,
    out: Path,
    *,
    metrics: Sequence[str],
    clip: str | None,
    shown: int = _PAGE["shown"],
    known_problems: Container[str] = (),
    **settings: Any,
) -> ScoreReport:
    """Compute the scores of pictures, with a progress bar, and write the reports and the page into `out`.

    Pictures that were left out or resized to other proportions are listed on stderr. While they are computed, the
    scores are stored in `out`, and an interrupted run continues from them.

    Args:
        metrics: the names from `metric_names`.
        known_problems: problems that the caller has printed. They are in the files, but not in `ScoreReport.problems`.
        settings: arguments of `inst.evaluation.evaluate.evaluate`.
    """
    from inst.backbone.devices import choose_device
    from inst.evaluation.evaluate import Progress, evaluate
    from inst.evaluation.metrics.table import load_metrics
    from inst.evaluation.output import folder_held
    from inst.evaluation.page import write_page
    from inst.evaluation.report import as_json, format_number, used_columns, write_reports
    from inst.evaluation.score_file import SCORES
    from inst.runs import complete

    device = choose_device(session.device)
    with_photos = collection.pairs[0].photo is not None
    stored, reused = out / SCORES, 0
    with folder_held(out):
        loaded = load_metrics(metrics, encoder=lambda: load_encoder(session, clip), device=device, photos=with_photos)
        with session.progress("measuring", len(collection.pairs)) as update:

            def show(step: Progress) -> None:
                nonlocal reused
                reused = step.reused
                update(step.done, step.total, step.name)

            try:
                done = complete(evaluate(collection, loaded, device=device, scores=stored, **settings), show)
            except KeyboardInterrupt:
                if stored.exists():
                    session.note(f"The scores so far are in {stored}: the same command continues from them.")
                raise
        if reused:
            session.note(f"The scores of {reused} pairs of pictures are those that an interrupted run had stored.")
        with session.waiting("writing the page"):
            files = [*write_reports(done, out), write_page(done, out, shown)]
        stored.unlink(missing_ok=True)

    columns = used_columns(done)
    titles = [_shown(one.title) for one in columns]
    labels = [_shown(row.label) for row in done.rows]
    widths = [max(len(title), 7) for title in titles]
    first = max(map(len, labels))
    lines = ["  ".join([" " * first, *(title.rjust(width) for title, width in zip(titles, widths, strict=True))])]
    for label, row in zip(labels, done.rows, strict=True):
        scores = [format_number(row.scores[one.key].value) if one.key in row.scores else "-" for one in columns]
        cells = (score.rjust(width) for score, width in zip(scores, widths, strict=True))
        lines.append("  ".join([label.ljust(first), *cells]))
    for note in done.notes:
        session.note(note)
    problems = tuple(problem for problem in done.problems if problem not in known_problems)
    note_left_out(session, problems, f"listed in {files[0]}")
    return ScoreReport(
        lines=[*lines, "", f"{files[-1]}   the page: open it in a web browser"],
        facts={**as_json(done), "page": str(files[-1])},
        problems=problems,
    )


def note_left_out(session: Session, problems: Sequence[str], all_are: str) -> None:
    """Print the first problems, and the number of the others. `all_are` says where all of them are."""
    for problem in problems[:_PRINTED_PROBLEMS]:
        session.note_left_out(problem)
    if len(problems) > _PRINTED_PROBLEMS:
        session.note(f"Left out: {len(problems) - _PRINTED_PROBLEMS} more, {all_are}")


def _shown(name: str) -> str:
    """Return a name for a cell of a printed table."""
    return cut(one_line(readable_name(name)), 60)
