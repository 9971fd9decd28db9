"""Download one file, by name and sha256, from the package index in pip's configuration.

This is for archives whose *contents* are needed. pip itself would build them, which runs their `setup.py`; this module
only reads bytes. The index, its certificate, proxy and timeout are from pip's own configuration (files and
environment), or pip's built-in defaults.
"""

import ast
import hashlib
import math
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

from inst.errors import InstError
from inst.files.reading import parse_json
from inst.texts import cut

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far, and the bytes in total if the server states them."""


_BROKEN_TRANSFER = (TimeoutError, ConnectionError, ssl.SSLError)
"""The OSErrors of the network. The other OSErrors are errors of the disk, which the caller handles."""


_LARGEST_PAGE = 64 * 2**20  # bytes
_LARGEST_FILE = 2**30  # bytes


class PackageIndexError(Exception):
    """No package index delivered the file; the message is the reason in one line."""


@dataclass(frozen=True)
class Release:
    """A file of a project on a package index; the bytes of `filename` must have the hash `sha256`."""

    project: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class PipSettings:
    """pip's settings: package indexes and find-links addresses in the order of search, and the connection settings."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    certificate: str | None = None
    proxy: str | None = None
    timeout: float = 15.0


def pip_settings() -> PipSettings:
    """Return pip's settings from `pip config list`, and its default index from `pip install --help`."""
    options: dict[str, str] = {}
    lines = _pip("config", "list").splitlines()
    for section in ("global.", "install.", ":env:."):  # each section overrides the previous one, as in pip
        for line in lines:
            name, _, value = line.partition("=")
            if name.startswith(section):
                options[name.removeprefix(section)] = _literal(value)
    indexes: list[str] = []
    if options.get("no-index", "").lower() not in ("1", "true", "t", "yes", "y", "on"):
        indexes = [options.get("index-url") or _default_index(), *options.get("extra-index-url", "").split()]
    return PipSettings(
        indexes=tuple(indexes),
        find_links=tuple(options.get("find-links", "").split()),
        certificate=options.get("cert"),
        proxy=options.get("proxy"),
        timeout=_seconds(options.get("timeout") or options.get("default-timeout")),
    )


def _literal(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise PackageIndexError(f"pip's configuration has an entry that cannot be read: {cut(value, 60)}") from None


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or PipSettings.timeout)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 86_400:  # also for NaN
        raise PackageIndexError(f"pip's configuration has the timeout {cut(str(text), 60)}")
    return seconds


def download(
    release: Release, target: IO[bytes], progress: Progress | None = None, settings: PipSettings | None = None
) -> None:
    """Download the release's file to `target` and check its hash.

    Args:
        release: the file to download.
        target: an empty file, open for writing, at its start.
        progress: called with the progress of the transfer.
        settings: settings to use; `pip_settings()` if not given.

    Raises:
        PackageIndexError: no index has the file or can be reached, or the file has another hash.
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
        # ValueError: an address that is none, on the page or in pip's configuration.
        except (PackageIndexError, urllib.error.URLError, HTTPException, ValueError, *_BROKEN_TRANSFER) as error:
            reasons.append(f"{place}: {cut(str(getattr(error, 'reason', None) or error), 200)}")
    raise PackageIndexError("; ".join(reasons) or "pip is configured to use no package index (no-index)")


# --- pip's own configuration ------------------------------------------------------------------------------------------


def _pip(*arguments: str) -> str:
    # COLUMNS prevents line breaks in addresses; NO_COLOR and the version check setting prevent other additions.
    environment = os.environ | {"COLUMNS": "10000", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise PackageIndexError(f"pip does not run in this Python, so its package index is unknown: {reason}")
    return answer.stdout


def _default_index() -> str:
    found = re.search(r"--index-url <url>.*?\(default:? (\S+?)\)", _pip("install", "--help"), re.DOTALL)
    if not found:
        raise PackageIndexError("pip does not state its package index; set one with PIP_INDEX_URL")
    return found[1]


def _places(project: str, settings: PipSettings) -> Iterator[tuple[str, str]]:
    """Yield each address that pip would search, and the address of the page that lists the project's files."""
    name = re.sub(r"[-_.]+", "-", project).lower()  # normalised as in PEP 503
    for base in settings.indexes:
        address = _address(base)
        yield address, f"{address.rstrip('/')}/{name}/"
    for place in settings.find_links:
        address = _address(place)
        yield address, address


def _address(place: str) -> str:
    """Return the URL of an index address or of a plain folder, without user name and password."""
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", place):  # two letters or more, because a drive letter is no scheme
        return Path(os.path.abspath(os.path.expanduser(place))).as_uri()
    parts = urllib.parse.urlsplit(place)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


# --- the simple index: PEP 503 (HTML), PEP 691 (JSON), plain folders --------------------------------------------------


def _find(page: str, release: Release, opener: urllib.request.OpenerDirector, timeout: float) -> str | None:
    """Return the address of the release's file on an index page; None if the page is missing or does not list it."""
    other_hash = None
    for url, sha256 in _links(page, opener, timeout):
        filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        if filename == release.filename:
            if sha256 in (None, release.sha256):
                return url
            other_hash = sha256
    if other_hash:
        raise PackageIndexError(f"its {release.filename} has sha256 {other_hash[:12]}..., not {release.sha256[:12]}...")
    return None


def _links(page: str, opener: urllib.request.OpenerDirector, timeout: float) -> list[tuple[str, str | None]]:
    """Return (address, sha256 or None) of every file on an index page."""
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
            base, kind, body = answer.url, answer.headers.get_content_type(), answer.read(_LARGEST_PAGE + 1)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise
    if len(body) > _LARGEST_PAGE:
        raise PackageIndexError("its page is too large")
    if kind.endswith("json"):
        try:
            files = parse_json(body, "its page")["files"]
            return [(urllib.parse.urljoin(base, file["url"]), file["hashes"].get("sha256")) for file in files]
        except (InstError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PackageIndexError("its page is not that of a package index") from error
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
        if settings.certificate:  # as in pip, it replaces the system's certificates
            bundle = Path(settings.certificate)
            context = ssl.create_default_context(
                cafile=None if bundle.is_dir() else str(bundle), capath=str(bundle) if bundle.is_dir() else None
            )
    except OSError as error:
        raise PackageIndexError(f"the certificate file of pip's configuration cannot be read: {error}") from error
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    for place in (*settings.indexes, *settings.find_links):
        parts = urllib.parse.urlsplit(place)
        user, password = _credentials(parts)
        if user is not None:  # for all addresses of that host, but not for other hosts after a redirect
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
    """Return user and password from the address, or else from the user's netrc file, as in pip."""
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
        length = answer.headers.get("Content-Length") or ""
        total = int(length) if re.fullmatch("[0-9]{1,15}", length) else None
        while block := answer.read(1 << 20):
            target.write(block)
            digest.update(block)
            received += len(block)
            if received > _LARGEST_FILE:
                raise PackageIndexError(f"its {release.filename} is larger than {_LARGEST_FILE // 2**20} MB")
            if progress:
                progress(received, total)
    if total is not None and received < total:
        raise PackageIndexError(f"the transfer of {release.filename} broke off after {received} of {total} bytes")
    if digest.hexdigest() != release.sha256:
        raise PackageIndexError(
            f"its {release.filename} has sha256 {digest.hexdigest()[:12]}..., not {release.sha256[:12]}..."
        )
