"""Models of the hub: what is fetched, what is found again without the network, and what can go wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub_server import Hub, read_tree, serve
from inst import Backbone, InstError, UsageError
from inst.backbone.loading.hub import find_model, is_hub_name

CLIENT = """
import json, sys
from inst import InstError
from inst.backbone.loading import hub
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
for line in sys.stdin:
    find, name, download = json.loads(line)
    try:
        answer = {"folder": str(getattr(hub, find)(name, download))}
    except InstError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""
"""In a process of its own, because the hub's library reads the environment once."""


class Client:
    """Asks for models in the other process."""

    def __init__(self, process: "subprocess.Popen[str]", home: Path) -> None:
        self.process, self.home = process, home

    def ask(self, name: str, download: bool = True, find: str = "find_model") -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([find, name, download]), file=self.process.stdin, flush=True)
        answer: dict[str, str] = json.loads(self.process.stdout.readline())
        return answer

    def find(self, name: str, download: bool = True) -> Path:
        return Path(self.ask(name, download)["folder"])

    def refuse(self, name: str, *, naming: str, download: bool = True) -> str:
        message = self.ask(name, download)["error"]
        assert "\n" not in message
        assert naming in message
        return message


@contextmanager
def client_of(address: str, home: Path) -> Iterator[Client]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CLIENT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        yield Client(process, home)
        _, noise = process.communicate(timeout=60)
        assert process.returncode == 0
        assert noise == ""  # nothing was said but by the errors


@pytest.fixture(scope="module")
def files(tiny_backbone_folder: Path) -> dict[str, bytes]:
    """A repository with everything that real ones hold beside what is needed."""
    files = read_tree(tiny_backbone_folder)
    for name in [name for name in files if name.endswith(".safetensors") and "inversion" not in name]:
        files[name.replace(".safetensors", ".fp16.safetensors")] = files[name]
        files[name.replace(".safetensors", ".non_ema.safetensors")] = b"large"
        files[name.replace(".safetensors", ".bin")] = b"pickle"
        files[name.rpartition("/")[0] + "/flax_model.msgpack"] = b"flax"
        files[name.rpartition("/")[0] + "/model.onnx"] = b"onnx"
    extras = ("README.md", "tiny.ckpt", "tiny.safetensors", "safety_checker/config.json", "safety_checker/model.bin")
    return files | dict.fromkeys(extras, b"{}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    hub = Hub({})
    with serve(hub) as address, client_of(address, tmp_path_factory.mktemp("home")) as client:
        yield hub, client


@pytest.fixture
def hub(shared: tuple[Hub, Client], files: dict[str, bytes], request: pytest.FixtureRequest) -> Hub:
    """A hub with one model, of a name of its own for each test: nothing is in the cache."""
    own_name = re.sub(r"\W|_", "", request.node.name)
    fresh = Hub(dict(files), name=f"someone/{own_name}", address=shared[0].address)
    vars(shared[0]).update(vars(fresh))
    return shared[0]


@pytest.fixture
def client(shared: tuple[Hub, Client]) -> Client:
    return shared[1]


def test_one_set_of_weights_is_downloaded_and_later_found_in_the_cache(
    hub: Hub, client: Client, tiny_backbone: Backbone
) -> None:
    folder = client.find(hub.name)
    assert folder.name == hub.commit
    assert hub.fetched == [
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        "image_encoder/model.fp16.safetensors",
        "inversion/config.json",
        "inversion/model.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    backbone = Backbone.load(folder, "cpu", "float32")
    assert backbone.fingerprint == tiny_backbone.fingerprint
    assert backbone.denoiser_fingerprint == tiny_backbone.denoiser_fingerprint

    hub.requests.clear()
    for download in (False, True):
        assert client.find(hub.name, download) == folder
        assert client.find(f"{hub.name}@{hub.commit}", download) == folder
    assert hub.requests == []


def test_full_precision_weights_are_fetched_where_there_are_no_fp16_ones(hub: Hub, client: Client) -> None:
    hub.files = {name: content for name, content in hub.files.items() if "unet" not in name or "fp16" not in name}
    client.find(hub.name)
    weights = [name for name in hub.fetched if name.endswith(".safetensors") and name.startswith(("unet", "vae"))]
    assert weights == ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]


def shard_the_unet(hub: Hub, index: str, shards: list[str]) -> None:
    """Put sharded weights of a UNet in the place of all others."""
    whole = hub.files["unet/diffusion_pytorch_model.safetensors"]
    hub.files = {name: content for name, content in hub.files.items() if not name.startswith("unet/diffusion")}
    weight_map = {str(number): shard for number, shard in enumerate(shards)}
    hub.files |= {f"unet/{shard}": whole + shard.encode() for shard in shards}
    hub.files[f"unet/{index}"] = json.dumps({"weight_map": weight_map}).encode()


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        (".fp16", "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"),
        (".fp16", "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors"),
        (".non_ema", "part{}.safetensors"),
    ],
    ids=["plain", "fp16", "older", "other"],
)
def test_the_shards_an_index_names_are_downloaded(hub: Hub, client: Client, variant: str, form: str) -> None:
    index = f"diffusion_pytorch_model.safetensors.index{variant}.json"
    shards = [form.format(number) for number in (1, 2)]
    shard_the_unet(hub, index, shards)
    folder = client.find(hub.name)
    assert [name for name in hub.fetched if name.startswith("unet/")] == sorted(
        ["unet/config.json", f"unet/{index}", *(f"unet/{shard}" for shard in shards)]
    )
    (folder / "unet" / shards[1]).unlink()
    client.refuse(hub.name, naming=f"({index} names {shards[1]})", download=False)
    assert client.find(hub.name) == folder
    assert (folder / "unet" / shards[1]).is_file()


