"""Bad pictures, in every place where a picture is read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .commands import Name
from .harness import Case

BAD = "bad.png"


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """The bytes of a PNG file with these chunks, whatever they say."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def header(width: int, height: int, depth: int = 8, colours: int = 2, interlace: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace)


def zeros(count: int) -> bytes:
    """Compressed zeros: a thousandth of their number."""
    checksum = (count % 65521) << 16 | 1  # Adler's, of zeros
    return b"\x78\xda" + repeated(bytes(1 << 20), count >> 20, bytes(count % (1 << 20))) + struct.pack(">I", checksum)


def repeated(piece: bytes, count: int, end: bytes = b"") -> bytes:
    """A deflate stream of `count` times `piece`, without the time to compress it so often."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packed * count + packer.compress(end) + packer.flush()


def bomb(side: int, depth: int = 1, interlace: int = 0) -> bytes:
    """A grey picture of `side` x `side` pixels in a few kilobytes."""
    rows = zeros(side * (1 + (side * depth + 7) // 8))
    return png(header(side, side, depth, 0, interlace), (b"IDAT", rows), (b"IEND", b""))


def _good(kind: str = "PNG", **more: Any) -> bytes:
    path = Path("good-for-bad")
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(path, kind, **more)
    data = path.read_bytes()
    path.unlink()
    return data


def _text_bomb() -> bytes:
    return png(
        header(1, 1), (b"zTXt", b"inst\0\0" + zeros(1 << 30)), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")
    )


def _profile_bomb() -> bytes:
    return png(header(1, 1), (b"iCCP", b"x\0\0" + zeros(1 << 30)), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b""))


def _many_frames() -> bytes:
    frame = Image.new("P", (1, 1))
    frame.save("many.gif", save_all=True, append_images=[Image.new("P", (1, 1), n % 256) for n in range(2000)])
    data = Path("many.gif").read_bytes()
    Path("many.gif").unlink()
    return data


def _tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A TIFF file of these entries: tag, type, count, value."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + body + bytes(4)


def _exif(data: bytes) -> bytes:
    good = _good("JPEG")
    return good[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + good[2:]


CONTENTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one-byte": lambda: b"\x89",
    "text": lambda: b"this is no picture",
    "controls": lambda: b"\x1b]0;owned\x07\x1b[2J" * 100,
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(owned) (w) file closefile\nshowpage\n",
    "pdf": lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<</Root 1 0 R>>\n%%EOF\n",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "xbm": lambda: b"#define x_width 99999\n#define x_height 99999\nstatic char x_bits[] = {\n0x00};\n",
    "ppm-huge": lambda: b"P6\n60000 60000\n255\n",
    "header-only": lambda: png(header(64, 64)),
    "no-rows": lambda: png(header(64, 64), (b"IEND", b"")),
    "no-pixels": lambda: png(header(0, 0), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
    "widest": lambda: png(header(2**31 - 1, 1), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")),
    "largest": lambda: png(header(2**31 - 1, 2**31 - 1), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")),
    "cut": lambda: _good()[:-200],
    "cut-jpeg": lambda: _good("JPEG")[:-300],
    "cut-webp": lambda: _good("WEBP")[:-100],
    "bad-checksum": lambda: _good()[:40] + b"\xff" + _good()[41:],
    "bomb-bits": lambda: bomb(13_000),
    "bomb-grey": lambda: bomb(12_000, 8),
    "bomb-16-bits": lambda: bomb(4_000, 16),
    "bomb-interlaced": lambda: bomb(13_000, 1, 1),
    "text-bomb": _text_bomb,
    "profile-bomb": _profile_bomb,
    "thin": lambda: png(header(1, 60_000, 8, 0), (b"IDAT", zlib.compress(bytes(120_000))), (b"IEND", b"")),
    "flat": lambda: png(header(60_000, 1, 8, 0), (b"IDAT", zlib.compress(bytes(60_001))), (b"IEND", b"")),
    "one-pixel": lambda: png(header(1, 1), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")),
    "many-frames": _many_frames,
    "tiff-strips": lambda: _tiff([(256, 4, 1, 64), (257, 4, 1, 64), (273, 4, 2**31, 8), (279, 4, 2**31, 8)]),
    "tiff-loop": lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8),
    "tiff-huge": lambda: _tiff([(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), (258, 3, 1, 8), (259, 3, 1, 1)]),
    "bmp-negative": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, -64, -64, 1, 24, 0, 9, 1, 1, 0, 0)
    ),
    "gif-huge": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",",
    "webp-huge": lambda: b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff",
    "exif-loop": lambda: _exif(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
    "exif-rotation": lambda: _exif(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\xff\xff\0\0\0\0\0\0"),
    "profile": lambda: _good(icc_profile=b"\xff" * 4096),
    "lfs-pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
}
"""Contents of files, by the kind of trouble."""

USABLE = {
    "bomb-bits",
    "bomb-interlaced",
    "bomb-grey",
    "one-pixel",
    "thin",
    "flat",
    "many-frames",
    "exif-loop",
    "exif-rotation",
    "profile",
    "bomb-16-bits",
    "text-bomb",
}
"""Kinds that are pictures, though odd ones. They may be used, within the limits."""

SPECIAL: dict[str, Callable[[str], object]] = {
    "missing": lambda name: None,
    "folder": lambda name: Path(name).mkdir(),
    "link-loop": lambda name: os.symlink(name, name),
    "link-nowhere": lambda name: os.symlink("nowhere", name),
    "zeros-for-ever": lambda name: os.symlink("/dev/zero", name),
    "pipe": lambda name: os.mkfifo(name),
    "process-memory": lambda name: os.symlink("/proc/self/mem", name),
    "terminal": lambda name: os.symlink("/dev/tty", name),
    "huge-hole": lambda name: hole(name),
}
"""What is no regular file, or none of a size that can be read."""


EVERYWHERE_SPECIAL = {"folder", "zeros-for-ever", "pipe", "huge-hole"}


def special(place: str) -> dict[str, Callable[[str], object]]:
    """The special files for a place: the worst ones, and one of the others, which take turns."""
    rest = [kind for kind in SPECIAL if kind not in EVERYWHERE_SPECIAL]
    turn = rest[sum(map(ord, place)) % len(rest)]
    return {kind: write for kind, write in SPECIAL.items() if kind in EVERYWHERE_SPECIAL or kind == turn}


def hole(name: str) -> None:
    """A file of 3 GB that takes no room."""
    with open(name, "wb") as file:
        file.truncate(3 << 30)


PLACES: dict[str, tuple[Name, dict[str, Any]]] = {
    "photo": (("transfer",), {"photo": BAD}),
    "painting": (("transfer",), {"style": [BAD]}),
    "mask": (("transfer",), {"mask": BAD}),
    "control": (("generate",), {"controlnet": "controlnet", "control": "depth", "control_picture": BAD}),
    "learned": (("learn",), {"paintings": [BAD]}),
    "sheet": (("sheet",), {"photo": BAD}),
    "repeated": (("repeat",), {"picture": BAD}),
    "repeated-photo": (("repeat",), {"photo": BAD}),
    "imported": (("style", "import"), {"painting": BAD}),
    "embedding": (("style", "import"), {"file": BAD}),
    "result": (("evaluate",), {"results": BAD, "photos": "photo.png", "paintings": "painting.png"}),
    "compared": (("compare",), {"photos": [BAD]}),
    "compared-painting": (("ablate",), {"paintings": [BAD]}),
}
MANY: dict[str, tuple[Name, dict[str, Any], str]] = {
    "photos": (("batch", "transfer"), {}, "photos/three.png"),
    "paintings": (("batch", "learn"), {}, "photos/three.png"),
    "styles": (("batch", "generate"), {}, "styles/three.png"),
    "frames": (("batch", "film"), {}, "photos/three.png"),
    "study": (("study", "create"), {}, "comparison/inst/bridge__night.png"),
    "results": (("evaluate",), {}, "comparison/inst/bridge__night.png"),
}
"""Places in folders: what can be used is used, so these need not fail."""
EVERYWHERE = {"empty", "controls", "postscript", "cut", "largest"}
BOMBED = ("photo", "painting", "learned", "embedding", "imported", "photos")
"""Kinds that are tried in every place; the others as a photo, as a painting and in a batch."""


def pictures() -> Iterator[Case]:
    kinds = {kind: partial(_write, make) for kind, make in CONTENTS.items()} | SPECIAL
    for kind, write in kinds.items():
        for place, (command, changes) in PLACES.items():
            if _is_tried(kind, place) or place == "photo":
                made = partial(write, BAD)
                yield Case(f"pictures/{kind}/{place}", command, changes, made, refused=kind not in USABLE)
        for place, (command, changes, name) in MANY.items():
            if _is_tried(kind, place) and kind != "missing":
                yield Case(f"pictures/{kind}/{place}", command, changes, partial(_replace, write, name))


def _is_tried(kind: str, place: str) -> bool:
    return kind in EVERYWHERE or kind in special(place) or (kind == "bomb-bits" and place in BOMBED)


def _write(make: Callable[[], bytes], name: str) -> None:
    Path(name).write_bytes(make())


def _replace(write: Callable[[str], object], name: str) -> None:
    Path(name).unlink(missing_ok=True)
    write(name)


def with_text(path: str, key: str, text: str) -> None:
    """Write a good picture with a text chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text, zip=True)
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
