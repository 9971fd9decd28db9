"""Models on the hub (huggingface.co, or the mirror in HF_ENDPOINT), in the cache of the hub's libraries.

The network is used only if a download is allowed and a file is missing.
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

from inst.backbone.loading.part import find_variants, read_index, read_json, variant_files, weight_files
from inst.backbone.parts import COPY_AGAIN
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
"""The parts with weights, and the stems of their file names."""

_OTHER_PARTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")


@dataclass(frozen=True)
class _Kind:
    """A kind of repository.

    Attributes:
        index: the file that describes the model.
        choose: returns the files that are needed, from the model's name and all files of the repository.
        check: raises InstError if a folder does not have these files.
    """

    index: str
    choose: Callable[[str, Collection[str]], list[str]]
    check: Callable[[Path], None]


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form "owner/model" or "owner/model@revision"."""
    return _split(name) is not None


def _split(name: str) -> tuple[str, str] | None:
    """Return repository and revision, or None if the name is not possible on the hub or in git."""
    found = _NAME.fullmatch(name)
    if not found or ".." in (found[2] or ""):
        return None
    try:
        validate_repo_id(found[1])
    except HFValidationError:
        return None
    return found[1], found[2] or constants.DEFAULT_REVISION


def find_model(name: str, download: bool = False) -> Path:
    """Find a model in the diffusers layout in the hub's cache. If allowed, download the files that are missing.

    Only the needed files are downloaded: configurations, tokenizers, and one set of safetensors weights. If the model
    has half-precision weights ("fp16"), these are used, which is half the download; otherwise those that
    `find_variants` in `inst.backbone.loading.part` prefers. The hub's library shows the progress bars.

    Args:
        name: "owner/model", or "owner/model@revision" with a branch, a tag or a commit.
        download: download from the hub the files that are not on this machine.

    Returns:
        The folder of one commit; its name is the commit's hash.

    Raises:
        InstError: the model is not on this machine and the download is not allowed or fails, or the model has no
            safetensors weights.
        UsageError: `name` has another form.
    """
    return _find(name, download, _Kind("model_index.json", _choose_model, _check_model))


def find_clip(name: str, download: bool = False) -> Path:
    """Find a CLIP model in transformers' layout. Arguments, result and errors as `find_model`."""
    return _find(name, download, _Kind("config.json", _choose_clip, _check_clip))


def _find(name: str, download: bool, kind: _Kind) -> Path:
    found = _split(name)
    if not found:
        raise UsageError(
            f"{name} is not a name of a model on the hub", 'use the form "owner/model" or "owner/model@revision"'
        )
    repository, revision = found
    index = try_to_load_from_cache(repository, kind.index, revision=revision)
    problem = "is not on this machine, neither as a path nor in the cache of the model hub"
    if isinstance(index, str):
        folder = Path(index).parent
        try:
            kind.check(folder)
        except InstError as error:
            problem = f"is incomplete on this machine ({str(error).removesuffix('.')})"
        else:
            return folder
    if not download:
        raise InstError(
            f"{name} {problem}", "add ", Argument("download", True), f" to get it from {constants.ENDPOINT}"
        )
    try:
        with _silence_warnings():
            folder = _download(name, repository, revision, kind)
    except InstError:
        raise
    except Exception as error:  # also errors of httpx: their names depend on its version
        raise InstError(*_problem_and_remedy(error, name, repository, revision)) from error
    kind.check(folder)
    return folder


def _download(name: str, repository: str, revision: str, kind: _Kind) -> Path:
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if kind.index not in sizes:
        raise _wrong_layout(name, kind.index, sizes)
    wanted = kind.choose(name, sizes)
    if indices := [path for path in wanted if ".safetensors.index." in path]:
        wanted += _shards(Path(snapshot_download(repository, revision=info.sha, allow_patterns=indices)), indices)
        if lost := [path for path in wanted if path not in sizes]:
            raise InstError(f"{name} is incomplete on the hub (it has no {', '.join(lost)})", "use another model")
    missing = [
        path for path in wanted if not isinstance(try_to_load_from_cache(repository, path, revision=info.sha), str)
    ]
    needed = sum(sizes[path] for path in missing)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise InstError(
            f"{name} needs {needed / 1e9:.1f} GB, but {cache} has only {free / 1e9:.1f} GB left",
            "free disk space, or set HF_HOME to another folder",
        )
    # All files come from one commit. The index comes last, so that a folder with an index is a complete download.
    snapshot_download(repository, revision=info.sha, allow_patterns=wanted)
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[kind.index]))
    if folder.name != info.sha:
        raise InstError(f"{name} was changed on the hub during the download", "try again")
    return folder


