"""The `inst` command. This module imports no PyTorch: each command imports what it needs when it runs."""

import gc
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inst.cli import batch, study, style, weights
from inst.cli.ablate import ablate
from inst.cli.compare import compare
from inst.cli.console import (
    finish_streams,
    make_screen,
    prepare_streams,
    print_line,
    print_message,
    warning_printer,
)
from inst.cli.demo import demo
from inst.cli.doctor import doctor
from inst.cli.evaluate import evaluate
from inst.cli.failures import failure_of
from inst.cli.learn import learn
from inst.cli.learning import INTERRUPTED
from inst.cli.pictures import generate, transfer
from inst.cli.repeat import repeat
from inst.cli.sheet import sheet
from inst.cli.studio import studio
from inst.cli.wording import command_line_wording
from inst.errors import InstWarning, use_wording
from inst.version import __version__

_WIDTHS = range(20, 2000)
"""The widths of a terminal in which the help can be read, in letters."""


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
        print_line(f"inst {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    os.getcwd()  # without a current folder, importing PyTorch would end the process


def main() -> None:
    """Run the command line. A failure is one line on stderr.

    Exit codes: 0 for success, 1 for a failure (also if the result is written but cannot be printed), 2 for wrong use,
    130 after Ctrl-C.
    """
    # Waiting threads that spin for long make a shared computer several times slower; threads that sleep at once make
    # learning take a third longer, because its steps have many short operations. PyTorch reads these on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    # Imports make many objects, which stay. Looking for garbage among them again and again would take 0.3 s.
    gc.set_threshold(100_000)
    for width in ("COLUMNS", "TERMINAL_WIDTH"):  # no number, with which typer fails, or one that makes no help readable
        value = os.environ.get(width, "80")
        if not (value.isdecimal() and len(value) < 5 and int(value) in _WIDTHS):
            del os.environ[width]
    prepare_streams()
    screen = make_screen()
    warnings.showwarning = warning_printer(screen)
    # The warnings of this package are part of the command's output, even if PYTHONWARNINGS hides Python's warnings.
    warnings.filterwarnings("default", category=InstWarning)
    try:
        with use_wording(command_line_wording):
            code = app(prog_name="inst", standalone_mode=False)
    except (_Interrupted, KeyboardInterrupt):
        print_message(screen, "Interrupted.", "red")
        code = INTERRUPTED
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        if failure.problem:
            with use_wording(command_line_wording):
                print_message(screen, f"Error: {failure}", "red")
        code = failure.exit_code
    finally:
        finish_streams()
    sys.exit(code)
