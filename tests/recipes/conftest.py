import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from mini_stages import run_stages

Member = tuple[str, bytes]


@pytest.fixture(scope="session")
def members() -> Callable[[int], list[Member]]:
    """Files of a shard of smooth generated pictures: 256 and 224 px by turns, photographs and art."""

    def make(count: int) -> list[Member]:
        generator = torch.Generator().manual_seed(0)
        files: list[Member] = []
        for i in range(count):
            colours = torch.randint(256, (4, 4, 3), generator=generator, dtype=torch.uint8)
            side = (256, 224)[i % 2]
            buffer = io.BytesIO()
            Image.fromarray(colours.numpy()).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
            record: dict[str, Any] = {
                "captions": [f"a painting of thing {i}", "a baroque painting"],
                "kind": ("photo", "art")[i // 2 % 2],
                "source": "flickr8k",
            }
            files += [(f"{i:06d}.png", buffer.getvalue()), (f"{i:06d}.json", json.dumps(record).encode())]
        return files

    return make


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, Sequence[Member]], Path]:
    def write(path: Path, files: Sequence[Member]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as shard:
            for name, content in files:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture(scope="session")
def shards(
    tmp_path_factory: pytest.TempPathFactory,
    members: Callable[[int], list[Member]],
    write_tar: Callable[[Path, Sequence[Member]], Path],
) -> Path:
    """A folder with 24 generated pictures in two shards. Read only."""
    folder = tmp_path_factory.mktemp("shards")
    files = members(24)
    write_tar(folder / "train-0.tar", files[:20])
    write_tar(folder / "train-1.tar", files[20:])
    return folder


@pytest.fixture(scope="session")
def random_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file in the form of `vgg16-lpips`, random: the stages run on it, and learn nothing useful."""
    torch.manual_seed(0)
    model = LPIPS()
    tensors = {k: v.half() for k, v in model.network.state_dict().items()}
    tensors |= {f"lin{i}": head.detach().half() for i, head in enumerate(model.heads)}
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file({k: v.half() for k, v in InceptionFID().state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path, random_vgg: Path, random_inception: Path) -> Path:
    """All stages, a few steps each, and what they wrote. Read only."""
    out = tmp_path_factory.mktemp("runs")
    run_stages(shards, random_vgg, random_inception, out)
    return out
