"""Models of the hub (huggingface.co, or the mirror that HF_ENDPOINT names), in the cache that its libraries share.

Nothing is asked of the network unless a download is wanted and something is missing.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but loaded on demand

from inst.backbone.loading.part import read_json, weight_files
from inst.errors import Argument, InstError, UsageError, first_line

_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]+))?", re.ASCII)

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
    "inversion": "model",
}
"""The parts with weights, and what their files are called."""

_OTHER_PARTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")


@dataclass(frozen=True)
class _Kind:
    """A kind of repository: the file that says what it is, what of it is needed, and whether a folder has all that."""

    index: str
    choose: Callable[[str, Collection[str]], list[str]]
    check: Callable[[Path], None]


def is_hub_name(name: str) -> bool:
    """Whether a name has the form "owner/model" or "owner/model@revision"."""
    return _split(name) is not None


def _split(name: str) -> tuple[str, str] | None:
    """Repository and revision; None where the hub, or git, could have no such name."""
    found = _NAME.fullmatch(name)
    if not found or ".." in (found[2] or ""):
        return None
    try:
        validate_repo_id(found[1])
    except HFValidationError:
        return None
    return found[1], found[2] or constants.DEFAULT_REVISION


def find_model(name: str, download: bool = False) -> Path:
    """Find a model in the diffusers layout in the hub's cache, and fetch what is missing where that is allowed.

    Only what is used is fetched: configurations, tokenizers, and one set of safetensors weights; the half-precision
    ones ("fp16") where the model has both, which is half the download. Progress bars are the hub library's own.

    Args:
        name: "owner/model", or "owner/model@revision" with a branch, a tag or a commit.
        download: ask the hub for what is not on this machine.

    Returns:
        The folder of one commit; its name is the commit's hash.

    Raises:
        InstError: the model is not here and may not, or cannot, be downloaded, or has no safetensors weights.
        UsageError: `name` has another form.
    """
    return _find(name, download, _Kind("model_index.json", _choose_model, _check_model))


def find_clip(name: str, download: bool = False) -> Path:
    """Find a CLIP model in transformers' layout, as `find_model` does one in the diffusers layout."""
    return _find(name, download, _Kind("config.json", _choose_clip, _check_clip))


def _find(name: str, download: bool, kind: _Kind) -> Path:
    found = _split(name)
    if not found:
        raise UsageError(
            f'{name} is no name of a model on the hub: it would be "owner/model" or "owner/model@revision".'
        )
    repository, revision = found
    index = try_to_load_from_cache(repository, kind.index, revision=revision)
    lacking = "is not on this machine, neither as a path nor from the model hub"
    if isinstance(index, str):
        folder = Path(index).parent
        try:
            kind.check(folder)
        except InstError as error:
            lacking = f"is on this machine incompletely ({str(error).removesuffix('.')})"
        else:
            return folder
    if not download:
        raise InstError(
            f"{name} {lacking}", "add ", Argument("download", True), f" to get it from {constants.ENDPOINT}"
        )
    try:
        with _no_remarks():
            folder = _download(name, repository, revision, kind)
    except InstError:
        raise
    except Exception as error:  # those of httpx, whose name depends on the version, beside the library's own
        raise InstError(_reason(error, name, repository, revision)) from error
    kind.check(folder)
    return folder


def _download(name: str, repository: str, revision: str, kind: _Kind) -> Path:
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if kind.index not in sizes:
        raise InstError(_no_index(name, kind.index, sizes))
    wanted = kind.choose(name, sizes)
    missing = [
        path for path in wanted if not isinstance(try_to_load_from_cache(repository, path, revision=info.sha), str)
    ]
    needed = sum(sizes[path] for path in missing)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise InstError(
            f"{name} takes {needed / 1e9:.1f} GB, but {cache} has {free / 1e9:.1f} GB left",
            "make room, or name another folder with HF_HOME",
        )
    # All from one commit. The index comes last: a folder that has it was not left half downloaded.
    snapshot_download(repository, revision=info.sha, allow_patterns=wanted)
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[kind.index]))
    if folder.name != info.sha:
        raise InstError(f"{name} was changed on the hub while it was downloaded", "do it again")
    return folder


