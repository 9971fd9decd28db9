"""`inst learn`: from paintings to a style file."""

from __future__ import annotations

import shlex
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.defaults import defaults_of
from inst.cli.places import check_output, output_path
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError, InstWarning, UsageError
from inst.files.listing import pictures_of

if TYPE_CHECKING:
    from inst.learning.loop import LearningStep

LEARN = defaults_of("inst.learning.loop", "learn")
_CHECKPOINT_SECONDS = 30.0
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


@with_session
def learn(
    context: typer.Context,
    session: Session,
    paintings: Annotated[
        list[Path], typer.Argument(help="A painting, several of one style, or a folder of them.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The style file to write (.safetensors); by default in outputs/."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="At most this many; it may stop earlier.")] = LEARN["steps"],
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = LEARN["lr"],
    batch_size: Annotated[int, typer.Option("--batch-size", help="Noisy pictures in a step.")] = LEARN["batch_size"],
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="attention (the default where there is an image encoder), pooled (the paper's text) or "
            "direct (textual inversion).",
        ),
    ] = LEARN["variant"],
    layers: Annotated[
        int | None, typer.Option("--layers", help="Attention layers; by default those of the pretrained module, or 3.")
    ] = LEARN["layers"],
    dropout: Annotated[float, typer.Option("--dropout", help="Rate in every layer; 0 is none.")] = LEARN["dropout"],
    vectors: Annotated[
        int | None, typer.Option("--vectors", help="Vectors of the word; by default the pretrained module's, or 8.")
    ] = LEARN["vectors"],
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Do not start from the backbone's pretrained module.")
    ] = False,
    crops: Annotated[int, typer.Option("--crops", help="Squares cut out at random; 1 is the centre.")] = LEARN["crops"],
    validate_every: Annotated[
        int, typer.Option("--validate-every", help="Steps between validations; 0 is never.")
    ] = LEARN["validate_every"],
    patience: Annotated[
        int, typer.Option("--patience", help="Validations without progress after which it stops.")
    ] = LEARN["patience"],
    save_every: Annotated[
        int, typer.Option("--save-every", min=0, help="Also write NAME-000100.safetensors every so many steps.")
    ] = 0,
    preview_every: Annotated[
        int, typer.Option("--preview-every", min=0, help="Write NAME-000100.png every so many steps.")
    ] = LEARN["preview_every"],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where this command was interrupted; needs -o.")
    ] = False,
    seed: SeedOption = LEARN["seed"],
    preset: Annotated[
        str | None, typer.Option("--preset", help="paper: the paper's learning rate, batch size and dropout.")
    ] = None,
) -> None:
    """Learn a style from one painting, or from several of one style."""
    from inst.learning.settings import PRESETS
    from inst.styles.style import check_style_name

    sources = pictures_of(paintings)
    check_output(out, sources, check_style_name)
    if resume and (out is None or out.is_dir()):
        raise UsageError("--resume needs the style file that the interrupted command named", "give it with -o")
    settings = {
        "steps": steps,
        "lr": lr,
        "batch_size": batch_size,
        "variant": variant,
        "layers": layers,
        "dropout": dropout,
        "vectors": vectors,
        "pretrained": False if scratch else None,
        "crops": crops,
        "validate_every": validate_every,
        "patience": patience,
        "preview_every": preview_every,
        "seed": seed,
    }
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f'The preset "{preset}" is unknown', f"use {', '.join(PRESETS)}")
        # What is asked for by name counts more than the preset.
        named = {name for name in settings if _is_given(context, name)}
        settings |= {name: value for name, value in PRESETS[preset].items() if name not in named}
    with output_path(out, sources[0].stem, ".safetensors") as path:
        # Names on the way are known only now, where the style's has been found.
        previews = (*range(preview_every, steps, preview_every), steps) if preview_every else ()
        numbered = range(save_every, steps + 1, save_every) if save_every else ()
        on_the_way = [
            *(_at_step(path, step, ".png") for step in previews),
            *(_at_step(path, step, ".safetensors") for step in numbered),
        ]
        check_output(path, sources, check_style_name, on_the_way)
        left_over = next((one for one in on_the_way if one.exists()), None)
        if left_over is not None and (out is None or out.is_dir()):
            raise InstError(f"{left_over} is there already, and would be overwritten", "name the style with -o")
        _learn(session, sources, path, settings, resume, save_every)


def _learn(
    session: Session, places: list[Path], path: Path, settings: dict[str, Any], resume: bool, save_every: int
) -> None:
    from inst.learning.loop import LearningDiverged, LearningState, learn
    from inst.learning.run import preview_settings
    from inst.pictures.given import read_several
    from inst.pictures.io import save_picture
    from inst.synthesis.record import PictureRecord

    state_file = path.with_name(f"{path.stem}.state.safetensors")
    if resume and not state_file.exists():
        raise InstError(f"{state_file} is not there, so there is nothing to go on with", "leave --resume out")
    state = LearningState.load(state_file) if resume else None
    pictures = read_several(places, "painting")
    model = session.load(looking=settings["variant"] != "direct")
    run = learn(model, pictures, name=path.stem, resume=state, **settings)
    begin = saved_at = time.monotonic()
    step: LearningStep | None = None
    warned = interrupted = False  # `asked` alone can come too late to matter, or before there is anything to go on from
    with stop_signals() as asked, session.progress("learning", settings["steps"]) as move:
        try:
            while True:
                step = next(run)
                note = f"loss {step.smoothed:.4f}"
                move(step.step, step.total, note)
                if step.preview is not None:
                    shown = preview_settings(settings["seed"])
                    record = PictureRecord.of("preview", model, shown, {"[C]": step.style()})
                    save_picture(step.preview, _at_step(path, step.step, ".png"), texts=record.texts())
                if save_every and step.step % save_every == 0:
                    step.style().save(_at_step(path, step.step, ".safetensors"))
                if asked:
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
            raise InstError(f"{diverged} {path} holds the last good style.") from None
        finally:
            run.close()
    taken = 0 if step is None else step.step
    if interrupted:
        session.note(
            f"Interrupted after step {taken}. {path} is usable; to go on, give the same command with "
            f"--resume -o {shlex.quote(str(path))}."
        )
        raise typer.Exit(INTERRUPTED)
    seconds = time.monotonic() - begin
    session.report([f"{path}"], style=str(path), steps=taken, seconds=round(seconds, 3))


def _checkpoint(step: LearningStep, state_file: Path, warned: bool) -> bool:
    """Write what `--resume` goes on from; where that cannot be, the last one stays, and learning goes on.

    Returns:
        Whether it was ever warned of: once is enough.
    """
    try:
        step.state().save(state_file)
    except InstError as error:
        if not warned:
            warnings.warn(f"{error} The learning goes on, without new checkpoints.", InstWarning, stacklevel=2)
        return True
    return warned


def _at_step(path: Path, step: int, suffix: str) -> Path:
    return path.with_name(f"{path.stem}-{step:06d}{suffix}")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM in the list instead of stopping at once; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
