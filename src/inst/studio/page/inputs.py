"""Pictures that come from the page: kept among the uploads, and named in requests by their key."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from inst.errors import InstError, UsageError
from inst.files.provenance import base_name
from inst.studio.studio import Studio
from inst.studio.uploads import GONE

_MOST_NAMES = 1000

Ref = dict[str, str]
"""An uploaded picture as in a request: {"upload": key, "name": the picture's own name}."""


def picture_input(**options: Any) -> gr.Image:
    """Make an input for a picture whose file is kept as it is. Its value is the file's path, and the name it came with.

    Gradio's own would decode the picture and write it again, without its name and its record. It is no subclass,
    because Gradio writes a file beside the source of each, which may be in somebody's installation.
    """
    component = gr.Image(**options)
    component.preprocess = _path_and_name  # type: ignore[method-assign, assignment]
    return component


def pictures_input(**options: Any) -> gr.Gallery:
    """Make an input for several pictures, as `picture_input`. Its value is a list of paths and names."""
    component = gr.Gallery(**options)
    component.preprocess = _paths_and_names  # type: ignore[method-assign, assignment]
    return component


def style_input(**options: Any) -> gr.UploadButton:
    """Make a button for a style file. Its value is the file's path, and the name it came with."""
    component = gr.UploadButton(**options)
    component.preprocess = _path_and_name  # type: ignore[method-assign, assignment]
    return component


def _path_and_name(payload: Any) -> tuple[str, str] | None:
    return None if payload is None or not payload.path else (payload.path, base_name(payload.orig_name or ""))


def _paths_and_names(payload: Any) -> list[tuple[str, str]]:
    items = [] if payload is None else payload.root
    return [(one.image.path, base_name(one.image.orig_name or "")) for one in items if getattr(one, "image", None)]


_names: OrderedDict[str, str] = OrderedDict()


def remember_name(key: str, name: str) -> None:
    """Remember the own name of an upload that the page itself puts into an input."""
    _names[key] = name
    if len(_names) > _MOST_NAMES:
        _names.popitem(last=False)


def keep(studio: Studio, person: str, given: tuple[str, str] | None) -> Ref | None:
    """Keep the value of a `picture_input` among a person's uploads, and return how a request names it.

    Raises:
        InstError: it is no picture, too large, or not here any more.
    """
    if given is None:
        return None
    path, name = Path(given[0]), given[1]
    with contextlib.suppress(InstError):  # the usual case: the upload was kept under its key already
        studio.uploads.find(path.stem, person)
        return {"upload": path.stem, "name": _names.get(path.stem, "") if path.stem in name else name}
    try:
        with studio.uploads.receive() as receiver, path.open("rb") as file:
            while data := file.read(1 << 20):
                receiver.write(data)
            kept = studio.uploads.keep_picture(receiver, person)
    except OSError:
        raise UsageError(*GONE) from None
    return {"upload": kept.key, "name": _names.get(kept.key, "") if kept.key in name else name}


def keep_all(studio: Studio, person: str, given: Sequence[tuple[str, str]]) -> list[Ref]:
    """Keep the value of a `pictures_input`, as `keep`."""
    return [ref for one in given if (ref := keep(studio, person, one)) is not None]


def keep_mask(studio: Studio, person: str, editor: Mapping[str, Any] | None) -> Ref | None:
    """Keep what was painted in an editor as a mask: white where there is paint. None if nothing is painted."""
    layers = [layer.getchannel("A") for layer in (editor or {}).get("layers") or [] if layer.mode == "RGBA"]
    if not layers:
        return None
    mask = layers[0]
    for layer in layers[1:]:
        mask = ImageChops.lighter(mask, layer)
    if mask.getextrema()[1] == 0:
        return None
    data = io.BytesIO()
    Image.merge("L", [mask]).save(data, "PNG")
    with studio.uploads.receive() as receiver:
        receiver.write(data.getvalue())
        key = studio.uploads.keep_picture(receiver, person).key
    return {"upload": key, "name": f"mask-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.png"}
