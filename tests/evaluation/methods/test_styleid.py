"""StyleID against a plain implementation of its formulas over diffusers' UNet, on tiny models of every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inst import Backbone
from inst.errors import UsageError
from inst.evaluation.methods.styleid import StyleID
from inst.pictures.reading import Photo
from tiny import FAMILIES, save_family

GRID = [999, 749, 499, 249]  # 4 steps of 1000 timesteps
GAMMA, TAU = 0.75, 1.5
THREE_LEVELS = {  # the two finest of three levels are fewer than all
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}


def photo(seed: int, height: int, width: int) -> Photo:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Photo(torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)[0])


def quiet(step: int, total: int) -> None:
    pass


class Layer:
    """A processor of diffusers for one self-attention layer: StyleID's eq. 5, 6 and 8, with Q, K and V replaced."""

    def __init__(self) -> None:
        self.seen: tuple[Tensor, Tensor, Tensor]
        self.given: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        def heads(x: Tensor) -> Tensor:  # [1, N, heads * d] -> [heads, N, d]
            return torch.stack(x[0].chunk(attn.heads, dim=-1))

        query, key, value = (heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        self.seen, temperature = (query, key, value), 1.0
        if self.given is not None:
            query, key, value = GAMMA * self.given[0] + (1 - GAMMA) * query, self.given[1], self.given[2]
            temperature = TAU
        weights = torch.softmax(temperature * query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, dim=-1)
        return attn.to_out[0](torch.cat([*(weights @ value)], dim=-1)[None])


@torch.no_grad()
def plain_styleid(backbone: Backbone, content: Tensor, painting: Tensor) -> Tensor:
    """Repaint `content` [3, H, W] with the square `painting` [3, S, S]. The UNet has `THREE_LEVELS`."""
    unet, vae, abar = backbone.unet, backbone.vae, backbone.scheduler.alphas_cumprod
    before = unet.attn_processors
    fine = ("up_blocks.1.", "up_blocks.2.")
    layers = {name: Layer() for name in before if name.startswith(fine) and name.endswith("attn1.processor")}
    text = backbone.embed_text([""])

    def predict(z: Tensor, t: int) -> Tensor:
        height, width = (8 * side for side in z.shape[2:])
        added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[height, width, 0, 0, height, width]])}
        out = unet(z, t, text.tokens, added_cond_kwargs=added if text.pooled is not None else None).sample
        if backbone.scheduler.config["prediction_type"] == "epsilon":
            return out
        return abar[t].sqrt() * out + (1 - abar[t]).sqrt() * z

    def move(z: Tensor, epsilon: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return b.sqrt() * (z - (1 - a).sqrt() * epsilon) / a.sqrt() + (1 - b).sqrt() * epsilon

    def invert(picture: Tensor) -> dict[int, Tensor]:
        z = vae.encode(picture[None]).latent_dist.mean * vae.config["scaling_factor"]
        level, found = torch.tensor(1.0), {}
        for t in reversed(GRID):
            z = found[t] = move(z, predict(z, t), level, abar[t])
            level = abar[t]
        return found

    unet.set_attn_processor({**before, **layers})
    try:
        contents, styles = invert(content), invert(painting)
        (mean, std), (style_mean, style_std) = (
            (x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt())
            for x in (contents[GRID[0]], styles[GRID[0]])
        )
        z = (contents[GRID[0]] - mean) / std * style_std + style_mean
        for t, level in zip(GRID, [*abar[GRID[1:]], torch.tensor(1.0)], strict=True):
            predict(contents[t], t)
            queries = {name: layer.seen[0] for name, layer in layers.items()}
            predict(styles[t], t)
            for name, layer in layers.items():
                layer.given = (queries[name], *layer.seen[1:])
            z = move(z, predict(z, t), abar[t], level)
            for layer in layers.values():
                layer.given = None
    finally:
        unet.set_attn_processor(before)
    return vae.decode(z / vae.config["scaling_factor"]).sample.clamp(-1, 1)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_styleid_gives_what_its_formulas_give(family: str, tmp_path: Path) -> None:
    backbone = Backbone.load(save_family(tmp_path / family, family, **THREE_LEVELS), "cpu", "float32")
    content, painting = photo(1, 64, 96), photo(2, 80, 64)
    expected = plain_styleid(backbone, content.picture, painting.picture[:, 8:72])
    result = StyleID(backbone, 64, steps=4).start(painting, tmp_path, quiet)(content).picture
    assert (result - expected).abs().max() < 1e-4


def test_a_painting_is_inverted_once_and_photos_do_not_depend_on_each_other(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    method = StyleID(tiny_backbone, 32, steps=2)
    repaint = method.start(photo(3, 40, 64), tmp_path, lambda step, total: told.append((step, total)))
    assert told == [(1, 2), (2, 2)]
    first = repaint(photo(1, 40, 32)).picture
    assert told == [(1, 2), (2, 2)] * 3  # and the inversion of the photo, and the sampling
    assert not torch.equal(repaint(photo(2, 40, 32)).picture, first)
    assert torch.equal(repaint(photo(1, 40, 32)).picture, first)


@pytest.mark.parametrize(("height", "width"), [(50, 61), (64, 40)])
def test_results_have_the_photos_proportions_and_the_size(
    tiny_backbone: Backbone, tmp_path: Path, height: int, width: int
) -> None:
    repaint = StyleID(tiny_backbone, 40, steps=1).start(photo(3, 30, 90), tmp_path, quiet)
    made = repaint(photo(1, height, width)).picture
    assert min(made.shape[1:]) == 40
    assert made.shape[2] / made.shape[1] == pytest.approx(width / height, rel=0.03)
    assert made.abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, r"^8 pixels cannot be used: give 16 or more\.$"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": 1001}, "1001 sampling steps"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(
    tiny_backbone: Backbone, change: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        StyleID(tiny_backbone, **{"size": 64, **change})
