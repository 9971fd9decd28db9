import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inst.evaluation.networks import package_index
from inst.evaluation.networks.package_index import PackageIndexError, PipSettings, Release, download, pip_settings
from registry_server import FILENAME, FullDisk, Index, sdist, serve


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(sdist(tmp_path / "canary"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip without any configuration of this machine."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return monkeypatch


def release(archive: bytes) -> Release:
    return Release("Tiny.Weights", FILENAME, hashlib.sha256(archive).hexdigest())


def get(archive: bytes, *indexes: str, find_links: tuple[str, ...] = ()) -> bytes:
    target = io.BytesIO()
    download(release(archive), target, settings=PipSettings(indexes=indexes, find_links=find_links, timeout=5))
    return target.getvalue()


@pytest.mark.parametrize("form", ["json", "html", "html-without-hash"])
def test_download_reads_both_forms_of_the_simple_index(index: Index, form: str) -> None:
    index.form = form
    with serve(index) as address:
        assert get(index.archive, address) == index.archive
        assert get(index.archive, address + "/") == index.archive


def test_download_reads_folders_laid_out_as_an_index(index: Index, tmp_path: Path) -> None:
    project = tmp_path / "an index" / "tiny-weights"
    project.mkdir(parents=True)
    (project / FILENAME).write_bytes(index.archive)
    assert get(index.archive, str(project.parent)) == index.archive
    assert get(index.archive, project.parent.as_uri()) == index.archive
    assert get(index.archive, find_links=(str(project),)) == index.archive
    (project / "index.html").write_text(f'<a href="{FILENAME}#sha256={index.stated_sha256}">{FILENAME}</a>')
    assert get(index.archive, project.parent.as_uri()) == index.archive


def test_download_tries_the_next_index_when_one_fails(index: Index, tmp_path: Path) -> None:
    other = Index(index.archive[:-1] + b"x")  # the same name with other bytes
    other.form = "html-without-hash"
    with serve(index) as good, serve(other) as wrong:
        assert get(index.archive, "http://127.0.0.1:9/simple", str(tmp_path), wrong, good) == index.archive
    assert any(path.endswith(FILENAME) for path, _ in other.requests)


def test_a_failed_download_reports_the_reason_for_each_index(index: Index, tmp_path: Path) -> None:
    index.stated_sha256 = "0" * 64
    with serve(index) as address, pytest.raises(PackageIndexError) as caught:
        get(index.archive, address, tmp_path.as_uri(), "http://127.0.0.1:9/simple")
    assert "has sha256 000000000000..., not" in str(caught.value)
    assert f"{tmp_path.as_uri()} does not list it" in str(caught.value)
    assert "http://127.0.0.1:9/simple: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(path.endswith(FILENAME) for path, _ in index.requests)  # a stated hash saves the transfer


def test_download_refuses_an_incomplete_transfer(index: Index) -> None:
    index.cut_after = 100
    with serve(index) as address, pytest.raises(PackageIndexError, match=r"broke off after 100 of|IncompleteRead"):
        get(index.archive, address)


def test_download_refuses_a_page_that_is_no_index(index: Index) -> None:
    index.page = lambda: ("application/json", b'{"error": "maintenance"}')  # type: ignore[method-assign]
    with serve(index) as address, pytest.raises(PackageIndexError, match="not that of a package index"):
        get(index.archive, address)


@pytest.mark.parametrize(
    "page",
    [
        ("application/json", b"[" * 100_000),
        ("application/json", b'{"files": [{"url": "http://[", "hashes": {}}]}'),
        ("application/json", b'{"files": [{"url": 5, "hashes": {}}]}'),
        ("text/html", b'<a href="http://[">x</a>'),
        ("text/html", b'<base href="http://["><a href="x">x</a>'),
        ("text/html", b'<a href="nonsense:%s">x</a>' % FILENAME.encode()),
        ("text/html", b'<a href="nonsense://x/%s">x</a>' % FILENAME.encode()),
    ],
    ids=repr,
)
def test_a_page_of_any_kind_gives_one_line(index: Index, page: tuple[str, bytes]) -> None:
    index.page = lambda: page  # type: ignore[method-assign]
    with serve(index) as address, pytest.raises(PackageIndexError) as caught:
        get(index.archive, address)
    assert "\n" not in str(caught.value)


def test_a_file_without_an_end_is_given_up(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index, "_LARGEST_FILE", 100)
    with serve(index) as address, pytest.raises(PackageIndexError, match="is larger than"):
        get(index.archive, address)


@pytest.mark.parametrize("timeout", ["abc", "-1", "nan", "1e400"])
def test_a_timeout_of_pip_that_is_none_gives_one_line(plain_pip: pytest.MonkeyPatch, timeout: str) -> None:
    plain_pip.setattr(package_index, "_pip", lambda *_: f"global.timeout='{timeout}'\nglobal.index-url='http://x'")
    with pytest.raises(PackageIndexError, match="timeout"):
        pip_settings()


def test_download_passes_disk_errors_on_to_the_caller(index: Index) -> None:
    with serve(index) as address, pytest.raises(OSError, match="No space left"):
        download(release(index.archive), FullDisk(), settings=PipSettings((address,), timeout=5))


def test_download_sends_the_password_to_its_own_host_only_and_never_prints_it(index: Index) -> None:
    elsewhere = Index(index.archive)
    index.login = ("me", "p@ss")
    with serve(index) as address, serve(elsewhere) as other:
        index.files_at = other.removesuffix("/simple")
        secret = address.replace("http://", "http://me:p%40ss@")
        assert get(index.archive, secret) == index.archive
        assert [header for _, header in elsewhere.requests] == [None]

        index.login = ("me", "another")
        with pytest.raises(PackageIndexError, match=r"401|Unauthorized") as caught:
            get(index.archive, secret)
    assert "p%40ss" not in str(caught.value)
    assert "p@ss" not in str(caught.value)


def test_download_reports_progress_up_to_the_full_size(index: Index) -> None:
    seen: list[tuple[int, int | None]] = []
    with serve(index) as address:
        settings = PipSettings((address,), timeout=5)
        download(release(index.archive), io.BytesIO(), lambda *step: seen.append(step), settings)
    assert seen[-1] == (len(index.archive), len(index.archive))


def test_pip_settings_merge_files_and_environment(plain_pip: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url = https://two.example/simple\n"
        "    https://three.example/simple\ncert = /some/where.pem\ntimeout = 7\n"
        "[install]\nfind-links = /some/wheels\n"
    )
    plain_pip.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    expected = ("https://one.example/simple", "https://two.example/simple", "https://three.example/simple")
    assert pip_settings() == PipSettings(expected, ("/some/wheels",), certificate="/some/where.pem", timeout=7)

    plain_pip.setenv("PIP_INDEX_URL", "https://four.example/simple")
    plain_pip.setenv("PIP_PROXY", "http://proxy.example:3128")
    settings = pip_settings()
    assert settings.indexes[:2] == ("https://four.example/simple", "https://two.example/simple")
    assert settings.proxy == "http://proxy.example:3128"

    plain_pip.setenv("PIP_NO_INDEX", "1")
    assert pip_settings().indexes == ()


def test_pip_settings_fall_back_to_pips_own_default(plain_pip: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A home and a prefix without configuration files; the machine's own, if any, would win over the default.
    code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    default = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    if re.search(r"index-url", re.sub(r"extra-index-url", "", configured)):
        pytest.skip("pip is configured with another index on this machine")
    assert pip_settings().indexes[0] == default


def test_no_source_file_contains_the_address_of_a_package_registry() -> None:
    import inst

    for path in Path(inst.__file__).parent.rglob("*.py"):
        assert not re.search(r"https?://[^\s\"']*(simple|packages)", path.read_text()), path
