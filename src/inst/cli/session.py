"""The parts that all commands share: common options, the backbone, style files, progress bars and output."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from inst.arguments import check_path
from inst.cli.console import make_screen, print_line, print_message
from inst.cli.places import with_read_path
from inst.defaults import defaults_of
from inst.errors import UsageError
from inst.texts import one_line

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.sampling.solvers import SamplingStep
    from inst.styles.style import Style

PANEL = "Backbone and output"
"""The heading above the options of `Session` in the help of each command."""

Result = TypeVar("Result")

_LOAD = {
    name: default
    for name, default in defaults_of("inst.backbone.model", "Backbone.load").items()
    if name != "fast"  # for comparisons in Python
}
_NOTES = {"inversion": "DDIM inversion of the photo"}
"""Notes beside the progress bar, by sampling phase."""

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and warnings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object instead of text.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed, 0 or more. The same seed gives the same result.")]
StyleOption = Annotated[
    list[str],
    typer.Option(
        "--style",
        "-s",
        help="A style file, or a painting or a folder of paintings, which is used without learning. For several "
        "styles: --style C1=FILE --style C2=FILE, with [C1] and [C2] in the prompt.",
    ),
]


@dataclass
class Session:
    """One run of a command: the device, the backbone and the output. Each field is an option of every command.

    `with_session` adds the options to a command and passes their values as one `Session`. The fields up to `dtype` are
    the arguments of `inst.Backbone.load`.
    """

    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="The diffusion model: mini (the bundled one), a model's folder, a single file (.safetensors, .ckpt), "
            "or a model-hub id (owner/model or owner/model@revision).",
        ),
    ] = _LOAD["name"]
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Configuration of a single-file model: sd1, sd2, sd2-v, sdxl, or a folder in the diffusers layout. By "
            "default it is detected from the file.",
        ),
    ] = _LOAD["config"]
    image_encoder: Annotated[
        str | None,
        typer.Option(
            "--image-encoder",
            help="CLIP image encoder for the paintings: a folder or a model-hub id. By default the model's own, or the "
            "one that matches its text encoder.",
        ),
    ] = _LOAD["image_encoder"]
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Download missing files from the model hub: the backbone and, if paintings are read, its image "
            "encoder. By default nothing is downloaded.",
        ),
    ] = _LOAD["download"]
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Use less memory on a GPU, but take longer.")] = (
        _LOAD["low_memory"]
    )
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="Store the weights of the UNet in 8 bits, for less memory: int8, or fp8, which is less exact. Needs "
            "torchao.",
        ),
    ] = _LOAD["quantize"]
    device: Annotated[
        str | None,
        typer.Option("--device", help="Device, such as cpu, cuda or mps. By default cuda, then mps, then cpu."),
    ] = _LOAD["device"]
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Precision: float32, bfloat16 or float16. By default it depends on the device."),
    ] = _LOAD["dtype"]
    quiet: QuietOption = False
    as_json: JsonOption = False
    _screen: Console = field(default_factory=make_screen, init=False, repr=False)
    _loaded: Any = field(default=None, init=False, repr=False)

    def load(self, *, find_image_encoder: bool = True) -> Backbone:
        """Load the backbone on the first call, and return it.

        `find_image_encoder` says whether to find a matching image encoder for a model that has none of its own.
        """
        if self._loaded is not None:
            return self._loaded
        from inst.backbone.model import Backbone

        if self.download:  # the hub's library shows its own progress bars
            from huggingface_hub.utils.tqdm import disable_progress_bars

            if self.hides_progress:
                disable_progress_bars()
        with nullcontext() if self.download else self.waiting("loading the backbone"):
            self._loaded = Backbone.load(**self.load_arguments(find_image_encoder=find_image_encoder))
        return self._loaded

    def load_arguments(self, *, find_image_encoder: bool = True) -> dict[str, Any]:
        """Return the arguments of `inst.Backbone.load`, for processes that load the backbone themselves."""
        arguments = {name: getattr(self, name) for name in _LOAD if name != "name"}
        if not find_image_encoder and self.image_encoder is None:
            arguments["image_encoder"] = False
        return {"name": self.backbone, **arguments}

    def refuse_backbone_options(self) -> None:
        """Raise UsageError if an option for loading a backbone is given, in a command that loads none."""
        names = [name for name in _LOAD if name != "name" and getattr(self, name) != _LOAD[name]]
        if names:
            option = f"--{names[0].replace('_', '-')}"
            raise UsageError(f"{option} needs a backbone, but none is loaded", f"add --backbone, or leave out {option}")

    @property
    def hides_progress(self) -> bool:
        """Whether no progress bar is shown."""
        return self.quiet or self.as_json or not self._screen.is_terminal

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show a spinner with the text `what` while work without steps runs."""
        if self.hides_progress:
            yield
            return
        with self._screen.status(Text(one_line(what))):
            yield

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Callable[[int, int | None, str], None]]:
        """Show a progress bar with the remaining time. Yields a function (step, total, note) that updates it."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._screen, disable=self.hides_progress, transient=True) as bar:
            task = bar.add_task(one_line(what), total=total, note="")

            def update(step: int, total: int | None, note: str = "") -> None:
                bar.update(task, completed=step, total=total, note=one_line(note))

            yield update

    def sample(self, run: Generator[SamplingStep, Any, Result], what: str) -> Result:
        """Run a transfer or a generation to its end, with a progress bar. DDIM inversion counts from 0 before it."""
        from inst.runs import complete

        with self.progress(what) as update:
            return complete(run, lambda step: update(step.index + 1, step.total, _NOTES.get(step.phase, "")))

    def report(self, lines: Sequence[str], **facts: Any) -> None:
        """Print the result on stdout: the lines, or with --json one JSON object of the facts."""
        if self.as_json:
            print_line(json_text(facts))
        elif not self.quiet:
            for line in lines:
                print_line(line)

    def note(self, line: str) -> None:
        """Print a note on stderr."""
        if not self.quiet:
            print_message(self._screen, line)

    def note_left_out(self, line: str) -> None:
        """Print the warning that something was left out. A line that contains "is left out" gets no prefix."""
        print_message(self._screen, line if re.search("(is|are) left out", line) else f"Left out: {line}")


def json_text(facts: Any) -> str:
    """Return facts as JSON in ASCII: null for a number that is not finite; a text for what JSON has no form for.

    A byte of a file's name that is no text is a lone surrogate (PEP 383), escaped, so that Python reads the same name.
    """
    # JSON does not ask for this one character to be escaped, but terminals obey it.
    return json.dumps(_finite(facts), default=str, allow_nan=False).replace("\x7f", "\\u007f")


def _finite(facts: Any) -> Any:
    if isinstance(facts, float):
        return facts if math.isfinite(facts) else None
    if isinstance(facts, Mapping):
        return {str(key): _finite(value) for key, value in facts.items()}
    return [_finite(value) for value in facts] if isinstance(facts, list | tuple) else facts


def with_session(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Session` to a command, and pass their values as its argument `session`.

    Any other argument whose type is a dataclass of options, such as `inst.cli.pictures.TransferOptions`, is filled in
    the same way; its options stand at its place. Empty paths are refused (`inst.cli.places.read_path`).

    An option that the command declares itself is not replaced: its own default and help stay.
    """
    own = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in own.parameters.items() if is_dataclass(one.annotation)
    }
    declared = own.parameters.keys() - groups.keys()
    options = {name: _options_of(kind, declared) for name, kind in groups.items()}

    @wraps(command)
    def run(**values: Any) -> None:
        filled = {
            name: kind(**{option.name: values.pop(option.name) for option in options[name]})
            for name, kind in groups.items()
        }
        command(**filled, **values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        if name not in groups:
            annotation = with_read_path(parameter.annotation)
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
        elif groups[name] is not Session:
            parameters += options[name]
    signature = own.replace(parameters=[*parameters, *options["session"]])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def _options_of(kind: type[Any], declared: Collection[str]) -> list[inspect.Parameter]:
    """Return the options of a dataclass, without those that the command declares itself."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=with_read_path(_in_panel(hints[option.name]) if kind is Session else hints[option.name]),
        )
        for option in fields(kind)
        if option.init and option.name not in declared
    ]


def _in_panel(hint: Any) -> Any:
    kind, option = get_args(hint)
    option = copy(option)
    option.rich_help_panel = PANEL
    return Annotated[kind, option]


def read_styles(backbone: Backbone, values: Sequence[str]) -> dict[str, Style]:
    """Read the styles of `--style`, by placeholder.

    Raises:
        UsageError: two styles have the same name, or a path is empty.
        InstError: a file cannot be used.
    """
    from inst.learning.instant import read_style

    return {name: read_style(backbone, path) for name, path in style_paths(values).items()}


def style_paths(values: Sequence[str]) -> dict[str, Path]:
    """Return the paths of `--style` by placeholder: FILE is `[C]`, and C1=FILE is `[C1]`.

    Raises UsageError if two styles have the same name, or a path is empty.
    """
    paths: dict[str, Path] = {}
    for text in values:
        name, equals, path = text.partition("=")
        if not equals or not name.isidentifier() or Path(text).exists():
            name, path = "C", text
        if f"[{name}]" in paths:
            raise UsageError(f"Two styles are called [{name}]", "give names, such as --style C1=FILE --style C2=FILE")
        check_path("A style", path)
        paths[f"[{name}]"] = Path(path)
    return paths
