"""Parquet files with a column of pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from inst.batch.items import Item, safe_name, too_large
from inst.batch.lists import named_item
from inst.batch.places import LARGEST_PACKED, Place, missing_library, printable
from inst.errors import Argument, InstError, UsageError, first_line
from inst.texts import cut

_BUFFER = 1 << 20
"""So many bytes of a column are read at once; without it, a whole row group would be in memory."""

_PICTURES = ("image", "picture", "photo", "painting")
_NAMES = ("name", "file_name", "filename", "key", "__key__", "id", "path")


@contextmanager
def open_parquet(place: Place) -> Iterator[Any]:
    """Open a Parquet file as a `pyarrow.parquet.ParquetFile`; errors of pyarrow in the block become InstError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_library(error) from None
    with place.open() as file:
        try:
            yield pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER)
        except InstError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # also of text that is not UTF-8
            why = printable(first_line(error))[:200]
            raise InstError(f"{place.shown} is damaged, or no Parquet file ({why})", "write the file again") from None


def parquet_rows(table: Any, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some columns, as Python values."""
    # One by one, which takes microseconds: a small file can have a large value that many rows share, and each row that
    # is in memory has a copy of it.
    for row in table.iter_batches(batch_size=1, columns=list(columns), use_threads=False):
        for k in range(row.num_rows):
            yield {name: row.column(name)[k].as_py() for name in columns}


def items_of_parquet(file: Item, column: str | None, endings: Collection[str]) -> Iterator[Item]:
    """Yield the pictures of a Parquet file, row by row.

    The column of pictures holds bytes, structs with `bytes` (as in datasets of Hugging Face), or paths and URLs,
    relative to the file's folder. A name is taken from a column of names, else from the struct's `path`, else it is the
    file's name and the number of the row, from 0.

    Args:
        file: the Parquet file.
        column: the column of pictures; None finds it by its name, or because no other can be it.
        endings: endings that are removed from names.

    Raises:
        UsageError: there is no such column, or it cannot hold pictures.
        InstError: the file cannot be read, is damaged, or has no column of pictures, or several.
    """
    assert file.file is not None
    with open_parquet(file.file) as table:
        schema = table.schema_arrow
        pictures = _picture_column(schema, column, file.place)
        names = next((name for name in _NAMES if name != pictures and _holds_names(schema, name)), None)
        for number, row in enumerate(parquet_rows(table, [pictures] if names is None else [pictures, names])):
            value, name = row[pictures], None if names is None else row[names]
            yield _item(file, number, value, name, endings)


def _item(file: Item, number: int, value: Any, name: Any, endings: Collection[str]) -> Item:
    place = f"{file.place} row {number}"
    assert file.file is not None
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, value)
    path, data = path if isinstance(path, str) else None, data if isinstance(data, bytes) else None
    given = path if name is None else name
    safe = f"{file.name}/{number}" if given in (None, "") else safe_name(str(given), endings)
    if data is not None:
        if len(data) > LARGEST_PACKED:
            return Item(safe, place, problem=too_large(place, len(data)))
        return Item(safe, place, data=data)
    if path:
        item = named_item(path, place, file.file, endings)
        return Item(safe if name is not None else item.name, item.place, file=item.file, problem=item.problem)
    return Item(safe, place, problem=InstError(f"{place} has no picture", "fill the row, or leave it out"))


def _picture_column(schema: Any, column: str | None, shown: str) -> str:
    """Return the name of the column of pictures."""
    known = cut(", ".join(printable(name) for name in schema.names), 300)
    kinds = _kinds(schema)
    if column is not None:
        if column not in kinds:
            raise UsageError(f'{shown} has no column "{cut(printable(column), 60)}"', f"use one of {known}")
        if kinds[column] is None:
            raise UsageError(
                f'The column "{cut(printable(column), 60)}" of {shown} cannot hold pictures',
                "give one with bytes, with structs that have bytes, or with paths",
            )
        return column
    named = [name for wanted in _PICTURES for name in schema.names if name.lower() == wanted and kinds[name]]
    stored = [name for name in schema.names if kinds[name] == "bytes"]
    paths = [name for name in schema.names if kinds[name] == "path"]
    if found := named[:1] or stored or paths[: len(paths) == 1]:
        if len(found) > 1:
            several = cut(", ".join(map(printable, found)), 300)
            raise UsageError(f"{shown} has several columns of pictures ({several})", *_CHOOSE)
        return str(found[0])
    raise InstError(f"{shown} has no column of pictures", *_CHOOSE, f"; it has {known or 'none'}")


_CHOOSE = ("name the column with ", Argument("column"))


def _kinds(schema: Any) -> dict[str, str | None]:
    """Return what the columns can be: "bytes" with pictures, "path" with text, None for another or an ambiguous one."""
    kinds: dict[str, str | None] = {}
    for field in schema:  # by name, pyarrow would look through all of them each time
        kinds[field.name] = None if field.name in kinds else _kind(field.type)
    return kinds


def _kind(kind: Any) -> str | None:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return "bytes" if position >= 0 and _is_binary(kind.field(position).type) else None
    return "bytes" if _is_binary(kind) else "path" if is_text(kind) else None


def _holds_names(schema: Any, name: str) -> bool:
    import pyarrow.types as types

    if schema.names.count(name) != 1:
        return False
    kind = schema.field(name).type
    return bool(is_text(kind) or types.is_integer(kind.value_type if types.is_dictionary(kind) else kind))


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def is_text(kind: Any) -> bool:
    """Whether a column of this type of pyarrow holds text."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
