"""The command `inst style`, which shows, mixes, exports and imports style files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inst.cli.learn import NoPaintingOption, StyleFileOption
from inst.cli.places import Output, check_output, output_option, output_path, read_path
from inst.cli.session import PANEL, Session, with_session
from inst.errors import UsageError
from inst.texts import cut

if TYPE_CHECKING:
    from torch import Tensor

    from inst.styles.style import Style

app = typer.Typer(help="Show style files, mix them, and exchange them with other programs.", no_args_is_help=True)

BackboneToCheckOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Check that the style fits this backbone, given as for inst transfer. By default no backbone is loaded "
        "and nothing is checked.",
        rich_help_panel=PANEL,
    ),
]


@app.command()
@with_session
def info(
    session: Session,
    style: Annotated[Path, typer.Argument(help="A style file.", show_default=False)],
    backbone: BackboneToCheckOption = None,
) -> None:
    """Show the contents of a style file and how it was learned."""
    from inst.styles.style import Style

    loaded = Style.load(style)
    _check_fit(session, backbone, [loaded])
    count, width = loaded.vectors.shape
    pictures = [loaded.painting(index) for index in range(len(loaded.paintings))]
    facts = {
        "name": loaded.name,
        "vectors": count,
        "width": width,
        "widths": loaded.widths,
        "text space": loaded.fingerprint,
        "denoiser": loaded.denoiser,
        "paintings": [
            {"width": picture.shape[2], "height": picture.shape[1], "share": share}
            for picture, share in zip(pictures, loaded.shares, strict=True)
        ],
        "module": loaded.module is not None,
        "about": dict(loaded.about),
    }
    length = loaded.vectors.norm(dim=1).mean()
    names = [cut(str(painting.get("name")), 200) for painting in loaded.about.get("paintings", [])]
    lines = [
        f"{'name':<12}{cut(loaded.name, 200)}",
        f"{'vectors':<12}{f'{count} of width {loaded.width_text}, mean length {length:.3f}' if count else 'none'}",
        f"{'text space':<12}{cut(loaded.fingerprint, 60)}",
        f"{'denoiser':<12}{cut(loaded.denoiser, 60) or 'not known'}",
        f"{'paintings':<12}{_describe_paintings(names, pictures)}",
        *(
            f"{cut(key, 60):<12}{cut(str(value), 1_000)}"
            for key, value in loaded.about.items()
            if key not in ("name", "paintings", "mixed")
        ),
    ]
    session.report(lines, **facts)


@app.command()
@with_session
def mix(
    session: Session,
    styles: Annotated[
        list[str],
        typer.Argument(
            help="Style files with their weights: a.safetensors=2 b.safetensors=1. The default weight is 1."
        ),
    ],
    out: StyleFileOption = None,
    backbone: BackboneToCheckOption = None,
) -> None:
    """Mix styles into a new style, with a weight for each. Without weights, all count the same."""
    from inst.styles.style import Style, check_style_name

    weighted_paths = [_path_and_weight(text) for text in styles]
    check_output(out, [path for path, _ in weighted_paths], check_style_name)
    parts = [(Style.load(path), weight) for path, weight in weighted_paths]
    _check_fit(session, backbone, [style for style, _ in parts])
    mixture = Style.mix(parts)
    with output_path(out, "-".join(path.stem for path, _ in weighted_paths), ".safetensors") as path:
        mixture.save(path)
    session.report([f"{path}"], style=str(path))


@app.command("export")
@with_session
def export_(
    session: Session,
    style: Annotated[Path, typer.Argument(help="A style file.", show_default=False)],
    to: Annotated[
        str, typer.Option("--to", help="Format of the file: diffusers, a1111, comfyui or a1111-png (a picture).")
    ],
    out: Annotated[Output | None, output_option("File to write", optional=True)] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", help="For diffusers: the word for the style in prompts. By default the style's name."),
    ] = None,
    backbone: BackboneToCheckOption = None,
) -> None:
    """Export a style as an embedding (textual inversion) for another program."""
    from inst.styles.exporting import FORMATS, check_export, export_style, slug
    from inst.styles.style import Style

    check_export(None, to, token)
    check_output(out, [style], lambda path: check_export(path, to, token))
    loaded = Style.load(style)
    _check_fit(session, backbone, [loaded])
    with output_path(out, slug(token or loaded.name), FORMATS[to]) as path:
        word = export_style(loaded, path, to, token)
    lines = [f"{path}", f"In the prompt, write: {word}"]
    if to == "diffusers" and len(loaded.widths) > 1:
        lines.append("Load it once for each text encoder, as docs/styles-elsewhere.md shows.")
    session.report(lines, file=str(path), to=to, prompt=word)


@app.command("import")
@with_session
def import_(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            help="An embedding file of diffusers, A1111 or ComfyUI, or the embeddings.pt of InST's reference code.",
            show_default=False,
        ),
    ],
    out: StyleFileOption = None,
    second: Annotated[
        Path | None,
        typer.Option(
            "--second",
            help="The file for the other text encoder, if a program wrote two files for Stable Diffusion XL, such as "
            "learned_embeds_2.safetensors.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the style. By default the name in the file.")
    ] = None,
    painting: Annotated[
        Path | None,
        typer.Option(
            "--painting",
            help="The painting that the embedding was learned from; it gives the style its palette and its strokes. "
            "Required for the embeddings.pt of the reference code.",
        ),
    ] = None,
    no_painting: NoPaintingOption = False,
    as_reference: Annotated[
        bool,
        typer.Option(
            "--as-reference",
            help="For the embeddings.pt of the reference code: prepare the painting for CLIP as that code does.",
        ),
    ] = False,
) -> None:
    """Import an embedding (textual inversion) of another program as a style file."""
    from inst.pictures.reading import USUAL_SIZE, read_photo
    from inst.styles.exporting import slug
    from inst.styles.importing import Embedding, check_import, import_style
    from inst.styles.style import check_style_name

    if no_painting and painting is None:
        raise UsageError("--no-painting needs a painting", "give it with --painting, or leave out --no-painting")
    check_output(out, [path for path in (file, second, painting) if path], check_style_name)
    found = check_import(file, painting is not None, as_reference, second)  # before the backbone, which loads slowly
    source = None if painting is None else read_photo(painting, flattened=True, reduce_to=USUAL_SIZE)
    model = session.load(find_image_encoder=not isinstance(found, Embedding))
    style = import_style(
        model,
        file,
        second=second,
        name=name,
        painting=source,
        as_reference=as_reference,
        keep_painting=not no_painting,
    )
    with output_path(out, slug(style.name), ".safetensors") as path:
        style.save(path)
    count, _ = style.vectors.shape
    lines = [f"{path}", f"{count} vector{'s' if count > 1 else ''} of width {style.width_text}"]
    session.report(lines, style=str(path), vectors=count, widths=style.widths)


def _describe_paintings(names: Sequence[str], pictures: Sequence[Tensor]) -> str:
    """Say which paintings a style comes from, and the sizes of their pictures [3, H, W] in the style file."""
    sizes = [f"{picture.shape[2]} x {picture.shape[1]}" for picture in pictures]
    if len(names) == len(sizes):
        return ", ".join(f"{name} ({size})" for name, size in zip(names, sizes, strict=True)) or "not known"
    return f"{', '.join(names) or 'not known'} (pictures: {', '.join(sizes) or 'none'})"


def _check_fit(session: Session, backbone: str | None, styles: Sequence[Style]) -> None:
    """Load the backbone if one is named, and check that the styles fit it.

    Raises:
        UsageError: a style belongs to another text space; or an option for a backbone is given without a backbone.

    Warns:
        InstWarning: a style was learned with another UNet.
    """
    if backbone is None:
        session.refuse_backbone_options()
        return
    from inst.synthesis.prompts import name_styles

    session.backbone = backbone
    model = session.load(find_image_encoder=False)
    for style in styles:
        name_styles(model, style)


def _path_and_weight(text: str) -> tuple[Path, float]:
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return read_path(text), 1.0
    try:
        return read_path(path), float(weight)
    except ValueError:
        raise UsageError(
            f'The weight "{cut(weight, 60)}" of {cut(path, 200)} is not a number',
            "give FILE=WEIGHT, such as a.safetensors=0.5",
        ) from None
