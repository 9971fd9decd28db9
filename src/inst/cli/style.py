"""`inst style info` and `inst style mix`: look at style files, and make one of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inst.cli.session import JsonOption, QuietOption, Session, check_output, output_path
from inst.errors import UsageError

app = typer.Typer(help="Look at style files, and mix them.", no_args_is_help=True)


@app.command()
def info(
    style: Annotated[Path, typer.Argument(help="A style file.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Say what a style file holds and how it was learned."""
    from inst.style import Style

    one = Style.load(style)
    count, width = one.vectors.shape
    facts = {
        "name": one.name,
        "vectors": count,
        "width": width,
        "text space": one.fingerprint,
        "denoiser": one.denoiser,
        "thumbnail": one.thumbnail is not None,
        "module": one.module is not None,
        "about": dict(one.about),
    }
    paintings = ", ".join(str(painting.get("name")) for painting in one.about.get("paintings", []))
    lines = [
        f"{'name':<12}{one.name}",
        f"{'vectors':<12}{count} of width {width}, typical size {one.vectors.norm(dim=1).mean():.3f}",
        f"{'text space':<12}{one.fingerprint}",
        f"{'denoiser':<12}{one.denoiser}",
        f"{'paintings':<12}{paintings or 'not known'}",
        *(f"{key:<12}{value}" for key, value in one.about.items() if key not in ("name", "paintings", "mixed")),
    ]
    Session(as_json=as_json).report(lines, **facts)


@app.command()
def mix(
    styles: Annotated[
        list[str], typer.Argument(help="Style files, each with its weight: a.safetensors=2 b.safetensors=1.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The style file to write; by default in outputs/.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Mix styles by weight into a new one. Without weights all count alike."""
    from inst.style import Style, check_style_name

    given = [_weighted(text) for text in styles]
    check_output(out, [path for path, _ in given], check_style_name)
    mixture = Style.mix([(Style.load(path), weight) for path, weight in given])
    with output_path(out, "-".join(path.stem for path, _ in given), ".safetensors") as path:
        mixture.save(path)
    Session(quiet=quiet, as_json=as_json).report([f"{path}"], style=str(path))


def _weighted(text: str) -> tuple[Path, float]:
    place, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(place), float(weight)
    except ValueError:
        raise UsageError(f'The weight "{weight}" of {place} is no number: write FILE=WEIGHT, such as a=0.5.') from None
