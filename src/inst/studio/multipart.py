"""Uploaded files of a form, as they arrive: nothing is kept in memory, or in a folder of the system's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from inst.errors import UsageError
from inst.studio.uploads import Receiver, Uploads

_MOST_PARTS = 64
_LARGEST_FIELD = 1024
_LARGEST_HEAD = 16 * 1024


@dataclass(frozen=True)
class _Part:
    """The head of one part of a form."""

    field: str
    file: str | None  # the file's name; None if the part is no file


async def received(request: Request, uploads: Uploads, field: str) -> AsyncGenerator[tuple[str, Receiver], None]:
    """Yield the name of each file in a field of the request's form, and its receiver with all of its bytes.

    A partial file on the disk is gone when the next file comes.

    Raises:
        UsageError: the request is not such a form.
        TooLarge: a file is too large; the rest of the request is not read.
    """
    with ExitStack() as stack:
        receiver = None
        async for part, data in _parts(request):
            if part.field != field or part.file is None:
                continue
            if receiver is None:
                receiver = stack.enter_context(uploads.receive())
            if data is None:
                yield part.file, receiver
                stack.close()
                receiver = None
            else:
                receiver.write(data)


@asynccontextmanager
async def form_with_file(
    request: Request, uploads: Uploads, field: str
) -> AsyncGenerator[tuple[dict[str, str], Receiver], None]:
    """Yield the other fields of the request's form, in any order, and the receiver of the file in this field.

    Raises:
        UsageError: the request is not such a form.
        TooLarge: the file is too large; the rest of the request is not read.
    """
    with uploads.receive() as receiver:
        fields: dict[str, bytes] = {}
        files = 0
        async with aclosing(_parts(request)) as parts:
            async for part, data in parts:
                if part.file is None:
                    fields[part.field] = fields.get(part.field, b"") + (data or b"")
                    if len(fields[part.field]) > _LARGEST_FIELD:
                        raise UsageError("A field of the form is too long", "send a shorter one")
                elif data is None:
                    files += part.field == field
                elif part.field != field or files:
                    raise UsageError("The form has more than one file", "send one")
                else:
                    receiver.write(data)
        if files != 1:
            raise UsageError(f'The form has no field "{field}" with one file', "add it")
        yield {name: _text(value) for name, value in fields.items()}, receiver


async def _parts(request: Request) -> AsyncGenerator[tuple[_Part, bytes | None], None]:
    """Yield the data of each part piece by piece, and None at its end."""
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise UsageError("The request is not a form with a file", "send multipart/form-data")
    found: list[tuple[_Part, bytes | None]] = []
    name, value = bytearray(), bytearray()
    head: dict[str, bytes] = {}
    part = _Part("", None)
    parts = size = 0  # size of the head
    complete = False

    def begin() -> None:
        nonlocal parts, size
        parts, size = parts + 1, 0
        if parts > _MOST_PARTS:
            raise UsageError(f"The form has more than {_MOST_PARTS} parts", "send fewer")

    def add(text: bytearray, data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > _LARGEST_HEAD:
            raise UsageError("A part of the form has a head that is too large", "send a shorter name")
        text.extend(data)

    def end_header() -> None:
        head[name.decode("latin-1").lower()] = bytes(value)
        name.clear()
        value.clear()

    def end_head() -> None:
        nonlocal part
        _, given = parse_options_header(head.get("content-disposition", b""))
        file = given.get(b"filename")
        part = _Part(_text(given.get(b"name", b"")), None if file is None else _text(file))
        head.clear()

    def end() -> None:
        nonlocal complete
        complete = True

    def take(data: bytes, start: int, end: int) -> None:
        found.append((part, data[start:end]))

    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, end: add(name, data[start:end]),
                "on_header_value": lambda data, start, end: add(value, data[start:end]),
                "on_header_end": end_header,
                "on_headers_finished": end_head,
                "on_part_data": take,
                "on_part_end": lambda: found.append((part, None)),
                "on_end": end,
            },
        )
        async for chunk in request.stream():
            parser.write(chunk)
            for one in found:
                yield one
            found.clear()
            await asyncio.sleep(0)  # a body that is here already must not keep others waiting
    except FormParserError:
        raise UsageError("The form of the request is damaged", "send it again") from None
    if not complete:
        raise UsageError("The form of the request has no end", "send it again")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