def _no_index(name: str, index: str, files: Collection[str]) -> str:
    single = sorted(path for path in files if "/" not in path and path.endswith((".safetensors", ".ckpt")))
    hint = f"download its file {single[0]} and name that" if single else "use another model"
    return f"{name} is not in the layout that is needed (it has no {index}): {hint}."


# What is needed of a repository


def _choose_model(name: str, files: Collection[str]) -> list[str]:
    wanted = []
    for part in (*_STEMS, *_OTHER_PARTS):
        own = [path for path in files if path.startswith(f"{part}/") and path.count("/") == 1]
        if own:
            wanted += [path for path in own if path.endswith((".json", ".txt")) and ".index." not in path]
            wanted += _choose_weights(name, own, f"{part}/{_STEMS[part]}") if part in _STEMS else []
    return wanted


def _choose_clip(name: str, files: Collection[str]) -> list[str]:
    preprocessing = "preprocessor_config.json"
    if preprocessing not in files:
        raise InstError(f"{name} has no {preprocessing}, which says what its image encoder wants to see", "use another")
    return [preprocessing, *_choose_weights(name, files, "model")]


def _choose_weights(name: str, files: Collection[str], stem: str) -> list[str]:
    for variant in (".fp16", ""):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if single in files:
            return [single]
        if index in files:
            shard = re.compile(re.escape(f"{stem}{variant}") + r"-\d+-of-\d+\.safetensors")
            return [index, *(path for path in files if shard.fullmatch(path))]
    raise InstError(
        f"{name} has no safetensors weights ({stem}.safetensors), and pickles are never opened", "use another"
    )


def _check_model(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    named = [part for part, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])]
    for part in named:
        if part in _STEMS:
            read_json(folder / part / "config.json")
            weight_files(folder / part, _STEMS[part])
        elif part.startswith("tokenizer"):
            read_json(folder / part / "tokenizer_config.json")
            if not (folder / part / "tokenizer.json").is_file():
                for file in ("vocab.json", "merges.txt"):
                    _need(folder / part / file)
        elif part == "scheduler":
            read_json(folder / part / "scheduler_config.json")
    if "image_encoder" in named:
        read_json(folder / "feature_extractor" / "preprocessor_config.json")


def _check_clip(folder: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        read_json(folder / file)
    weight_files(folder, "model")


def _need(path: Path) -> None:
    if not path.is_file():
        raise InstError(f"{path} is missing.")


# What can go wrong


def _reason(error: Exception, name: str, repository: str, revision: str) -> str:
    hub = constants.ENDPOINT
    match error:
        case OfflineModeIsEnabled():
            return f"{name} is not on this machine, and HF_HUB_OFFLINE forbids a download: unset it."
        case GatedRepoError():
            return (
                f"{name} is open only to those who accepted its terms: do so on {hub}/{repository}, "
                f"then log in with `hf auth login` or HF_TOKEN."
            )
        case RevisionNotFoundError():
            return f"{repository} has no revision {revision}: see {hub}/{repository}/commits/main."
        case RepositoryNotFoundError():
            return (
                f"{hub} has no model {repository}, or does not show it to you: check the spelling; for a private "
                f"model log in with `hf auth login` or HF_TOKEN."
            )
        case HfHubHTTPError() if error.response is not None:
            status = error.response.status_code
            if status in (401, 403):
                return (
                    f"{hub} does not let you have {name} ({status}): log in with a token that may read it (HF_TOKEN)."
                )
            return f"{name} cannot be downloaded: {hub} answered {status}; try again later."
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return (
                f"{name} cannot be downloaded: the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME."
            )
        case PermissionError():
            return f"{name} cannot be downloaded: {constants.HF_HUB_CACHE} cannot be written to; set HF_HOME."
        case LocalEntryNotFoundError() if error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
    reason = first_line(error).removesuffix(".")
    return f"{name} cannot be downloaded: no whole answer from {hub} ({reason}); check the network, and try again."


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Silence the hub library's warnings: what matters is said in an error."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
