"""The command `inst learn`, which learns a style file from paintings."""

from __future__ import annotations

import shlex
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.places import Output, check_output, output_option, output_path
from inst.cli.session import SeedOption, Session, with_session
from inst.defaults import defaults_of
from inst.errors import InstError, InstWarning, UsageError
from inst.files.listing import pictures_of, readable_name
from inst.files.provenance import SourceFile

if TYPE_CHECKING:
    from inst.learning.loop import LearningStep
    from inst.styles.style import Style

LEARN = defaults_of("inst.learning.loop", "learn")
StyleFileOption = Annotated[Output | None, output_option("Style file to write (.safetensors)", optional=True)]
NoPaintingOption = Annotated[
    bool,
    typer.Option(
        "--no-painting",
        help="Leave the pictures of the paintings out of the style file. Style attention and the tone painting do not "
        "work with such a style.",
    ),
]
_CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, the same as in shells."""


@dataclass(kw_only=True)
class LearnOptions:
    """The settings of learning as options; most are the argument of `inst.learn` with the same name."""

    steps: Annotated[
        int, typer.Option("--steps", help="Largest number of learning steps. Learning may stop earlier (--patience).")
    ] = LEARN["steps"]
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = LEARN["lr"]
    batch_size: Annotated[int, typer.Option("--batch-size", help="Noisy pictures in each step.")] = LEARN["batch_size"]
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Inversion module: attention (default with an image encoder), pooled (as in the paper's text) or "
            "direct (textual inversion, default without an image encoder).",
        ),
    ] = LEARN["variant"]
    layers: Annotated[
        int | None,
        typer.Option("--layers", help="Number of attention layers. By default as in the pretrained module, or 3."),
    ] = LEARN["layers"]
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout rate of every layer; 0 is no dropout.")] = LEARN[
        "dropout"
    ]
    vectors: Annotated[
        int | None,
        typer.Option("--vectors", help="Number of style vectors. By default as in the pretrained module, or 8."),
    ] = LEARN["vectors"]
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start from random weights, not from the pretrained module.")
    ] = False
    crops: Annotated[
        int, typer.Option("--crops", help="Number of random square crops of the paintings; 1 is the centre crop only.")
    ] = LEARN["crops"]
    validate_every: Annotated[
        int, typer.Option("--validate-every", help="Steps between two validations; 0 is no validation.")
    ] = LEARN["validate_every"]
    patience: Annotated[
        int, typer.Option("--patience", help="Learning stops after this many validations without a better loss.")
    ] = LEARN["patience"]
    no_painting: NoPaintingOption = False
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Preset: paper sets the paper's learning rate, batch size and dropout."),
    ] = None

    def settings(self, context: typer.Context) -> dict[str, Any]:
        """Return the arguments of `inst.learn`, with those of the preset. Raises UsageError if there is no such preset.

        Args:
            context: knows which options the user gave. These override the preset.
        """
        from inst.learning.settings import PRESETS

        settings = {option.name: getattr(self, option.name) for option in fields(self)}
        del settings["preset"]
        settings["pretrained"] = False if settings.pop("scratch") else None
        settings["keep_painting"] = not settings.pop("no_painting")
        if self.preset is None:
            return settings
        if self.preset not in PRESETS:
            raise UsageError(f'The preset "{self.preset}" is unknown', f"use {', '.join(PRESETS)}")
        explicit = {name for name in settings if _is_explicit(context, name)}
        return settings | {name: value for name, value in PRESETS[self.preset].items() if name not in explicit}


@with_session
def learn(
    context: typer.Context,
    session: Session,
    paintings: Annotated[
        list[Path],
        typer.Argument(help="A painting, several paintings of one style, or a folder of them.", show_default=False),
    ],
    options: LearnOptions,
    out: StyleFileOption = None,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every",
            min=0,
            help="Steps between two saved styles (NAME-000100.safetensors); 0 is none. No file of such a name is "
            "overwritten without --overwrite or --resume.",
        ),
    ] = 0,
    preview_every: Annotated[
        int,
        typer.Option(
            "--preview-every",
            min=0,
            help="Steps between two preview pictures (NAME-000100.png); 0 is none. They are overwritten as those of "
            "--save-every.",
        ),
    ] = LEARN["preview_every"],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the interrupted command, or learn on from its finished style with more --steps; needs the "
            "same -o.",
        ),
    ] = False,
    begin: Annotated[
        Path | None,
        typer.Option("--begin", help="Style file to learn on from. Its steps count: --steps must be more."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Begin again, even if an interrupted command could be continued. Its saved styles and previews are "
            "overwritten.",
        ),
    ] = False,
    seed: SeedOption = LEARN["seed"],
) -> None:
    """Learn a style from one painting, or from several paintings of one style."""
    from inst.learning.state import is_state
    from inst.styles.style import check_style_name

    sources = pictures_of(paintings)
    if resume and (out is None or out.is_folder):
        raise UsageError("--resume needs the style file of the interrupted command", "give it with -o")
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite begins again", "give one of them")
    if resume and begin is not None:
        raise UsageError("--resume begins with the style of -o", "leave out --begin or --resume")
    inputs = [*sources, *([begin] if begin else [])]
    check_output(out, inputs, check_style_name)
    settings = options.settings(context) | {"preview_every": preview_every, "seed": seed}
    steps = options.steps
    with output_path(out, sources[0].stem, ".safetensors") as path:
        # The names of the intermediate files depend on the style's name, which is known only here.
        previews = (*range(preview_every, steps, preview_every), steps) if preview_every else ()
        saves = range(save_every, steps + 1, save_every) if save_every else ()
        intermediate = [
            *(_at_step(path, step, ".png") for step in previews),
            *(_at_step(path, step, ".safetensors") for step in saves),
        ]
        named = out is not None and not out.is_folder
        again = named and (resume or overwrite)
        check_output(Output(path, is_folder=False), inputs, check_style_name, intermediate, replace=again)
        state_file = _state_file(path)
        if state_file.exists() and not is_state(state_file):
            raise InstError(
                f"{state_file} is not the state of an interrupted command and would be overwritten",
                "give another name with -o, or move the file away",
            )
        if not (resume or overwrite) and state_file.exists():
            raise InstError(
                f"{state_file} is the state of an interrupted command, which would be lost",
                "continue it with --resume, give another name with -o, or begin again with --overwrite",
            )
        _learn(session, sources, path, settings, resume, begin, save_every)


def _learn(
    session: Session,
    files: list[Path],
    path: Path,
    settings: dict[str, Any],
    resume: bool,
    begin: Path | None,
    save_every: int,
) -> None:
    from inst.learning.loop import learn
    from inst.learning.run import LearningDiverged, preview_settings
    from inst.learning.state import LearningState
    from inst.pictures.io import save_picture
    from inst.styles.style import Style
    from inst.synthesis.record import PictureRecord

    state_file = _state_file(path)
    state = LearningState.load(state_file) if resume and state_file.exists() else None
    style = None if begin is None else Style.load(begin)
    if resume and state is None:
        if not path.exists():
            raise InstError(f"{state_file} does not exist: there is nothing to resume", "leave out --resume")
        style = _finished(path, files, settings["steps"])
    model = session.load(find_image_encoder=settings["variant"] != "direct")
    run = learn(model, files, name=readable_name(path.stem), begin=style, resume=state, **settings)
    started = saved_at = time.monotonic()
    step: LearningStep | None = None
    # A signal may come after the last step or before the first one, so `signals` alone does not tell an interruption.
    warned = interrupted = False
    with catch_first_signal() as signals, session.progress("learning", settings["steps"]) as update:
        try:
            while True:
                step = next(run)
                note = f"loss {step.smoothed:.4f}"
                update(step.step, step.total, note)
                if step.preview is not None:
                    preview = preview_settings(settings["seed"])
                    record = PictureRecord.of("preview", model, preview, {"[C]": step.style()})
                    save_picture(step.preview, _at_step(path, step.step, ".png"), texts=record.texts())
                if save_every and step.step % save_every == 0:
                    step.style().save(_at_step(path, step.step, ".safetensors"))
                if signals:
                    step.best_style().save(path)
                    step.state().save(state_file)
                    interrupted = True
                    break
                if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    warned = _checkpoint(step, state_file, warned)
                    saved_at = time.monotonic()
        except StopIteration as end:
            end.value.save(path)
            state_file.unlink(missing_ok=True)
        except LearningDiverged as diverged:
            diverged.last_good.save(path)
            raise InstError(diverged.problem, *diverged.remedy, f". {path} holds the last good style") from None
        finally:
            run.close()
    steps_done = 0 if step is None else step.step
    if interrupted:
        session.note(
            f"Interrupted after step {steps_done}. {path} is usable. To continue, run the same command with "
            f"--resume -o {shlex.quote(str(path))}."
        )
        raise typer.Exit(INTERRUPTED)
    seconds = time.monotonic() - started
    session.report([f"{path}"], style=str(path), steps=steps_done, seconds=round(seconds, 3))


def _finished(path: Path, paintings: Sequence[Path], steps: int) -> Style:
    """Read the style that a finished command wrote, to learn on for `steps` steps in all."""
    from inst.learning.start import settings_of
    from inst.styles.style import Style

    style = Style.load(path)
    before = settings_of(style).get("steps", 0)
    if steps <= before:
        raise UsageError(f"{path} is finished: it was learned with --steps {before}", "give more --steps to learn on")
    known = [painting.get("sha256") for painting in style.about.get("paintings", [])]
    if known != [SourceFile.of(painting).sha256 for painting in paintings]:
        raise UsageError(
            f"{path} was learned from other paintings", f"give the same, or --begin {path} and another name with -o"
        )
    return style


def _checkpoint(step: LearningStep, state_file: Path, warned: bool) -> bool:
    """Write the checkpoint that `--resume` continues from. If that fails, warn once; the last checkpoint stays.

    Returns:
        Whether a warning was given, now or before.
    """
    try:
        step.state().save(state_file)
    except InstError as error:
        if not warned:
            warnings.warn(f"{error} Learning continues without new checkpoints.", InstWarning, stacklevel=2)
        return True
    return warned


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.state.safetensors")


def _at_step(path: Path, step: int, suffix: str) -> Path:
    return path.with_name(f"{path.stem}-{step:06d}{suffix}")


@contextmanager
def catch_first_signal() -> Iterator[list[int]]:
    """Put the first SIGINT or SIGTERM into the yielded list. A second one raises KeyboardInterrupt."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old_handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _is_explicit(context: typer.Context, name: str) -> bool:
    """Return whether the user gave an option, even with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
