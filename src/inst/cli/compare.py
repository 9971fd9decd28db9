"""`inst compare` and `inst ablate`: methods, or settings of ours, side by side: pictures, figures, sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.defaults import defaults_of
from inst.cli.evaluate import ClipOption, MetricsOption, check_clip, judge, load_encoder, metric_names
from inst.cli.pictures import TRANSFER, StrengthOption, ToneOption
from inst.cli.session import OUTPUTS, SeedOption, Session, pictures_of, with_session
from inst.errors import InstError, UsageError
from inst.files.listing import pictures_in

if TYPE_CHECKING:
    from inst.evaluation.compare import Compared
    from inst.evaluation.methods.method import Method
    from inst.pictures.io import Photo

_LEARN = defaults_of("inst.learning.loop", "learn")
_CURVES = defaults_of("inst.evaluation.learning_curves.measure", "learning_curves")
METHODS = ("inst", "inst-instant", "textual-inversion", "sdm", "adain", "gatys")
"""The methods that are built in."""

PhotosArgument = Annotated[list[Path], typer.Option("--photos", help="Photos, or folders of them.", show_default=False)]
PaintingsArgument = Annotated[
    list[Path], typer.Option("--paintings", help="Paintings, or folders of them.", show_default=False)
]
LearningSteps = Annotated[int, typer.Option("--learning-steps", help="Steps of each learning, at most.")]
FiguresOption = Annotated[bool, typer.Option("--figures/--no-figures", help="Judge the pictures afterwards.")]


@with_session
def compare(
    session: Session,
    photos: PhotosArgument,
    paintings: PaintingsArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder to write to; what is there already is not made again.")
    ] = OUTPUTS / "compare",
    methods: Annotated[
        str,
        typer.Option("--methods", help="With commas between them. On a CPU gatys takes minutes for each picture."),
    ] = ",".join(METHODS),
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs", help="NAME=FOLDER: another system's pictures, named PHOTO__PAINTING.png, as a method."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", help="For sdm: lines of PAINTING, a tab and its caption; or JSON."),
    ] = None,
    strength: StrengthOption = TRANSFER["strength"],
    tone: ToneOption = TRANSFER["tone"],
    learning_steps: LearningSteps = _LEARN["steps"],
    seed: SeedOption = TRANSFER["seed"],
    figures: FiguresOption = True,
    metrics: MetricsOption = None,
    clip: ClipOption = None,
) -> None:
    """Compare methods: photos x paintings x methods, with figures and sheets.

    Exit code 1 says that something was left out; the rest was made.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(
            f'The method "{unknown[0]}" is unknown',
            f"use some of {', '.join(METHODS)}; give another system's pictures with --outputs NAME=FOLDER",
        )
    if captions is not None and "sdm" not in names:
        raise UsageError("--captions is for the method sdm, which is not among --methods", "add it, or leave it out")
    transfer = {"strength": strength, "tone": tone, "seed": seed}
    learning = {"steps": learning_steps, "seed": seed}
    folders, empty = _folders(outputs or [])

    def made() -> tuple[list[Method], list[str]]:
        built, missing = _built_in(session, names, transfer, learning, captions)
        missing += empty
        if missing and not built and not folders:
            raise InstError(missing[0])
        return [*built, *folders], missing

    _run(session, made, photos, paintings, out, figures, metrics, clip, seed)


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
    learning_steps: LearningSteps = _LEARN["steps"],
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

    _run(session, varied, photos, paintings, folder, figures, metrics, clip, seed)


def _built_in(
    session: Session, names: Sequence[str], transfer: dict[str, Any], learning: dict[str, Any], captions: Path | None
) -> tuple[list[Method], list[str]]:
    """The methods, and why some are left out: weights that cannot be had."""
    from inst.evaluation.collection import read_prompts
    from inst.evaluation.methods import styles as methods

    made: dict[str, Method] = {}
    missing: list[str] = []
    if set(names) - {"adain", "gatys"}:
        backbone = session.load()
        makers = {
            "inst": methods.learned(backbone, **learning),
            "inst-instant": methods.instant(backbone),
            "textual-inversion": methods.learned(backbone, "textual-inversion", variant="direct", **learning),
        }
        for name in names:
            if name in makers:
                made[name] = methods.StyleMethod(name, backbone, makers[name], transfer)
        if "sdm" in names:
            texts = {} if captions is None else read_prompts(captions)
            # As it comes: a caption, plain noise, and no help with the tone.
            plain = {**transfer, "tone": "none", "inversion": "none"}
            made["sdm"] = methods.StyleMethod("sdm", backbone, methods.captioned(backbone, texts), plain)
        if "inst-instant" in names and backbone.inversion is None:
            raise UsageError(
                f"The backbone {backbone.name} has no instant style", "leave inst-instant out of --methods"
            )
    if "adain" in names or "gatys" in names:
        from inst.backbone.devices import choose_device
        from inst.evaluation.methods.adain import AdaIN, AdaINDecoder
        from inst.evaluation.methods.gatys import Gatys
        from inst.evaluation.networks.vgg import VGG19Features

        device = choose_device(session.device)
        try:
            network = VGG19Features.load().to(device)
            made["gatys"] = Gatys(network)
            if "adain" in names:
                made["adain"] = AdaIN(network, AdaINDecoder.load().to(device))
        except InstError as error:
            missing = [f"{name} is left out: {error}" for name in names if name in {"adain", "gatys"} - set(made)]
    return [made[name] for name in names if name in made], missing


