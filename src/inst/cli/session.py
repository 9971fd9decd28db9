"""What the commands share: the options that all have, the backbone, styles and paintings by file, progress, output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inst.cli.defaults import defaults_of
from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from inst.backbone import Backbone
    from inst.images import Photo
    from inst.style import Style

OUTPUTS = Path("outputs")
"""Where pictures and styles go when no place is named."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Endings of the files that are taken for paintings in a folder."""

BACKBONE: str = defaults_of("inst.backbone", "Backbone.load")["name"]

BackboneOption = Annotated[str, typer.Option("--backbone", help="The bundled mini, or a model's folder.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Such as cpu, cuda or mps; by default the best at hand.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; by default what suits the device.")
]
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
    """One run of a command: where to compute, and how to report.

    Attributes:
        backbone, device, dtype: as for `inst.Backbone.load`.
        quiet: no lines and no progress bars.
        as_json: one JSON object instead.
    """

    backbone: str = BACKBONE
    device: str | None = None
    dtype: str | None = None
    quiet: bool = False
    as_json: bool = False
    _screen: Console = field(default_factory=lambda: Console(stderr=True), repr=False)

    def load(self) -> Backbone:
        """Load the backbone."""
        from inst.backbone import Backbone

        with self.waiting("loading the backbone"):
            return Backbone.load(self.backbone, self.device, self.dtype)

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


def pictures_of(places: Sequence[Path]) -> list[Path]:
    """Return the files, and of each folder the pictures in it by name. Raises InstError where a folder has none."""
    files: list[Path] = []
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        inside = sorted(one for one in place.iterdir() if one.suffix.lower() in PICTURES)
        if not inside:
            raise InstError(f"{place} holds no picture ({', '.join(PICTURES)}): give another folder, or a file.")
        files += inside
    return files


def read_paintings(places: Sequence[Path]) -> list[Photo]:
    """Read paintings, and of each folder the pictures in it, laid over white where they are transparent."""
    from inst.images import read_photo

    return [read_photo(file, flattened=True) for file in pictures_of(places)]


def read_style(backbone: Backbone, place: Path) -> Style:
    """Read a style file; of a painting, or a folder of them, take the instant style."""
    from inst.learning import instant_style
    from inst.style import Style

    if place.suffix.lower() == ".safetensors":
        return Style.load(place)
    return instant_style(backbone, read_paintings([place]), place.stem)


def read_styles(backbone: Backbone, given: Sequence[str]) -> dict[str, Style]:
    """Read the styles of `--style` by placeholder: FILE is `[C]`, and C1=FILE is `[C1]`.

    Raises:
        UsageError: two styles of one name.
        InstError: a file that cannot be used.
    """
    styles: dict[str, Style] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not name.isidentifier() or Path(text).exists():
            name, place = "C", text
        if f"[{name}]" in styles:
            raise UsageError(f"Two styles are called [{name}]: name them, such as --style C1=FILE --style C2=FILE.")
        styles[f"[{name}]"] = read_style(backbone, Path(place))
    return styles


def check_output(out: Path | None, sources: Sequence[Path], check: Callable[[Path], object]) -> None:
    """Refuse, before anything is computed, a place that cannot be written to or that would destroy a source.

    Args:
        out: a file, a folder that exists, or None.
        sources: what was read.
        check: raises for a file's name with an ending that cannot be written.
    """
    if out is None or out.is_dir():
        return
    check(out)
    if not out.parent.is_dir():
        raise InstError(f"{out} cannot be written: the folder {out.parent} does not exist; make it first.")
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise UsageError(f"{out} is what is read: give another name to -o, or it would be lost.")


@contextmanager
def output_path(out: Path | None, stem: str, suffix: str, number: int | None = None) -> Iterator[Path]:
    """Give the file to write: `out`, or a name that is still free in it if it is a folder, or in `outputs`.

    `number` is put behind the name of one of several pictures.
    """
    from inst.files import reserve_path

    if out is not None and not out.is_dir():
        yield out if number is None else out.with_stem(f"{out.stem}-{number}")
        return
    with reserve_path(OUTPUTS if out is None else out, stem, suffix) as path:
        yield path
