"""What the command line calls the arguments and functions that remedies name."""

from __future__ import annotations

import shlex

from inst.errors import Argument, Call

_COMMANDS = {"import_style": "style import", "export_style": "style export", "create_study": "study create"}
"""The commands of functions that are called otherwise."""

_OPTIONS = {"encoder": "--clip"}
"""The options of arguments that are called otherwise."""


def on_the_command_line(named: Argument | Call) -> str:
    """The option of an argument, with its value, or the command of a function."""
    if isinstance(named, Call):
        return f"`inst {_COMMANDS.get(named.name, named.name)}`"
    option = _OPTIONS.get(named.name, f"--{named.name.replace('_', '-')}")
    return f"{option} {shlex.quote(named.value)}" if isinstance(named.value, str) else option
