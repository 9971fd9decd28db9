"""The `inst` command. This module imports no PyTorch: each command imports what it needs when it runs."""

import gc
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from inst.cli import batch, study, style, weights
from inst.cli.ablate import ablate
from inst.cli.compare import compare
from inst.cli.console import FULL, discard, print_any_text, print_message
from inst.cli.demo import demo
from inst.cli.doctor import doctor
from inst.cli.evaluate import evaluate
from inst.cli.learn import learn
from inst.cli.learning import INTERRUPTED
from inst.cli.pictures import generate, transfer
from inst.cli.repeat import repeat
from inst.cli.sheet import sheet
from inst.cli.studio import studio
from inst.cli.wording import command_line_wording
from inst.errors import InstError, InstWarning, use_wording
from inst.version import __version__

# Words of PyTorch's own messages. Naming its exception class for an accelerator would import PyTorch.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")


class _Interrupted(Exception):
    """Stands for Ctrl-C, because typer turns a KeyboardInterrupt into an exit without a message."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    cls=_Commands,
    help="InST: learn a style from one painting and apply it to any photo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (learn, transfer, generate, sheet, studio, evaluate, compare, ablate, demo, repeat, doctor):
    app.command()(_command)
app.add_typer(batch.app, name="batch")
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
    """Run the command line. An error of the user is one line on stderr.

    Exit codes: 0 for success, 1 for a failure (also if the result is written but cannot be printed), 2 for wrong use,
    130 after Ctrl-C.
    """
    # Waiting threads that spin for long make a shared computer several times slower; threads that sleep at once make
    # learning take a third longer, because its steps have many short operations. PyTorch reads these on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    # Imports make many objects, which stay. Looking for garbage among them again and again would take 0.3 s.
    gc.set_threshold(100_000)
    print_any_text()
    screen = Console(stderr=True)
    original_showwarning = warnings.showwarning

    def show_warning(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, InstWarning):
            print_message(screen, f"Warning: {message}", "yellow")
        else:
            original_showwarning(message, category, *place, **more)

    warnings.showwarning = show_warning
    # The warnings of this package are part of the command's output, even if PYTHONWARNINGS hides Python's warnings.
    warnings.filterwarnings("default", category=InstWarning)
    try:
        with use_wording(command_line_wording):
            app()
    except InstError as error:
        print_message(screen, f"Error: {error}", "red")
        sys.exit(error.exit_code)
    except _Interrupted:
        print_message(screen, "Interrupted.", "red")
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.filename is not None:
            print_message(
                screen, f"Error: {error.filename} cannot be used ({error.strerror}): give another path.", "red"
            )
        elif error.errno in FULL:  # files are written by `inst.files.writing`, which names them
            discard(sys.stdout)
            print_message(
                screen,
                f"Error: the output cannot be printed ({error.strerror}): free space on the disk. Files that were "
                "written stay.",
                "red",
            )
        else:
            raise
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        print_message(
            screen,
            "Error: there is not enough memory: use smaller pictures (--size, --tile) or batches (--batch-size), add "
            "--low-memory, or choose another --device.",
            "red",
        )
        sys.exit(1)
