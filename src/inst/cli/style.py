"""`inst style`: look at style files, make one of several, and exchange them with other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inst.cli.places import check_output, output_path
from inst.cli.session import PANEL, Session, with_session
from inst.errors import UsageError

if TYPE_CHECKING:
    from inst.styles.style import Style

app = typer.Typer(help="Look at style files, mix them, and exchange them with other programs.", no_args_is_help=True)

FittingOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Refuse a style of another text space than this backbone's, given as for inst transfer; by default none "
        "is loaded.",
        rich_help_panel=PANEL,
    ),
]


@app.command()
@with_session
def info(
    session: Session,
    style: Annotated[Path, typer.Argument(help="A style file.", show_default=False)],
    backbone: FittingOption = None,
) -> None:
    """Say what a style file holds and how it was learned."""
    from inst.styles.style import Style

    one = Style.load(style)
    _check_fit(session, backbone, [one])
    count, width = one.vectors.shape
    facts = {
        "name": one.name,
        "vectors": count,
        "width": width,
        "widths": one.widths,
        "text space": one.fingerprint,
        "denoiser": one.denoiser,
        "thumbnail": one.thumbnail is not None,
        "module": one.module is not None,
        "about": dict(one.about),
    }
    paintings = ", ".join(str(painting.get("name")) for painting in one.about.get("paintings", []))
    lines = [
        f"{'name':<12}{one.name}",
        f"{'vectors':<12}{count} of width {one.width_text}, typical size {one.vectors.norm(dim=1).mean():.3f}",
        f"{'text space':<12}{one.fingerprint}",
        f"{'denoiser':<12}{one.denoiser or 'not known'}",
        f"{'paintings':<12}{paintings or 'not known'}",
        *(f"{key:<12}{value}" for key, value in one.about.items() if key not in ("name", "paintings", "mixed")),
    ]
    session.report(lines, **facts)


@app.command()
@with_session
def mix(
    session: Session,
    styles: Annotated[
        list[str], typer.Argument(help="Style files, each with its weight: a.safetensors=2 b.safetensors=1.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The style file to write; by default in outputs/.")
    ] = None,
    backbone: FittingOption = None,
) -> None:
    """Mix styles by weight into a new one. Without weights all count alike."""
    from inst.styles.style import Style, check_style_name

    given = [_weighted(text) for text in styles]
    check_output(out, [path for path, _ in given], check_style_name)
    parts = [(Style.load(path), weight) for path, weight in given]
    _check_fit(session, backbone, [one for one, _ in parts])
    mixture = Style.mix(parts)
    with output_path(out, "-".join(path.stem for path, _ in given), ".safetensors") as path:
        mixture.save(path)
    session.report([f"{path}"], style=str(path))


@app.command("export")
@with_session
def export_(
    session: Session,
    style: Annotated[Path, typer.Argument(help="A style file.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="diffusers, a1111, comfyui or a1111-png (a picture).")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write; by default in outputs/.")] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="For diffusers: the word in the prompt; by default the style's name.")
    ] = None,
    backbone: FittingOption = None,
) -> None:
    """Write a style as an embedding (textual inversion) that another program reads."""
    from inst.styles.exporting import FORMATS, check_export, export_style, slug
    from inst.styles.style import Style

    check_export(None, to, token)
    check_output(out, [style], lambda path: check_export(path, to, token))
    one = Style.load(style)
    _check_fit(session, backbone, [one])
    with output_path(out, slug(token or one.name), FORMATS[to]) as path:
        word = export_style(one, path, to, token)
    lines = [f"{path}", f"In the prompt, write: {word}"]
    if to == "diffusers" and len(one.widths) > 1:
        lines.append("Load it once for each text encoder, as docs/styles-elsewhere.md shows.")
    session.report(lines, file=str(path), to=to, prompt=word)


@app.command("import")
@with_session
def import_(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            help="An embedding of diffusers, A1111 or ComfyUI, or the embeddings.pt of InST's reference code.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The style file to write; by default in outputs/.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the style; by default what the file says.")] = None,
    painting: Annotated[
        Path | None,
        typer.Option(
            "--painting",
            help="The painting it was learned from, for the style's palette; the reference's embeddings.pt needs it.",
        ),
    ] = None,
    as_reference: Annotated[
        bool,
        typer.Option(
            "--as-reference",
            help="For the reference's embeddings.pt: show the painting to CLIP as the reference does, which is what "
            "the file was learned with.",
        ),
    ] = False,
) -> None:
    """Make a style of an embedding (textual inversion) of another program."""
    from inst.pictures.io import read_photo
    from inst.styles.exporting import slug
    from inst.styles.importing import Embedding, check_import, import_style
    from inst.styles.style import check_style_name

    check_output(out, [file, *([painting] if painting else [])], check_style_name)
    found = check_import(file, painting is not None, as_reference)  # before the backbone, which takes its time
    shown = None if painting is None else read_photo(painting, flattened=True)
    model = session.load(looking=not isinstance(found, Embedding))
    style = import_style(model, file, name=name, painting=shown, as_reference=as_reference)
    with output_path(out, slug(style.name), ".safetensors") as path:
        style.save(path)
    count, _ = style.vectors.shape
    lines = [f"{path}", f"{count} vector{'s' if count > 1 else ''} of width {style.width_text}"]
    session.report(lines, style=str(path), vectors=count, widths=style.widths)


def _check_fit(session: Session, backbone: str | None, styles: Sequence[Style]) -> None:
    """Load a backbone if one is named, and check that the styles fit it.

    Raises:
        UsageError: a style of another text space, or options for a backbone that is not named.

    Warns:
        InstWarning: a style was learned with another UNet.
    """
    if backbone is None:
        session.refuse_loading()
        return
    from inst.synthesis.prompts import name_styles

    session.backbone = backbone
    model = session.load(looking=False)
    for one in styles:
        name_styles(model, one)


def _weighted(text: str) -> tuple[Path, float]:
    place, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(place), float(weight)
    except ValueError:
        raise UsageError(f'The weight "{weight}" of {place} is no number', "write FILE=WEIGHT, such as a=0.5") from None
