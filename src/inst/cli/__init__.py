"""The `inst` command. Importing it imports no PyTorch: each command imports what it needs when it runs."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from inst import __version__
from inst.cli.doctor import doctor
from inst.errors import InstError

app = typer.Typer(
    help="InST: learn a style from one painting, apply it to any photo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(doctor)


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
    try:
        app()
    except InstError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
