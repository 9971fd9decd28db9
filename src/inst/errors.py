"""The errors a user can cause and can repair."""

from typing import ClassVar


class InstError(Exception):
    """Something the user can put right: one line that names the file or value at fault and the remedy.

    The command line prints the message without a traceback and exits with `exit_code`. Every other exception type that
    leaves the package is a defect of the package.
    """

    exit_code: ClassVar[int] = 1


class UsageError(InstError, ValueError):
    """A wrong argument (an unknown device, a prompt that is too long), as opposed to a broken file or a full disk.

    It is a ValueError too, which callers of a library expect over a wrong argument.
    """

    exit_code: ClassVar[int] = 2


def first_line(error: BaseException) -> str:
    """Return what an error says first, for a message of one line: its type where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class InstWarning(UserWarning):
    """Something the user should know of, though the work goes on: one line. The command line prints it."""
