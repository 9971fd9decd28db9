"""`inst ablate`: settings of ours side by side, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.compare import (
    FiguresOption,
    LearningSteps,
    PaintingsArgument,
    PhotosArgument,
    run_comparison,
    sources_of,
)
from inst.cli.defaults import defaults_of
from inst.cli.evaluate import ClipOption, MetricsOption, load_encoder
from inst.cli.learn import LEARN
from inst.cli.pictures import TRANSFER, StrengthOption, ToneOption
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from inst.evaluation.methods.method import Method
    from inst.pictures.io import Photo

_CURVES = defaults_of("inst.evaluation.learning_curves.measure", "learning_curves")


@with_session
def ablate(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(
            help="stochastic, strength, layers, dropout, instant, vectors, steps or convergence.",
            metavar="WHAT",
            show_default=False,
        ),
    ],
    photos: PhotosArgument,
    paintings: PaintingsArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The folder to write to; by default outputs/ablate-WHAT.")
    ] = None,
    strength: StrengthOption = TRANSFER["strength"],
    tone: ToneOption = "none",
    learning_steps: LearningSteps = LEARN["steps"],
    every: Annotated[
        int | None,
        typer.Option(
            "--every", min=1, help="For convergence: steps between two points.", show_default=str(_CURVES["every"])
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="For convergence: learnings of each variant.", show_default="1"),
    ] = None,
    seed: SeedOption = TRANSFER["seed"],
    figures: FiguresOption = True,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
) -> None:
    """Vary one thing and keep the rest: what is it worth? The tone is left alone, which would hide differences.

    Exit code 1 says that something was left out; the rest was made.
    """
    from inst.evaluation.methods.ablations import ABLATIONS

    folder = OUTPUTS / f"ablate-{what}" if out is None else out
    transfer = {"strength": strength, "tone": tone, "seed": seed}
    if what == "convergence":
        if metrics is not None or not figures:
            raise UsageError(
                "--metrics and --no-figures do not apply to convergence, which measures Gram distance and image "
                "similarity (--clip)",
                "leave them out",
            )
        between = _CURVES["every"] if every is None else every
        drawn = range(seed, seed + (seeds or 1))
        _converge(session, photos, paintings, folder, learning_steps, between, drawn, transfer, clip)
        return
    if what not in ABLATIONS:
        raise UsageError(f'The ablation "{what}" is unknown', f"use one of {', '.join(ABLATIONS)} or convergence")
    for option, value in (("--every", every), ("--seeds", seeds)):
        if value is not None:
            raise UsageError(f"{option} is for the ablation convergence", "leave it out")

    def varied() -> tuple[list[Method], list[str]]:
        session.note(ABLATIONS[what].question)
        return [*ABLATIONS[what].methods(session.load(), {"steps": learning_steps, "seed": seed}, transfer)], []

    run_comparison(session, varied, photos, paintings, folder, figures, metrics, clip, seed)


def _converge(
    session: Session,
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    steps: int,
    every: int,
    seeds: Sequence[int],
    transfer: dict[str, Any],
    clip: str | None,
) -> None:
    from inst.evaluation.compare import write_sheets
    from inst.evaluation.learning_curves.folder import Curves, column
    from inst.evaluation.learning_curves.measure import VARIANTS, check_curves, curve_controls, learning_curves
    from inst.evaluation.metrics.gram import GramDistance

    left_out: list[str] = []
    photo_files = _readable(sources_of(photos, left_out), left_out)
    painting_files = _readable(sources_of(paintings, left_out), left_out)
    contents, sources = list(photo_files.values()), list(painting_files.values())
    backbone = session.load()
    # First, because --clip is no remedy where it is the backbone that must look.
    check_curves(backbone, sources, contents, transfer, steps=steps, every=every, seeds=seeds)
    encoder = load_encoder(session, clip)
    settings = {
        "steps": steps,
        "every": every,
        "short_side": _CURVES["size"],
        "transfer": transfer,
        "backbone": f"{backbone.fingerprint} {backbone.denoiser_fingerprint}",
        "photos": [photo.sha256 for photo in contents],
        "similarity": encoder.name if encoder.name == encoder.source else f"{encoder.name} {encoder.source}",
    }
    curves = Curves.open(out, settings, sources, contents)
    for line in left_out:  # now, while there is time to mend it
        session.left_out(line)
    distance = GramDistance.load().to(backbone.device)
    for source in sources:
        if not curves.has_controls(source.name):
            for control in curve_controls(backbone, source, contents, distance, encoder, _CURVES["size"]):
                curves.add(control)
    with session.progress("learning") as move:
        run = learning_curves(
            backbone,
            sources,
            contents,
            distance,
            steps=steps,
            every=every,
            seeds=seeds,
            size=_CURVES["size"],
            transferred=transfer,
            encoder=encoder,
            done=curves.has,
            keep=curves.save,
        )
        for point in run:
            curves.add(point)
            move(point.step, steps, f"{point.painting}, {point.variant}")
    files = curves.write()
    lines = [*files[0].read_text().splitlines(), ""]
    names = [name for variant in VARIANTS if (out / (name := column(variant, seeds[0]))).is_dir()]
    files += write_sheets(out, dict.fromkeys(names, settings), [*photo_files], [*painting_files])
    lines += map(str, files)
    session.report(lines, files=[str(file) for file in files], left_out=left_out)
    if left_out:
        raise typer.Exit(InstError.exit_code)


def _readable(files: Sequence[Path], problems: list[str]) -> dict[Path, Photo]:
    """Read photos or paintings, by file; what is wrong with broken ones is added to the problems.

    Raises:
        InstError: a file is not there, or none can be read.
    """
    from inst.pictures.io import read_photo

    read: dict[Path, Photo] = {}
    for file in files:
        try:
            read[file] = read_photo(file, flattened=True)
        except InstError as error:
            if not file.is_file():
                raise
            problems.append(str(error))
    if not read:
        raise InstError(problems[-1])
    return read
