"""The `inst` command. Importing it imports no PyTorch: each command imports what it needs when it runs."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from inst.cli import study, style, weights
from inst.cli.ablate import ablate
from inst.cli.compare import compare
from inst.cli.demo import demo
from inst.cli.doctor import doctor
from inst.cli.evaluate import evaluate
from inst.cli.learn import INTERRUPTED, learn
from inst.cli.pictures import generate, transfer
from inst.cli.repeat import repeat
from inst.cli.sheet import sheet
from inst.cli.wording import on_the_command_line
from inst.errors import InstError, InstWarning, in_the_words_of
from inst.version import __version__

# What PyTorch's own exceptions say; its class for an accelerator's memory cannot be named without importing PyTorch.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")


class _Interrupted(Exception):
    """Ctrl-C: typer would turn a KeyboardInterrupt into an exit without a word."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    cls=_Commands,
    help="InST: learn a style from one painting, apply it to any photo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (learn, transfer, generate, sheet, evaluate, compare, ablate, demo, repeat, doctor):
    app.command()(_command)
app.add_typer(style.app, name="style")
app.add_typer(weights.app, name="weights")
app.add_typer(study.app, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inst {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit code 0, 1 for what failed, 2 for wrong use; a user's mistake is one line on stderr."""
    # Threads that spin while they wait slow a shared computer down several times over; torch reads it when imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    screen = Console(stderr=True)

    def say(line: str, colour: str) -> None:
        screen.print(line, style=colour, markup=False, highlight=False, soft_wrap=True)

    usual = warnings.showwarning

    def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, InstWarning):
            say(f"Warning: {message}", "yellow")
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show
    # What this package warns of belongs to what the command says, also where PYTHONWARNINGS hides Python's warnings.
    warnings.filterwarnings("default", category=InstWarning)
    try:
        with in_the_words_of(on_the_command_line):
            app()
    except InstError as error:
        say(f"Error: {error}", "red")
        sys.exit(error.exit_code)
    except _Interrupted:
        say("Interrupted.", "red")
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.filename is None:
            raise
        say(f"Error: {error.filename} cannot be used ({error.strerror}): give another place.", "red")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        say(
            "Error: the memory does not suffice: make smaller pictures (--size, --tile) or batches (--batch-size), or "
            "give --low-memory or another --device.",
            "red",
        )
        sys.exit(1)
