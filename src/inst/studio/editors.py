"""What the page's editors of pictures send while somebody paints: kept in memory until the editor's value is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from inst.errors import UsageError

_MOST_IDS = 32
_MOST_BYTES = 256 * 2**20
_LARGEST_INDEX = 8  # of a layer
_LONGEST_TEXT = 100


class Editors:
    """The pictures of all editors. Those that were sent longest ago go when there are too many.

    Gradio keeps them without a limit. Its methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[dict[str, Any], dict[str, int]]] = OrderedDict()

    def take(self, page: Any, fields: Mapping[str, str], picture: bytes) -> None:
        """Take a picture, which was checked before, for an editor of the page.

        Raises:
            UsageError: the fields are not those of an editor.
        """
        from gradio.components.image_editor import EditorDataBlobs, ImageEditor

        kind, id, index = fields.get("type", ""), fields.get("id", ""), fields.get("index", "null")
        session, number = fields.get("session_hash", ""), fields.get("component_id", "")
        fits = (
            fields.get("fn_name") == "accept_blobs"
            and kind in ("background", "layer", "composite")
            and 0 < len(id) <= _LONGEST_TEXT
            and (index in ("", "null") or (index.isascii() and index.isdigit() and int(index[:9]) <= _LARGEST_INDEX))
            and number.isascii()
            and number.isdigit()
            and len(number) < 9
            and len(session) <= _LONGEST_TEXT
        )
        editor = None
        if fits:
            state = page.state_holder.session_data.get(
                session
            )  # its editor takes the place of the page's after a change
            blocks = page.blocks if state is None else state.blocks_config.blocks
            editor = blocks.get(int(number), page.blocks.get(int(number)))
        if not isinstance(editor, ImageEditor) or (kind == "layer" and index in ("", "null")):
            raise UsageError("The request is not one of an editor of the page", "open the page again")
        with self._lock:
            self._forget_read()
            storage, sizes = self._kept.pop(id, (editor.blob_storage, {}))
            if storage is not editor.blob_storage:
                storage.pop(id, None)
                storage, sizes = editor.blob_storage, {}
            blobs = storage.get(id) or EditorDataBlobs(background=None, layers=[], composite=None)
            if kind == "layer":
                blobs.layers.extend([None] * (int(index) + 1 - len(blobs.layers)))
                blobs.layers[int(index)] = picture
            else:
                setattr(blobs, kind, picture)
            storage[id] = blobs
            sizes[f"{kind} {index}"] = len(picture)
            self._kept[id] = storage, sizes
            while len(self._kept) > _MOST_IDS or self.size() > _MOST_BYTES:
                old, (place, _) = self._kept.popitem(last=False)
                place.pop(old, None)

    def size(self) -> int:
        """Return the bytes of all pictures."""
        return sum(sum(sizes.values()) for _, sizes in self._kept.values())

    def _forget_read(self) -> None:
        """Forget what Gradio has read and removed."""
        for id in [id for id, (storage, _) in self._kept.items() if id not in storage]:
            del self._kept[id]
