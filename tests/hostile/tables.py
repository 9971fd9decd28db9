"""Lists and tables of batches, prompts, captions, consent texts, and what earlier runs left in folders."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .commands import Name
from .harness import Case
from .pictures import bomb, special
from .styles import CONTROLS, DEEP

TEXTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n\n \n\t\n",
    "no-utf8": b"photo,style,prompt\n\xff\xfe,\xff\n",
    "utf16": "photo,style\nphotos/one.png,style.safetensors\n".encode("utf-16"),
    "nul": b"photo,style,prompt\n\0,\0,\0\n",
    "controls": f"photo,style,prompt\n{CONTROLS},{CONTROLS},{CONTROLS}\n".encode(),
    "long-line": b"x" * 8_000_000,
    "long-field": b'photo,style,prompt\n"' + b"x" * 300_000 + b'",style.safetensors,x\n',
    "quotes": b'photo,style,prompt\n"photos/one.png,style.safetensors\n' * 50,
    "columns": b"," * 200_000 + b"\n" + b"," * 200_000,
    "same-columns": b"photo,photo,style,prompt,prompt\n1,2,3,4,5\n",
    "no-columns": b"a,b,c\n1,2,3\n",
    "short-rows": b"photo,style,prompt\nx\n",
    "deep": DEEP.encode(),
    "json-list": b"[1, 2]",
    "json-number": b"1" * 5000,
    "json-overflow": b'{"photo": -1e400, "style": 1e999, "prompt": NaN, "name": 1e400}',
    "json-controls": b'{"photo": "\\u001b[2K", "style": "\\ud800", "prompt": "\\u0000"}',
    "json-list-values": b'{"photo": [1], "style": {}, "prompt": null, "bridge__night": [[]]}',
    "paths": b"photo,style,prompt\n../../../etc/passwd,/dev/zero,x\n~nosuchuser/x,file:///etc/passwd,y\n",
    "devices": b"/dev/zero\n/dev/stdin\n/proc/self/mem\n",
    "urls": b"s3://\nhttp://\nfile://\nmemory://x\n://\nhttp://[\n",
    "many": b"photos/one.png\n" * 3 + b"x" * 60 + b"\n",
}

PLACES: dict[str, tuple[Name, dict[str, Any]]] = {
    "pairs.csv": (("batch", "transfer"), {"photos": None, "styles": None, "pairs": "bad.csv"}),
    "pairs.jsonl": (("batch", "transfer"), {"photos": None, "styles": None, "pairs": "bad.jsonl"}),
    "prompts.csv": (("batch", "generate"), {"prompts": "bad.csv"}),
    "prompts.jsonl": (("batch", "generate"), {"prompts": "bad.jsonl"}),
    "prompts.txt": (("batch", "generate"), {"prompts": "bad.txt"}),
    "list.txt": (("batch", "transfer"), {"photos": ["bad.txt"]}),
    "styles.txt": (("batch", "transfer"), {"styles": ["bad.txt"]}),
    "prompts.json": (("evaluate",), {"prompts": "bad.json"}),
    "prompts.tsv": (("evaluate",), {"prompts": "bad.tsv"}),
    "captions.json": (("compare",), {"methods": "inst-instant,sdm", "captions": "bad.json"}),
    "consent.txt": (("study", "create"), {"consent": "bad.txt"}),
    "token.txt": (("studio",), {"token": None, "token_file": "bad.txt"}),
}


def texts_of_tables() -> Iterator[Case]:
    kinds: dict[str, Callable[[str], object]] = {kind: partial(_write, data) for kind, data in TEXTS.items()}
    for place, (command, changes) in PLACES.items():
        for kind, write in (kinds | special(place)).items():
            if kind.startswith(("json", "deep")) != ("json" in place) and kind in TEXTS and "no-utf8" not in kind:
                continue
            name = f"bad.{place.split('.')[1]}"
            yield Case(f"tables/{kind}/{place}", command, changes, partial(write, name))


def _write(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def _parquet(table: Callable[[], pa.Table], name: str) -> None:
    pq.write_table(table(), name)


PARQUET: dict[str, Callable[[], pa.Table]] = {
    "no-rows": lambda: pa.table({"photo": pa.array([], pa.string()), "style": pa.array([], pa.string())}),
    "numbers": lambda: pa.table({"photo": [1, 2], "style": [1.5, None], "prompt": [3, 4], "image": [5, 6]}),
    "bytes": lambda: pa.table({"photo": [b"\xff"], "style": [b"\xfe"], "prompt": [b"\xff"], "image": [b"\x89PNG"]}),
    "nested": lambda: pa.table({"photo": [[["x"]]], "style": [{"a": 1}], "prompt": [[1]], "image": [{"bytes": None}]}),
    "bomb": lambda: pa.table({"image": [bomb(13_000)]}),
    "name-controls": lambda: pa.table({"image": [{"bytes": b"x", "path": CONTROLS}], CONTROLS: [CONTROLS]}),
    "text-long": lambda: pa.table({"photo": ["x" * 5_000_000], "style": ["y"], "prompt": ["z" * 5_000_000]}),
    "zeros": lambda: pa.table({"photo": pa.array(["x" * 999] * 3_000).dictionary_encode()}),
}
_PARQUET_PLACES: dict[str, tuple[Name, dict[str, Any]]] = {
    "pairs": (("batch", "transfer"), {"photos": None, "styles": None, "pairs": "bad.parquet"}),
    "prompts": (("batch", "generate"), {"prompts": "bad.parquet"}),
    "photos": (("batch", "transfer"), {"photos": ["bad.parquet"]}),
    "paintings": (("batch", "learn"), {"paintings": ["bad.parquet"], "column": CONTROLS}),
}


def parquet() -> Iterator[Case]:
    kinds: dict[str, Callable[[str], object]] = {kind: partial(_parquet, table) for kind, table in PARQUET.items()}
    kinds |= {
        kind: partial(_write, data)
        for kind, data in (("empty", b""), ("text", b"PAR1 no table PAR1"), ("ends", b"PAR1\xff\xff\xff\x7fPAR1"))
    }
    for place, (command, changes) in _PARQUET_PLACES.items():
        for kind, write in (kinds | special(place)).items():
            yield Case(f"parquet/{kind}/{place}", command, changes, partial(write, "bad.parquet"))


def _tar(*members: tuple[str, bytes, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content, kind in members:
            one = tarfile.TarInfo(name)
            one.size, one.type, one.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(one, io.BytesIO(content))
    return data.getvalue()


TARS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no archive" * 1000,
    "no-members": lambda: _tar(),
    "paths": lambda: _tar(("../../x.png", b"x", tarfile.REGTYPE), ("/etc/x.png", b"x", tarfile.REGTYPE)),
    "links": lambda: _tar(("a.png", b"", tarfile.SYMTYPE), ("b.png", b"", tarfile.LNKTYPE)),
    "devices": lambda: _tar(("a.png", b"", tarfile.CHRTYPE), ("b.png", b"", tarfile.FIFOTYPE)),
    "controls": lambda: _tar((f"{CONTROLS}.png", b"x", tarfile.REGTYPE)),
    "same-names": lambda: _tar(*[("a.png", b"x", tarfile.REGTYPE)] * 50),
    "bomb": lambda: _tar(("a.png", bomb(13_000), tarfile.REGTYPE)),
    "long-name": lambda: _tar(("x" * 100_000 + ".png", b"x", tarfile.REGTYPE)),
    "size-8-GB": lambda: _sized(b"77777777777"),
    "size-negative": lambda: _sized(b"\xff" * 11),
    "size-huge": lambda: _sized(b"\x80" + b"\x7f" * 10),
}


def _sized(size: bytes) -> bytes:
    """An archive whose first member says that it is larger than the archive."""
    data = bytearray(_tar(("a.png", b"x", tarfile.REGTYPE)))
    data[124 : 124 + len(size)] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def tars() -> Iterator[Case]:
    for kind, make in TARS.items():
        for ending in ("tar", "tar.gz"):
            for place, command in (("photos", ("batch", "transfer")), ("paintings", ("batch", "learn"))):
                if kind == "bomb" and (place, ending) != ("photos", "tar"):
                    continue  # it takes long to find out
                name = f"bad.{ending}"
                yield Case(f"tars/{kind}/{place}.{ending}", command, {place: [name]}, partial(_write_tar, make, name))


def _write_tar(make: Callable[[], bytes], name: str) -> None:
    import gzip

    Path(name).write_bytes(gzip.compress(make()) if name.endswith("gz") else make())


_LEFT = {
    "manifest.jsonl": ("batch", "transfer"),
    "manifest.parquet": ("batch", "transfer"),
    "film.json": ("batch", "film"),
}
_MORE = {
    "header": b'{"inst": "0.1.0", "format": 99, "settings": {"command": "learn"}}\n',
    "settings-list": b'{"inst": "0.1.0", "format": 1, "settings": []}\n',
    "settings-controls": b'{"inst": "0.1.0", "format": 1, "settings": {"command": "\\u001b[2K\\n"}}\n',
    "settings-huge": b'{"inst": "0.1.0", "format": 1, "settings": {"command": "transfer", "seed": 1e999}}\n',
    "row-list": b'{"inst": "0.1.0", "format": 1, "settings": {"command": "transfer"}}\n[1]\n{"input": 5}\n',
}


def left() -> Iterator[Case]:
    """What lies in the folder of the results already."""
    for name, command in _LEFT.items():
        kinds: dict[str, Callable[[str], object]] = {
            kind: partial(_write, data) for kind, data in (TEXTS | _MORE).items()
        }
        for kind, write in (kinds | special(name)).items():
            if kind not in ("missing", "huge-hole"):
                yield Case(f"left/{kind}/{name}", command, {}, partial(_leave, write, name))


def _leave(write: Callable[[str], object], name: str) -> None:
    Path("made").mkdir()
    write(f"made/{name}")
