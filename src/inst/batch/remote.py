"""Stream the files below a URL in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inst.batch.folders import ANY_DEPTH, Pattern, is_glob


def remote_files(system: Any, folder: str, parts: list[str]) -> Iterator[str]:
    """Yield the files in a folder that match the parts of a glob, as paths relative to it.

    Of S3, only one page of names is in memory; of other file systems of fsspec, the names of one folder.

    Args:
        system: a file system of fsspec.
        folder: the path in it.
        parts: the parts of the glob (`Pattern`).

    Raises:
        Exception: errors of the file system; use `inst.batch.places.reading`.
    """
    pattern = Pattern(parts)
    if hasattr(system, "call_s3"):
        deep = len(parts) > 1 or parts[0] == ANY_DEPTH
        for name in _s3_names(system, folder, _fixed_start(parts[0]), deep=deep):
            if pattern.matches(name):
                yield name
    else:
        yield from _listed(system, folder, pattern)


def _fixed_start(part: str) -> str:
    """Return the characters of a part before its first special one."""
    return part[: next((k for k, character in enumerate(part) if is_glob(character)), len(part))]


def _s3_names(system: Any, folder: str, start: str, *, deep: bool) -> Iterator[str]:
    """Yield the keys below a folder, page by page: s3fs's own listings are whole, and stay in its cache."""
    bucket, _, key = folder.strip("/").partition("/")
    root = f"{key}/" if key else ""
    settings = {"Bucket": bucket, "Prefix": root + start, **({} if deep else {"Delimiter": "/"}), **system.req_kw}
    while True:
        page = system.call_s3("list_objects_v2", **settings)
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix(root)
            if name and not name.endswith("/"):  # an empty object that stands for a folder
                yield name
        if not page.get("IsTruncated"):
            return
        settings["ContinuationToken"] = page["NextContinuationToken"]


def _listed(system: Any, folder: str, pattern: Pattern) -> Iterator[str]:
    """Walk as `inst.batch.folders.files_below` does."""
    waiting = [("", pattern.start)]
    base = folder.rstrip("/")
    while waiting:
        path, state = waiting.pop()
        children = []
        for entry in system.ls(f"{base}/{path}".rstrip("/") if path else folder, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            following = pattern.step(state, name)
            is_folder = entry["type"] == "directory"
            if following and (pattern.continues(following) if is_folder else pattern.accepts(following)):
                children.append((is_folder, name, following))
        system.invalidate_cache()  # it would keep every listing
        children.sort(key=lambda child: child[:2])
        yield from (f"{path}{name}" for is_folder, name, _ in children if not is_folder)
        waiting += [(f"{path}{name}/", following) for is_folder, name, following in reversed(children) if is_folder]
