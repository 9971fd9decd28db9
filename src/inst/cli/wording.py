"""Names of the package's arguments and functions on the command line, for the remedies in error messages."""

from __future__ import annotations

import shlex

from inst.errors import Argument, Call

_COMMANDS = {
    "import_style": "style import",
    "export_style": "style export",
    "study.creation.create_study": "study create",
    "study.server.serve": "study serve",
}
"""Commands whose name differs from the name of their function."""

_OPTIONS = {"encoder": "--clip"}
"""Options whose name differs from the name of their argument."""


def command_line_wording(named: Argument | Call) -> str:
    """Return the option of an argument, with its value, or the command of a function."""
    if isinstance(named, Call):
        return f"`inst {_COMMANDS.get(named.name, named.name)}`"
    option = _OPTIONS.get(named.name, f"--{named.name.replace('_', '-')}")
    return f"{option} {shlex.quote(named.value)}" if isinstance(named.value, str) else option
