"""One run of `inst learn`: its files, its checkpoints, and what is kept when it ends early."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from inst.cli.session import Session
from inst.errors import InstError, InstWarning, UsageError
from inst.files.claiming import reserve_name
from inst.files.listing import readable_name
from inst.files.provenance import SourceFile

if TYPE_CHECKING:
    from inst.learning.loop import LearningStep
    from inst.styles.style import Style

STATE_ENDING = ".state.safetensors"
"""The ending of the file from which an interrupted command continues, in place of the style file's own."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, the same as in shells."""
_CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints."""


@dataclass(frozen=True)
class StyleFiles:
    """The files that a run writes.

    Attributes:
        style: the style file, from which the names of the others are derived.
        save_every: number of steps between two saved styles; 0 is none.
        replace: whether saved styles and previews of an earlier run are replaced.
    """

    style: Path
    save_every: int
    replace: bool

    @property
    def state(self) -> Path:
        """The checkpoint from which `--resume` continues."""
        return state_file_of(self.style)

    def at_step(self, step: int, suffix: str) -> AbstractContextManager[Path]:
        """Yield the file of a step, such as NAME-000100.png. Raises InstError if it is there and is not replaced."""
        path = self.style.with_name(f"{self.style.stem}-{step:06d}{suffix}")
        return nullcontext(path) if self.replace else reserve_name(path)


def state_file_of(path: Path) -> Path:
    """Return the file of the checkpoint beside a style file."""
    return path.with_name(f"{path.stem}{STATE_ENDING}")


def files_at_steps(path: Path, steps: int, preview_every: int, save_every: int) -> list[Path]:
    """Return the files that are there already under names that a run would give to its saved styles and previews."""
    wanted = re.compile(re.escape(path.stem) + r"-(\d{6,})(\.png|\.safetensors)")
    found = []
    for name in os.listdir(path.parent):
        if (parts := wanted.fullmatch(name)) is None or len(parts[1]) > max(6, len(str(steps))):
            continue
        step, every = int(parts[1]), preview_every if parts[2] == ".png" else save_every
        last = parts[2] == ".png" and step == steps
        if every and 1 <= step <= steps and (step % every == 0 or last) and parts[1] == f"{step:06d}":
            found.append(path.with_name(name))
    return sorted(found)


def learn_style(
    session: Session,
    paintings: Sequence[Path],
    files: StyleFiles,
    settings: dict[str, Any],
    *,
    resume: bool,
    begin: Path | None,
) -> None:
    """Learn a style into its files, and report it.

    Args:
        session: loads the backbone and reports.
        paintings: the paintings.
        files: the files to write.
        settings: arguments of `inst.learn`.
        resume: continue from the checkpoint, or learn on from the finished style.
        begin: a style file to begin with, or None.

    Raises:
        InstError: a file cannot be read or written, or the learning diverged. The message says what was saved.
        typer.Exit: after a signal, when everything is saved.
    """
    from inst.learning.loop import learn
    from inst.learning.run import LearningDiverged, preview_settings
    from inst.learning.state import LearningState
    from inst.pictures.writing import save_picture
    from inst.styles.style import Style
    from inst.synthesis.record import PictureRecord

    path, state_file = files.style, files.state
    state = LearningState.load(state_file) if resume and state_file.exists() else None
    style = None if begin is None else Style.load(begin)
    if resume and state is None:
        if not path.exists():
            raise InstError(f"{state_file} does not exist: there is nothing to resume", "leave out --resume")
        style = _finished(path, paintings, settings["steps"])
    model = session.load(find_image_encoder=settings["variant"] != "direct")
    run = learn(model, paintings, name=readable_name(path.stem), begin=style, resume=state, **settings)
    checkpoints = _Checkpoints(state_file, None if state is None else state.progress.step)
    started = time.monotonic()
    step: LearningStep | None = None
    # A signal may come after the last step or before the first one, so `signals` alone does not tell an interruption.
    interrupted = False
    with catch_first_signal() as signals, session.progress("learning", settings["steps"]) as update:
        try:
            while True:
                step = next(run)
                note = f"loss {step.smoothed:.4f}"
                update(step.step, step.total, note)
                try:
                    if step.preview is not None:
                        preview = preview_settings(settings["seed"])
                        record = PictureRecord.of("preview", model, preview, {"[C]": step.style()})
                        with files.at_step(step.step, ".png") as file:
                            save_picture(step.preview, file, texts=record.texts())
                    if files.save_every and step.step % files.save_every == 0:
                        with files.at_step(step.step, ".safetensors") as file:
                            step.style().save(file)
                except InstError as failed:
                    _tried(checkpoints.save, step)  # what was learned is not lost
                    raise InstError(failed.problem, *failed.remedy, checkpoints.told(path)) from None
                if signals:
                    _keep(step, path, checkpoints)
                    interrupted = True
                    break
                checkpoints.save_if_due(step)
        except StopIteration as end:
            if error := _tried(end.value.save, path):
                raise InstError(error.problem, *error.remedy, checkpoints.told(path)) from None
            state_file.unlink(missing_ok=True)
        except LearningDiverged as diverged:
            kept = f". {path} holds the last good style"
            if error := _tried(diverged.last_good.save, path):
                kept = f". The last good style is lost: {error.problem}"
            raise InstError(diverged.problem, *diverged.remedy, kept) from None
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


class _Checkpoints:
    """Writes the state from which `--resume` continues.

    Args:
        file: the file of the state.
        step: the step of the state that is in the file, if it is one of this learning.
    """

    def __init__(self, file: Path, step: int | None) -> None:
        self._file, self._step = file, step
        self._saved_at, self._warned = time.monotonic(), False

    def save(self, step: LearningStep) -> None:
        """Write the state after a step. Raises InstError if that fails; the last checkpoint stays."""
        step.state().save(self._file)
        self._step = step.step

    def save_if_due(self, step: LearningStep) -> None:
        """Write the state if the last one was written a while ago. Warn once if that fails."""
        if time.monotonic() - self._saved_at <= _CHECKPOINT_SECONDS:
            return
        try:
            self.save(step)
        except InstError as error:
            if not self._warned:
                warnings.warn(f"{error} Learning continues without new checkpoints.", InstWarning, stacklevel=2)
            self._warned = True
        self._saved_at = time.monotonic()

    def told(self, path: Path) -> str:
        """Say from where the learning of a style can be continued, as the end of a message; "" if it cannot."""
        if self._step is None:
            return ""
        return f". --resume -o {shlex.quote(str(path))} continues after step {self._step}"


def _keep(step: LearningStep, path: Path, checkpoints: _Checkpoints) -> None:
    """Save the style and the state of a learning that is interrupted. Raises InstError that says what is not saved."""
    style_error = _tried(step.best_style().save, path)
    state_error = _tried(checkpoints.save, step)  # there may be room for one of them
    error = style_error or state_error
    if error is None:
        return
    kept = f". {path} holds the style" if style_error is None else ". The style was not saved"
    goes_on = checkpoints.told(path) or ". Learning cannot be continued"
    raise InstError(f"Interrupted after step {step.step}, but {error.problem}", *error.remedy, kept, goes_on)


def _tried(save: Callable[[Any], object], what: object) -> InstError | None:
    """Save something, and return the error if that fails."""
    try:
        save(what)
    except InstError as error:
        return error
    return None


def _finished(path: Path, paintings: Sequence[Path], steps: int) -> Style:
    """Read the style that a finished command wrote, to learn on for `steps` steps in all."""
    from inst.learning.start import learned_steps
    from inst.styles.style import Style

    style = Style.load(path)
    before = learned_steps(style)
    if steps <= before:
        raise UsageError(f"{path} is finished: it was learned with --steps {before}", "give more --steps to learn on")
    known = [painting.get("sha256") for painting in style.about.get("paintings", [])]
    if known != [SourceFile.of(painting).sha256 for painting in paintings]:
        raise UsageError(
            f"{path} was learned from other paintings", f"give the same, or --begin {path} and another name with -o"
        )
    return style


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
