"""WebDataset shards: tar files of pictures, read as a stream."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from inst.batch.items import Item, safe_name, too_large
from inst.batch.places import LARGEST_PACKED, Place, printable
from inst.errors import InstError, first_line

_LARGEST_HEADER = 1 << 20
"""The largest extended header in bytes: tarfile reads it as a whole."""

_MOST_HEADERS = 16
"""Extended headers before one member. Each can name another 100,000 fields, which are kept in memory."""

_MOST_FIELDS = 1_000
"""Fields that hold for all members of a shard."""

_PIECE = 1 << 20  # bytes

_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_ERRORS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError, RecursionError)
_LONGEST_SHOWN = 200


class _Member(tarfile.TarInfo):
    """A member whose header is checked before tarfile acts on it. tarfile alone ends silently at a damaged header.

    Each shard is read with a subclass of its own, which counts.
    """

    extended: ClassVar[int] = 0
    """Number of the extended headers since the latest member."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("it has no end mark, so it was not written or copied to its end")
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it has a sparse member")
        is_extended = member.type in (*_EXTENDED, tarfile.GNUTYPE_LONGLINK)
        cls.extended = cls.extended + 1 if is_extended else 0
        if is_extended and (member.size > _LARGEST_HEADER or cls.extended > _MOST_HEADERS):
            raise tarfile.ReadError("a header is too large")
        return member

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, *_: Any) -> None:
        """Note that a member is sparse. tarfile would read the list of its parts, which can be endless."""
        member.sparse = b""  # what typeshed takes for `issparse`


def items_of_shard(file: Item, endings: Collection[str]) -> Iterator[Item]:
    """Yield the pictures of a tar file, also of a compressed one, with their bytes. All names are untrusted.

    Members with other endings, links, devices and hidden files are passed over. A picture that is too large or sparse
    becomes an item with a problem.

    Raises:
        InstError: the file cannot be read, is no tar file, is damaged or ends too early; after the items before.
    """
    assert file.file is not None
    with (
        file.file.open() as opened,
        _translated(file.file),
        tarfile.open(fileobj=opened, mode="r|*", tarinfo=type("_Counted", (_Member,), {})) as archive,
    ):
        for member in _members(archive):
            name = member.name.rpartition("/")[2]
            ending = f".{name.rpartition('.')[2].lower()}"
            if not member.isreg() or ending not in endings or name.startswith("."):
                continue
            place = f"{file.place}/{printable(member.name[-_LONGEST_SHOWN:])}"
            key = safe_name(member.name, endings)
            if member.size > LARGEST_PACKED:
                yield Item(key, place, problem=too_large(place, member.size))
            elif member.issparse():
                yield Item(key, place, problem=InstError(f"{place} is sparse", "pack the shard without sparse files"))
            else:
                content = archive.extractfile(member)
                assert content is not None
                yield Item(key, place, data=content.read())


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members, and skip their data.

    tarfile itself skips data that is not there too, in as many steps as the header says: hours for 10**12 bytes.
    """
    stream: Any = archive.fileobj
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
        if len(archive.pax_headers) > _MOST_FIELDS:
            raise tarfile.ReadError("its headers have too many fields")
        if member.size < 0:  # as an extended header can say
            raise tarfile.ReadError("a member has a negative size")
        yield member
        while (left := archive.offset - stream.tell()) > 0:
            if not stream.read(min(left, _PIECE)):
                raise tarfile.ReadError("unexpected end of data")


@contextmanager
def _translated(place: Place) -> Iterator[None]:
    """Convert the errors of tarfile and of decompression to an InstError of one line."""
    try:
        yield
    except _ERRORS as error:
        why = printable(first_line(error))[:_LONGEST_SHOWN]
        raise InstError(f"{place.shown} is damaged ({why})", "copy or pack the shard again") from None