def test_an_index_of_a_shard_that_the_hub_lacks_is_refused(hub: Hub, client: Client) -> None:
    index = "diffusion_pytorch_model.safetensors.index.json"
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shard_the_unet(hub, index, shards)
    del hub.files[f"unet/{shards[1]}"]
    client.refuse(hub.name, naming=f"is incomplete on the hub (it has no unet/{shards[1]})")
    hub.commit = "d" * 40
    hub.files[f"unet/{index}"] = json.dumps({"weight_map": {"a": "../vae/model.safetensors"}}).encode()
    client.refuse(hub.name, naming="names '../vae/model.safetensors', which is not a safetensors file in its folder")
    assert not any(name.endswith(".safetensors") for name in hub.fetched)


def test_a_variant_is_downloaded_if_there_is_nothing_else(hub: Hub, client: Client) -> None:
    stem = "unet/diffusion_pytorch_model"
    hub.files[f"{stem}.bf16.safetensors"] = hub.files.pop(f"{stem}.safetensors")
    del hub.files[f"{stem}.fp16.safetensors"]
    client.find(hub.name)
    assert [name for name in hub.fetched if name.startswith(stem)] == [f"{stem}.bf16.safetensors"]


def test_a_revision_is_downloaded_by_name_and_an_unknown_one_is_refused(hub: Hub, client: Client) -> None:
    client.refuse(f"{hub.name}@v2.0", naming="has no revision v2.0")
    folder = client.find(f"{hub.name}@v1.0")
    assert folder.name == hub.commit
    assert client.find(f"{hub.name}@v1.0", download=False) == folder
    client.refuse(hub.name, naming="add download=True", download=False)  # main was never asked for

    before, hub.commit = hub.commit, "f" * 40
    assert client.find(f"{hub.name}@v1.0").name == before  # what is here stays
    assert client.find(hub.name).name == hub.commit


def test_no_request_is_sent_without_the_download_option(hub: Hub, client: Client) -> None:
    assert client.refuse(hub.name, naming=f"{hub.name} is not on this machine", download=False).endswith(
        f"add download=True to get it from {hub.address}."
    )
    assert hub.requests == []


def test_a_broken_download_is_not_taken_for_a_model(hub: Hub, client: Client) -> None:
    hub.broken = {"unet/diffusion_pytorch_model.fp16.safetensors"}
    client.refuse(hub.name, naming=f"{hub.name} cannot be downloaded")
    client.refuse(hub.name, naming="is not on this machine", download=False)
    hub.broken = set()
    folder = client.find(hub.name)
    Backbone.load(folder, "cpu")


def test_a_model_that_changes_during_its_download_is_refused(hub: Hub, client: Client) -> None:
    hub.next_commit = "e" * 40
    client.refuse(hub.name, naming="was changed on the hub")
    client.refuse(hub.name, naming="is incomplete on this machine", download=False)
    assert client.find(hub.name).name == "e" * 40


