"""What the commands share: the options that all have, the backbone, styles and paintings by file, progress, output."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inst.cli.defaults import defaults_of
from inst.errors import UsageError

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.sampling.solvers import SamplingStep
    from inst.styles.style import Style

PANEL = "Backbone and output"
"""The heading of the options of `Session` in each command's help."""

Result = TypeVar("Result")

_LOAD = defaults_of("inst.backbone.model", "Backbone.load")
_NOTES = {"inversion": "DDIM inversion of the photo"}  # beside the bar, by the phase of sampling

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and warnings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of all random numbers: the same seed, the same result.")]
StyleOption = Annotated[
    list[str],
    typer.Option(
        "--style",
        "-s",
        help="A style file; or a painting (or a folder of them), which works at once. For several styles: "
        "--style C1=FILE --style C2=FILE, with [C1] and [C2] in the prompt.",
    ),
]


@dataclass
class Session:
    """One run of a command: where to compute, and how to report. Each field is an option of every command.

    A command gets the options, and their values as one `Session`, from `with_session`. The fields up to `dtype` are the
    arguments of `inst.Backbone.load`.
    """

    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="The bundled mini, a model's folder, a single file (.safetensors, .ckpt), or a model-hub id: "
            "owner/model or owner/model@revision.",
        ),
    ] = _LOAD["name"]
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="For a single file of unusual size: a folder with its configuration; or sd1, sd2, sd2-v or sdxl.",
        ),
    ] = _LOAD["config"]
    image_encoder: Annotated[
        str | None,
        typer.Option(
            "--image-encoder",
            help="A CLIP image encoder, to look at paintings with, in the place of the model's own: a folder or a "
            "model-hub id.",
        ),
    ] = _LOAD["image_encoder"]
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Fetch from the model hub what is not on this machine: the backbone, and where paintings are looked "
            "at, its image encoder.",
        ),
    ] = _LOAD["download"]
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Need less memory on an accelerator, and take longer.")
    ] = _LOAD["low_memory"]
    device: Annotated[
        str | None, typer.Option("--device", help="Such as cpu, cuda or mps; by default the best at hand.")
    ] = _LOAD["device"]
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; by default what suits the device."),
    ] = _LOAD["dtype"]
    quiet: QuietOption = False
    as_json: JsonOption = False
    _screen: Console = field(default_factory=lambda: Console(stderr=True), init=False, repr=False)
    _loaded: Any = field(default=None, init=False, repr=False)

    def load(self, *, looking: bool = True) -> Backbone:
        """Load the backbone, once.

        `looking` says whether paintings may have to be looked at by an image encoder that is not the model's own.
        """
        if self._loaded is not None:
            return self._loaded
        from inst.backbone.model import Backbone

        if self.download:  # the hub's library has bars of its own
            from huggingface_hub.utils.tqdm import disable_progress_bars

            if self.quiet or self.as_json or not self._screen.is_terminal:
                disable_progress_bars()
        with nullcontext() if self.download else self.waiting("loading the backbone"):
            given = {name: getattr(self, name) for name in _LOAD if name != "name"}
            if not looking and self.image_encoder is None:
                given["image_encoder"] = False
            self._loaded = Backbone.load(self.backbone, **given)
        return self._loaded

    def refuse_loading(self) -> None:
        """Raise UsageError where an option says how to load a backbone, for a command that loads none by itself."""
        names = [name for name in _LOAD if name != "name" and getattr(self, name) != _LOAD[name]]
        if names:
            option = f"--{names[0].replace('_', '-')}"
            raise UsageError(f"{option} is about a backbone, and none is loaded", "add --backbone, or leave it out")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something is under way that has no steps."""
        if self.quiet or self.as_json or not self._screen.is_terminal:
            yield
            return
        with self._screen.status(what):
            yield

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Callable[[int, int, str], None]]:
        """Show a progress bar with the time that remains; give a function (step, total, note) to move it on."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        hidden = self.quiet or self.as_json or not self._screen.is_terminal
        with Progress(*columns, console=self._screen, disable=hidden, transient=True) as bar:
            task = bar.add_task(what, total=total, note="")

            def move(step: int, of: int, note: str = "") -> None:
                bar.update(task, completed=step, total=of, note=note)

            yield move

    def sample(self, made: Generator[SamplingStep, Any, Result], what: str) -> Result:
        """Run a transfer or a generation to its end, with a progress bar. DDIM inversion is a bar before."""
        from inst.runs import complete

        with self.progress(what) as move:
            return complete(made, lambda step: move(step.index + 1, step.total, _NOTES.get(step.phase, "")))

    def report(self, lines: Sequence[str], **facts: Any) -> None:
        """Say on stdout what was done: lines for people, or one JSON object of the facts."""
        if self.as_json:
            typer.echo(json.dumps(facts, default=str))
        elif not self.quiet:
            for line in lines:
                typer.echo(line)

    def note(self, line: str) -> None:
        """Say something on the side, on stderr."""
        if not self.quiet:
            self._screen.print(line, markup=False, highlight=False, soft_wrap=True)

    def left_out(self, line: str) -> None:
        """Say on stderr what was left out. A line that says by itself that it "is left out" is printed as it is."""
        self.note(line if re.search("(is|are) left out", line) else f"Left out: {line}")


def with_session(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Session`; its argument `session` gets what they say.

    An option that the command declares itself is its own, with its own default and help.
    """
    own = inspect.signature(command, eval_str=True)
    hints = get_type_hints(Session, include_extras=True)
    shared = [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=_in_panel(hints[one.name])
        )
        for one in fields(Session)
        if one.init and one.name not in own.parameters
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        command(session=Session(**{one.name: given.pop(one.name) for one in shared}), **given)

    kept = [parameter for name, parameter in own.parameters.items() if name != "session"]
    signature = own.replace(parameters=[*kept, *shared])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def _in_panel(hint: Any) -> Any:
    kind, option = get_args(hint)
    option = copy(option)
    option.rich_help_panel = PANEL
    return Annotated[kind, option]


def read_styles(backbone: Backbone, given: Sequence[str]) -> dict[str, Style]:
    """Read the styles of `--style` by placeholder. Raises as `style_places`, and InstError for a file of no use."""
    from inst.learning.instant import read_style

    return {name: read_style(backbone, place) for name, place in style_places(given).items()}


def style_places(given: Sequence[str]) -> dict[str, Path]:
    """Read `--style`, by placeholder: FILE is `[C]`, and C1=FILE is `[C1]`. Raises UsageError for two of one name."""
    places: dict[str, Path] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not name.isidentifier() or Path(text).exists():
            name, place = "C", text
        if f"[{name}]" in places:
            raise UsageError(f"Two styles are called [{name}]", "name them, such as --style C1=FILE --style C2=FILE")
        places[f"[{name}]"] = Path(place)
    return places