def _wrong_layout(name: str, index: str, files: Collection[str]) -> InstError:
    single = sorted(path for path in files if "/" not in path and path.endswith((".safetensors", ".ckpt")))
    remedy = f"download its file {single[0]} and give its path" if single else "use another model"
    return InstError(f"{name} does not have the layout that is needed (it has no {index})", remedy)


# The files that are needed


def _choose_model(name: str, files: Collection[str]) -> list[str]:
    wanted = []
    for part in (*_STEMS, *_OTHER_PARTS):
        inside = [path for path in files if path.startswith(f"{part}/") and path.count("/") == 1]
        if inside:
            wanted += [path for path in inside if path.endswith((".json", ".txt")) and ".index." not in path]
            wanted += _choose_weights(name, inside, f"{part}/{_STEMS[part]}") if part in _STEMS else []
    return wanted


def _choose_clip(name: str, files: Collection[str]) -> list[str]:
    preprocessing = "preprocessor_config.json"
    if preprocessing not in files:
        raise InstError(f"{name} has no {preprocessing}, which its image encoder needs", "use another model")
    return [preprocessing, *_choose_weights(name, files, "model")]


def _choose_weights(name: str, files: Collection[str], stem: str) -> list[str]:
    variants = find_variants(files, stem)
    if not variants:
        raise InstError(
            f"{name} has no safetensors weights ({stem}.safetensors), and pickles are never opened", "use another model"
        )
    single, index = variant_files(stem, "fp16" if "fp16" in variants else variants[0])
    return [single if single in files else index]


def _shards(folder: Path, indices: Collection[str]) -> list[str]:
    """Return the files that the downloaded indices name. Their names have several forms, so only the indices know."""
    return [shard.relative_to(folder).as_posix() for index in indices for shard in read_index(folder / index)]


def _check_model(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    named = [part for part, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])]
    for part in named:
        if part in _STEMS:
            read_json(folder / part / "config.json")
            weight_files(folder / part, _STEMS[part])
        elif part in ("tokenizer", "tokenizer_2"):
            read_json(folder / part / "tokenizer_config.json")
            if not (folder / part / "tokenizer.json").is_file():
                for file in ("vocab.json", "merges.txt"):
                    _require_file(folder / part / file)
        elif part == "scheduler":
            read_json(folder / part / "scheduler_config.json")
    if "image_encoder" in named:
        read_json(folder / "feature_extractor" / "preprocessor_config.json")


def _check_clip(folder: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        read_json(folder / file)
    weight_files(folder, "model")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InstError(f"{path} is missing", COPY_AGAIN)


# Errors of a download


def _problem_and_remedy(error: Exception, name: str, repository: str, revision: str) -> tuple[str, str]:
    hub, failed = constants.ENDPOINT, f"{name} cannot be downloaded"
    match error:
        case OfflineModeIsEnabled():
            return f"{name} is not on this machine, and HF_HUB_OFFLINE forbids a download", "unset HF_HUB_OFFLINE"
        case GatedRepoError():
            return (
                f"{name} is available only to users who accepted its terms",
                f"accept them on {hub}/{repository}, then log in with `hf auth login` or HF_TOKEN",
            )
        case RevisionNotFoundError():
            return f"{repository} has no revision {revision}", f"choose one from {hub}/{repository}/commits/main"
        case RepositoryNotFoundError():
            return (
                f"{hub} has no model {repository}, or you have no access to it",
                "check the spelling; for a private model, log in with `hf auth login` or HF_TOKEN",
            )
        case HfHubHTTPError() if error.response is not None:
            status = error.response.status_code
            if status in (401, 403):
                return (
                    f"{hub} gives you no access to {name} ({status})",
                    "log in with a token that may read it (HF_TOKEN)",
                )
            return f"{failed} ({hub} answered {status})", "try again later"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"{failed} (the disk of {constants.HF_HUB_CACHE} is full)", "free disk space, or set HF_HOME"
        case PermissionError():
            return f"{failed} ({constants.HF_HUB_CACHE} is not writable)", "set HF_HOME to another folder"
        case LocalEntryNotFoundError() if error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
    reason = first_line(error).removesuffix(".")
    return f"{failed}, because there was no complete answer from {hub} ({reason})", "check the network and try again"


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Silence the warnings of the hub's library; important problems are raised as errors."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