@pytest.mark.parametrize(
    "lost", ["unet/diffusion_pytorch_model.fp16.safetensors", "tokenizer/tokenizer.json", "vae/config.json"]
)
def test_an_incomplete_cached_model_is_reported_and_completed(hub: Hub, client: Client, lost: str) -> None:
    folder = client.find(hub.name)
    (folder / lost).unlink()
    message = client.refuse(hub.name, naming="is incomplete on this machine", download=False)
    assert lost.split("/")[0] in message
    hub.requests.clear()
    assert client.find(hub.name) == folder
    assert (folder / lost).is_file()


def test_a_missing_private_or_gated_model_is_refused_with_the_reason(hub: Hub, client: Client) -> None:
    client.refuse("someone/nobody", naming="has no model someone/nobody, or you have no access to it")
    hub.token = "secret"
    client.refuse(hub.name, naming="HF_TOKEN")
    hub.token, hub.gated = None, True
    client.refuse(hub.name, naming=f"accepted its terms: accept them on {hub.address}/{hub.name}")
    client.refuse(hub.name, naming="is not on this machine", download=False)


@pytest.mark.parametrize(("status", "naming"), [(403, "gives you no access to"), (418, "answered 418")])
def test_an_error_status_of_the_hub_is_reported(hub: Hub, client: Client, status: int, naming: str) -> None:
    hub.status = status
    client.refuse(hub.name, naming=naming)


def test_a_model_with_pickled_weights_is_refused_and_not_fetched(hub: Hub, client: Client) -> None:
    hub.files = {name: content for name, content in hub.files.items() if "text_encoder/model." not in name}
    hub.files["text_encoder/model.bin"] = b"pickle"
    client.refuse(hub.name, naming="has no safetensors weights (text_encoder/model.safetensors)")
    assert hub.fetched == []


def test_a_repository_of_another_layout_is_refused(hub: Hub, client: Client) -> None:
    del hub.files["model_index.json"]
    client.refuse(hub.name, naming="download its file tiny.ckpt and give its path")
    hub.files = {"config.json": b"{}"}
    client.refuse(hub.name, naming="it has no model_index.json")


def test_a_download_that_does_not_fit_on_the_disk_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InstError, match=r"needs 0\.0 GB, but .* has only 0\.0 GB left: free disk space"):
        find_model(hub.name, download=True)
    assert hub.fetched == []
    assert not (tmp_path / "hub").exists()


def test_a_hub_that_cannot_be_reached_is_reported(tmp_path: Path) -> None:
    with client_of("http://127.0.0.1:9", tmp_path) as client:
        client.refuse("someone/tiny", naming="no complete answer from http://127.0.0.1:9")


def test_offline_a_model_comes_from_the_cache_and_is_never_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_backbone_folder: Path
) -> None:
    """The tests themselves run with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InstError, match="HF_HUB_OFFLINE"):
        find_model("someone/tiny", download=True)
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_backbone_folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for download in (False, True):
        assert find_model("someone/tiny", download) == repository / "snapshots" / "abc"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mini",
        "a/b/c",
        "/a",
        "a/",
        "../a",
        "a/..",
        "a/b@",
        "a/b@c@d",
        "~/model",
        "a b/c",
        "a/b\n",
        "a/b--c",
        "a/b..c",
        "a/b.git",
        f"a/{'b' * 97}",
        "a/b@../c",
    ],
)
def test_a_name_that_is_no_valid_hub_name_is_refused(name: str) -> None:
    assert not is_hub_name(name)
    with pytest.raises(UsageError, match="owner/model"):
        find_model(name)


def test_an_image_encoder_without_a_preprocessor_configuration_is_refused(hub: Hub, client: Client) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b""}
    message = client.ask(hub.name, find="find_clip")["error"]
    assert "has no preprocessor_config.json" in message
    assert hub.fetched == []


def test_valid_hub_names_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("CompVis/stable-diffusion-v1-4", "a/b", "stabilityai/stable-diffusion-2-1@fp16", "a/b@refs/pr/1"):
        assert is_hub_name(name)
        with pytest.raises(InstError, match=r"is not on this machine, .*: add download=True"):
            find_model(name)