def _folders(outputs: Sequence[str]) -> tuple[list[Method], list[str]]:
    """The methods of `--outputs`, and why some are left out: folders without a picture."""
    from inst.evaluation.methods.folder import FolderMethod

    found: list[Method] = []
    empty: list[str] = []
    for text in outputs:
        name, equals, folder = text.partition("=")
        if not equals or not name or not Path(folder).is_dir():
            raise UsageError(f'"{text}" is not NAME=FOLDER with a folder that is there', "give --outputs stytr2=FOLDER")
        if pictures_in(Path(folder)):
            found.append(FolderMethod(name, Path(folder)))
        else:
            empty.append(f"{name} is left out: {folder} holds no picture PHOTO__PAINTING.png")
    return found, empty


def _sources(places: Sequence[Path], problems: list[str]) -> list[Path]:
    """The pictures of files and folders; what is wrong with folders that have none is added to the problems.

    Raises:
        InstError: there is no picture at all.
    """
    files: list[Path] = []
    for place in places:
        try:
            files += pictures_of([place])
        except InstError as error:
            problems.append(str(error))
    if places and not files:
        raise InstError(problems[-1])
    return files


def _run(
    session: Session,
    make_methods: Callable[[], tuple[Sequence[Method], Sequence[str]]],
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    figures: bool,
    metrics: str | None,
    clip: str | None,
    seed: int,
) -> None:
    """Make the pictures and the sheets, judge them, and report.

    `make_methods` gives the methods, and why others are left out; it is called after everything else was checked.
    """
    from inst.evaluation.collection import SEPARATOR, collect
    from inst.evaluation.compare import compare, write_sheets
    from inst.runs import complete

    for option, value in (("--clip", clip), ("--metrics", metrics)):
        if value is not None and not figures:
            raise UsageError(f"{option} is for the figures, which --no-figures leaves out", "give one of the two")
    left_out: list[str] = []
    contents, sources, names = _sources(photos, left_out), _sources(paintings, left_out), metric_names(metrics)
    if figures:
        check_clip(session, clip, names)  # and not after every picture was made
    methods, missing = make_methods()
    latest = (0, len(methods) * len(contents) * len(sources))
    with session.progress("painting") as move:

        def preparing(step: int, total: int) -> None:
            move(*latest, f"step {step}/{total}")

        def done(one: Compared) -> None:
            nonlocal latest
            latest = (one.index + 1, one.total)
            move(*latest, f"{one.method}: {one.painting}")

        problems = complete(compare(methods, contents, sources, out, preparing), done)
    sheets = write_sheets(out, {method.name: method.settings for method in methods}, contents, sources)
    left_out += [*missing, *(f"{one.method}/{one.path.name}: {one.problem}" for one in problems)]
    for line in left_out:
        session.left_out(line)
    lines, facts = [f"{sheet}   a sheet: look at it" for sheet in sheets], {"sheets": [str(sheet) for sheet in sheets]}
    if figures:
        # What could not be made was named above with the reason: that the picture is missing is no news.
        said = {f"{one.method}: there is no picture {one.photo}{SEPARATOR}{one.painting}" for one in problems}
        judged = judge(session, collect(out), out / "figures", metrics=names, clip=clip, seed=seed, said=said)
        lines, facts = [*judged.lines, *lines], {**judged.facts, **facts}
        left_out += judged.problems
    session.report(lines, **facts, left_out=left_out)
    if left_out:
        raise typer.Exit(InstError.exit_code)


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
    photo_files = _readable(_sources(photos, left_out), left_out)
    painting_files = _readable(_sources(paintings, left_out), left_out)
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
