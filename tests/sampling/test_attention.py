"""Style attention against worked cases, StyleID's formula in hand-written processors, and what it promises threads."""

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inst import Backbone, UsageError
from inst.backbone.self_attention import handled, self_attention_layers
from inst.backbone.text import Frame, TextEmbedding
from inst.sampling.attention import AttentionSettings, Reference, StyleAttention, attend
from inst.sampling.noise import draw_noise
from inst.sampling.tiles import map_tiles, tiled
from tiny import FAMILIES, save_family, sharpen

TIMESTEPS = [900, 700, 500, 300, 200, 150, 100, 50, 20, 5]
WAIT = 60  # seconds until a test that waits for another thread fails


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Three levels, all with attention on the way up, so that the three choices of blocks differ."""
    changes: dict[str, Any] = {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    }
    return sharpen(Backbone.load(save_family(tmp_path_factory.mktemp("levels"), "sd1", **changes), "cpu", "float32"))


@pytest.fixture
def text(backbone: Backbone) -> TextEmbedding:
    return backbone.embed_text(["a river", "a dog"])


def reference(
    backbone: Backbone, seed: int = 10, share: float = 1.0, size: tuple[int, int] = (8, 8), prompt: str = "a painting"
) -> Reference:
    """A painting whose latents at every timestep are known."""
    latents = draw_noise((4, *size), [seed])
    return Reference(lambda t: latents * (1 + t / 1000), backbone.embed_text([prompt]), share)


def style_attention(
    backbone: Backbone,
    references: Sequence[Reference] | None = None,
    content_at: Callable[[int], torch.Tensor] | None = None,
    **changes: Any,
) -> StyleAttention:
    chosen = [reference(backbone)] if references is None else references
    return StyleAttention(backbone, AttentionSettings(**changes), chosen, TIMESTEPS, content_at)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Call a hook before each call of a module."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def is_as_before(unet: Any, before: dict[str, Any]) -> bool:
    now = unet.attn_processors
    return now.keys() == before.keys() and all(now[name] is before[name] for name in before)


# One layer, by hand


def column(*values: float) -> torch.Tensor:
    """A tensor [1, 1 head, N, d = 1]. With d = 1 a logit is the product of query and key."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)


QUERY = column(0, math.log(2))  # the second query doubles the weight of a position for each 1 in its key
OWN = (column(0, 1), column(10, 20))
PAINTING = (column(0, 2), column(30, 40))


@pytest.mark.parametrize(
    ("weight", "temperature", "expected"),
    [
        (0.0, 1.0, (15, (10 + 2 * 20) / 3)),
        (1.0, 1.0, (35, (30 + 4 * 40) / 5)),
        (0.5, 1.0, (25, (10 + 2 * 20 + 30 + 4 * 40) / 8)),
        (0.75, 1.0, ((10 + 20 + 3 * 30 + 3 * 40) / 8, (10 + 2 * 20 + 3 * 30 + 12 * 40) / 18)),  # priors of 1 to 3
        (0.5, 2.0, (25, (10 + 4 * 20 + 30 + 16 * 40) / 22)),
        (1.0, 3.0, (35, (30 + 64 * 40) / 65)),
    ],
)
def test_attention_to_a_painting_equals_a_case_worked_by_hand(
    weight: float, temperature: float, expected: tuple[float, float]
) -> None:
    close(attend(QUERY, OWN, [(PAINTING, 1.0)], weight, temperature), column(*expected), 1e-12)


def test_the_shares_of_two_paintings_are_their_priors() -> None:
    one, other = (column(0), column(30)), (column(0, 0), column(60, 80))
    # A query of 0 sees nothing but the priors: 1/2 own, 1/2 x 0.2 and 1/2 x 0.8.
    found = attend(column(0), OWN, [(one, 0.2), (other, 0.8)], 0.5)
    close(found, column(0.5 * 15 + 0.1 * 30 + 0.4 * 70), 1e-12)
    found = attend(column(math.log(2)), OWN, [((column(1), column(30)), 0.2), (other, 0.8)], 0.5)
    masses = [0.25, 0.25 * 2, 0.1 * 2, 0.2, 0.2]
    expected = sum(m * v for m, v in zip(masses, (10, 20, 30, 60, 80), strict=True)) / sum(masses)
    close(found, column(expected), 1e-12)


def softmax_with_priors(
    query: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor, float]], temperature: float
) -> torch.Tensor:
    """Attention over parts of a given mass, as a sum over positions of prior x exp(logit) x value."""
    above = torch.zeros_like(query)
    below = torch.zeros_like(query[..., :1])
    for keys, values, mass in parts:
        logits = temperature * (query @ keys.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        weights = mass / keys.shape[-2] * logits.exp()
        above = above + weights @ values
        below = below + weights.sum(dim=-1, keepdim=True)
    return above / below


def random_case(seed: int, own: int, counts: Sequence[int]) -> tuple[torch.Tensor, Any, list[Any]]:
    """Queries, keys and values [2, 3 heads, own, 4], and those [1, 3, count, 4] of paintings."""
    generator = torch.Generator().manual_seed(seed)

    def draw(batch: int, positions: int) -> torch.Tensor:
        return torch.randn(batch, 3, positions, 4, generator=generator, dtype=torch.float64)

    return draw(2, own), (draw(2, own), draw(2, own)), [(draw(1, count), draw(1, count)) for count in counts]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    own=st.integers(1, 9),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    weight=st.sampled_from([0.0, 1e-9, 1.0]) | st.floats(0, 1),
    temperature=st.floats(0.1, 3),
)
def test_attention_is_a_softmax_with_the_priors_of_the_positions(
    seed: int, own: int, counts: list[int], weight: float, temperature: float
) -> None:
    query, (keys, values), paintings = random_case(seed, own, counts)
    shares = [(i + 1) / sum(range(1, len(counts) + 1)) for i in range(len(counts))]
    parts = [(keys, values, 1 - weight)]
    parts += [(k, v, weight * share) for (k, v), share in zip(paintings, shares, strict=True)]
    found = attend(query, (keys, values), list(zip(paintings, shares, strict=True)), weight, temperature)
    close(found, softmax_with_priors(query, parts, temperature), 1e-6)  # 1e-6: nearly equal priors count as equal


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    own=st.integers(1, 9),
    count=st.integers(1, 9),
    weight=st.floats(0, 1),
    n=st.integers(2, 4),
)
@example(seed=0, own=1, count=1, weight=5e-324, n=2)  # the smallest weight above 0
def test_repeating_the_positions_of_a_painting_changes_nothing(
    seed: int, own: int, count: int, weight: float, n: int
) -> None:
    query, pair, [(keys, values)] = random_case(seed, own, [count])
    once = attend(query, pair, [((keys, values), 1.0)], weight)
    many = keys.repeat(1, 1, n, 1), values.repeat(1, 1, n, 1)
    close(attend(query, pair, [(many, 1.0)], weight), once, 1e-6)
    # Nor does cutting it into equal parts that share its mass, in any order.
    parts = [((keys, values), 1 / n)] * n
    close(attend(query, pair, parts, weight), once, 1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), own=st.integers(1, 9), count=st.integers(1, 9))
def test_the_ends_of_the_weight_are_plain_attention_to_one_side(seed: int, own: int, count: int) -> None:
    query, pair, [painting] = random_case(seed, own, [count])
    plain = torch.nn.functional.scaled_dot_product_attention
    close(attend(query, pair, [(painting, 1.0)], 0.0), plain(query, *pair), 1e-12)
    close(attend(query, pair, [(painting, 1.0)], 1e-9), plain(query, *pair), 1e-5)
    close(
        attend(query, pair, [(painting, 1.0)], 1.0), plain(query, *(x.expand(2, -1, -1, -1) for x in painting)), 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_an_extreme_weight_stays_finite(dtype: torch.dtype) -> None:
    query, pair, [painting] = random_case(0, 5, [7])
    half = [tuple(x.to(dtype) for x in p) for p in (pair, painting)]
    for weight in (1e-12, 1 - 1e-12, 0.3):
        found = attend(query.to(dtype), half[0], [(half[1], 1.0)], weight)
        assert found.dtype == dtype
        close(found.double(), attend(query, pair, [(painting, 1.0)], weight), 0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_a_painting_gets_the_weight_that_was_asked_for(dtype: torch.dtype) -> None:
    """The positions of 512 x 512 pixels. All keys are 0, so only the priors count; the values are 0 and 1."""
    zeros, ones = torch.zeros(1, 1, 4096, 8, dtype=dtype), torch.ones(1, 1, 4096, 8, dtype=dtype)
    for weight in (0.1, 0.3, 0.55, 0.6, 0.8):
        found = attend(zeros[:, :, :1], (zeros, zeros), [((zeros, ones), 1.0)], weight)
        assert found.double().mean().item() == pytest.approx(weight, abs=0.6 * torch.finfo(dtype).eps)


# Against StyleID in processors written by hand

BLOCKS = {
    "up": ("up_blocks.0.", "up_blocks.1.", "up_blocks.2."),
    "fine": ("up_blocks.1.", "up_blocks.2."),
    "all": ("down_blocks.", "mid_block.", "up_blocks."),
}


class ByHand:
    """A processor of diffusers: self-attention with a plain softmax, which stores, or takes, Q, K and V."""

    def __init__(self, stored: dict[str, torch.Tensor], take: bool, gamma: float, tau: float) -> None:
        self.stored, self.take, self.gamma, self.tau = stored, take, gamma, tau

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        assert encoder_hidden_states is None

        def heads(x: torch.Tensor) -> torch.Tensor:
            return torch.stack(x.chunk(attn.heads, dim=-1), dim=1)

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(hidden_states)), heads(attn.to_v(hidden_states))
        if self.take:
            if "query" in self.stored:
                q = self.gamma * self.stored["query"] + (1 - self.gamma) * q
            k, v = self.stored["key"], self.stored["value"]
        else:
            self.stored |= {"q": q, "k": k, "v": v}
        weights = (self.tau * q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        out = torch.cat(list((weights @ v).unbind(dim=1)), dim=-1)
        return attn.to_out[0](out)


def styleid(
    backbone: Backbone,
    blocks: Sequence[str],
    painting: torch.Tensor,
    painting_text: TextEmbedding,
    latents: torch.Tensor,
    t: int,
    text: TextEmbedding,
    content: torch.Tensor | None = None,
    gamma: float = 0.0,
    tau: float = 1.0,
    **more: Any,
) -> torch.Tensor:
    """Predict noise with the keys and values of a painting (StyleID, Chung et al. 2024, eq. 5 to 8)."""
    unet = backbone.unet
    before = dict(unet.attn_processors)
    names = [name for name in before if name.endswith("attn1.processor") and name.startswith(tuple(blocks))]
    assert names
    stored: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}

    def use(take: bool, tau: float) -> None:
        unet.set_attn_processor(before | {name: ByHand(stored[name], take, gamma, tau) for name in names})

    try:
        use(False, 1.0)
        backbone.predict_noise(painting, t, painting_text)
        for one in stored.values():
            one["key"], one["value"] = one["k"], one["v"]
        if content is not None:
            backbone.predict_noise(content, t, text, **more)
            for one in stored.values():
                one["query"] = one["q"]
        use(True, tau)
        return backbone.predict_noise(latents, t, text, **more)
    finally:
        unet.set_attn_processor(before)


@torch.no_grad()
@pytest.mark.parametrize(("gamma", "tau"), [(0.0, 1.0), (0.75, 1.5), (1.0, 0.5)])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_full_attention_to_a_painting_is_styleid(
    backbone: Backbone, text: TextEmbedding, blocks: str, gamma: float, tau: float
) -> None:
    painting, t = reference(backbone, size=(8, 12)), 500
    latents, content = draw_noise((4, 8, 8), [1, 2]), draw_noise((4, 8, 8), [3, 4])
    attention = style_attention(
        backbone,
        [painting],
        (lambda at: content) if gamma else None,
        query_preservation=gamma,
        temperature=tau,
        blocks=blocks,
    )
    predict = attention.with_painting(backbone.predict_noise)
    found = attention.with_content(lambda z, at: predict(z, at, text))(latents, t)
    given_content = content if gamma else None
    expected = styleid(
        backbone, BLOCKS[blocks], painting.at(t), painting.text, latents, t, text, given_content, gamma, tau
    )
    close(found, expected)
    for other in BLOCKS.keys() - {blocks}:  # the cases can tell the blocks apart
        wrong = styleid(
            backbone, BLOCKS[other], painting.at(t), painting.text, latents, t, text, given_content, gamma, tau
        )
        assert not torch.allclose(found, wrong, atol=1e-4)


@pytest.fixture(scope="module", params=[*FAMILIES, "mini"])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path
) -> Backbone:
    kind = request.param
    folder = tiny_backbone_folder if kind == "mini" else save_family(tmp_path_factory.mktemp(kind), kind)
    return sharpen(Backbone.load(folder, "cpu", "float32"))


@torch.no_grad()
@pytest.mark.parametrize("blocks", ["up", "all"])
def test_style_attention_is_styleid_for_every_family(family: Backbone, blocks: str) -> None:
    painting, t = reference(family, size=(6, 10)), 600
    latents, text = draw_noise((4, 8, 8), [1, 2]), family.embed_text(["a river", "a dog"])
    found = style_attention(family, [painting], blocks=blocks).with_painting(family.predict_noise)(latents, t, text)
    close(found, styleid(family, BLOCKS[blocks], painting.at(t), painting.text, latents, t, text))
    assert not torch.allclose(found, family.predict_noise(latents, t, text), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_style_attention_in_half_precision_is_close_to_float32(tiny_backbone_folder: Path, dtype: str) -> None:
    full, half = (Backbone.load(tiny_backbone_folder, "cpu", kind) for kind in ("float32", dtype))
    latents = draw_noise((4, 8, 8), [1])
    found, expected = (
        style_attention(one, weight=0.7).with_painting(one.predict_noise)(latents, 500, one.embed_text(["a dog"]))
        for one in (half, full)
    )
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.03


@torch.no_grad()
@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_photo_as_its_own_painting_changes_nothing(backbone: Backbone, blocks: str) -> None:
    """The keys and values of the painting are the photo's own, in every layer."""
    latents, text = draw_noise((4, 8, 8), [1]), backbone.embed_text(["a river"])
    own = Reference(lambda t: latents, text)
    for weight in (1.0, 0.4):
        found = style_attention(backbone, [own], blocks=blocks, weight=weight).with_painting(backbone.predict_noise)
        close(found(latents, 400, text), backbone.predict_noise(latents, 400, text))
        assert not torch.allclose(found(-latents, 400, text), backbone.predict_noise(-latents, 400, text), atol=1e-4)


@torch.no_grad()
def test_a_painting_given_twice_counts_once(backbone: Backbone, text: TextEmbedding) -> None:
    latents = draw_noise((4, 8, 8), [1, 2])
    once, twice = (
        style_attention(backbone, [reference(backbone, share=share) for share in shares], weight=0.6).with_painting(
            backbone.predict_noise
        )(latents, 500, text)
        for shares in ([1.0], [0.3, 0.7])
    )
    close(twice, once)


@torch.no_grad()
def test_blocks_without_self_attention_are_left_as_they_are(tmp_path: Path) -> None:
    """With `only_cross_attention`, their layers called attn1 look at the text."""
    folder = save_family(tmp_path, "sd1", only_cross_attention=True)
    backbone = Backbone.load(folder, "cpu", "float32")
    latents, text = draw_noise((4, 8, 8), [1]), backbone.embed_text(["a dog"])
    found = style_attention(backbone, blocks="up").with_painting(backbone.predict_noise)(latents, 500, text)
    assert torch.equal(found, backbone.predict_noise(latents, 500, text))


@torch.no_grad()
def test_each_tile_gets_the_queries_of_its_own_part_of_the_photo(family: Backbone) -> None:
    """Also with Stable Diffusion XL, which is told the place of the tile."""
    text = family.embed_text(["a river"])
    painting, t = reference(family), 500
    latents, content = draw_noise((4, 16, 24), [1]), draw_noise((4, 16, 24), [3])
    attention = style_attention(family, [painting], lambda at: content, query_preservation=0.6)
    predict = attention.with_painting(family.predict_noise)
    denoise = tiled(lambda frame: lambda z, at: predict(z, at, text, frame=frame), 16, 4)

    def by_hand(both: torch.Tensor, top: int, left: int) -> torch.Tensor:
        z, photo = both.chunk(2, dim=1)
        frame = Frame(16, 24, top, left)
        return styleid(family, BLOCKS["up"], painting.at(t), painting.text, z, t, text, photo, 0.6, frame=frame)

    found = attention.with_content(denoise)(latents, t)
    close(found, map_tiles(by_hand, torch.cat([latents, content], dim=1), 16, 4))


@torch.no_grad()
def test_further_channels_behind_those_of_the_photo_are_passed_on(backbone: Backbone) -> None:
    """A ControlNet gets its picture in them."""
    seen = []

    def predict_noise(extended: torch.Tensor, t: int, text: TextEmbedding, *, frame: Any = None) -> torch.Tensor:
        seen.append(extended)
        return backbone.predict_noise(extended[:, :4], t, text)

    latents, photo, control = draw_noise((4, 8, 8), [1]), draw_noise((4, 8, 8), [2]), draw_noise((6, 8, 8), [3])
    attention = style_attention(backbone, content_at=lambda at: photo, query_preservation=0.5)
    predict, text = attention.with_painting(predict_noise), backbone.embed_text(["a river"])
    attention.with_content(lambda z, t: predict(torch.cat([z, control], dim=1), t, text))(latents, 500)
    assert len(seen) == 1  # the photo is recorded without the ControlNet
    assert torch.equal(seen[0], torch.cat([latents, control], dim=1))


# How often the paintings are computed


@torch.no_grad()
def test_timesteps_computed_ahead_give_the_same_noise(backbone: Backbone, text: TextEmbedding) -> None:
    latents = draw_noise((4, 8, 8), [1, 2])
    paintings = [reference(backbone, share=0.4), reference(backbone, 11, 0.6, (8, 12), "a dog")]
    found = {}
    for ahead in (1, 8):
        attention = style_attention(backbone, paintings, weight=0.7)
        attention._ahead = ahead
        predict = attention.with_painting(backbone.predict_noise)
        # Twice at one timestep, out of order, and at a timestep that was not planned.
        found[ahead] = [predict(latents, t, text) for t in [*TIMESTEPS, 5, 500, 42, 500]]
    for one, other in zip(found[1], found[8], strict=True):
        close(one, other)
    assert not torch.allclose(found[1][0], found[1][1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("ahead", "batches"), [(1, [1] * 10), (8, [8, 2])])
def test_keys_are_computed_once_for_a_batch_and_its_tiles(backbone: Backbone, ahead: int, batches: list[int]) -> None:
    """The painting is wider than the tiles, so its calls can be told from theirs."""
    attention = style_attention(backbone, [reference(backbone, size=(8, 12))])
    attention._ahead = ahead
    predict, text = attention.with_painting(backbone.predict_noise), backbone.embed_text(["a river"])
    denoise = tiled(lambda frame: lambda z, t: predict(z, t, text, frame=frame), 8, 2)
    calls: list[tuple[int, ...]] = []
    with hooked(backbone.unet, lambda module, arguments: calls.append(tuple(arguments[0].shape))):
        for t in TIMESTEPS:
            denoise(draw_noise((4, 8, 20), [1, 2, 3]), t)
    assert [shape[0] for shape in calls if shape[-1] == 12] == batches
    assert [shape for shape in calls if shape[-1] != 12] == [(3, 4, 8, 8)] * 3 * len(TIMESTEPS)


def test_the_painting_runs_to_the_last_layer_and_not_further(backbone: Backbone, text: TextEmbedding) -> None:
    ends: list[int] = []
    attention = style_attention(backbone)
    hook = backbone.unet.conv_out.register_forward_hook(lambda module, args, output: ends.append(len(output)))
    try:
        attention.with_painting(backbone.predict_noise)(draw_noise((4, 8, 8), [0, 1]), 500, text)
    finally:
        hook.remove()
    assert ends == [2]  # the pictures, and not the painting


def test_low_memory_and_the_cpu_keep_one_timestep(backbone: Backbone, tiny_backbone_folder: Path) -> None:
    lean = Backbone.load(tiny_backbone_folder, "cpu", "float32", low_memory=True)
    with torch.no_grad():
        for one in (backbone, lean):
            attention = style_attention(one)
            predict = attention.with_painting(one.predict_noise)
            for t in TIMESTEPS[:3]:
                predict(draw_noise((4, 8, 8), [1]), t, one.embed_text(["a dog"]))
                assert list(attention._memory) == [t]


# The processors


@torch.no_grad()
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_processors_are_put_back(backbone: Backbone, text: TextEmbedding, blocks: str) -> None:
    before = dict(backbone.unet.attn_processors)
    predict = style_attention(backbone, blocks=blocks).with_painting(backbone.predict_noise)
    during: list[dict[str, Any]] = []
    with hooked(backbone.unet.mid_block, lambda *_: during.append(dict(backbone.unet.attn_processors))):
        predict(draw_noise((4, 8, 8), [1, 2]), 500, text)
    assert is_as_before(backbone.unet, before)
    for processors in during:  # cross-attention, and other blocks, are never touched
        changed = {name for name in before if processors[name] is not before[name]}
        assert changed == {
            name for name in before if name.endswith("attn1.processor") and name.startswith(BLOCKS[blocks])
        }


@torch.no_grad()
@pytest.mark.parametrize("call", [1, 2])  # of the UNet: that of the painting, and that of the picture
def test_the_processors_are_put_back_after_an_error(backbone: Backbone, text: TextEmbedding, call: int) -> None:
    before = dict(backbone.unet.attn_processors)
    latents = draw_noise((4, 8, 8), [1, 2])
    attention = style_attention(backbone)
    predict = attention.with_painting(backbone.predict_noise)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise MemoryError("out of memory")

    with hooked(backbone.unet.mid_block, fail), pytest.raises(MemoryError):
        predict(latents, 500, text)
    assert is_as_before(backbone.unet, before)
    expected = style_attention(backbone).with_painting(backbone.predict_noise)(latents, 500, text)
    assert torch.equal(predict(latents, 500, text), expected)  # and the next call works


@torch.no_grad()
def test_a_processor_that_someone_sets_meanwhile_stays(backbone: Backbone, text: TextEmbedding) -> None:
    unet = copy.deepcopy(backbone.unet)
    theirs = {name: copy.copy(processor) for name, processor in unet.attn_processors.items()}
    with handled(self_attention_layers(unet, "up"), lambda name, layer, hidden, plain: plain()):
        unet.set_attn_processor(dict(theirs))
        with handled(self_attention_layers(unet, "all"), lambda name, layer, hidden, plain: plain()):
            assert not is_as_before(unet, theirs)
        assert is_as_before(unet, theirs)
    assert is_as_before(unet, theirs)


class Pause:
    """Holds the calls of a module in one thread: at the call of this number, until it is released."""

    def __init__(self, module: torch.nn.Module, call: int) -> None:
        self.module, self.call, self.calls = module, call, 0
        self.thread: int | None = None
        self.reached, self.released = threading.Event(), threading.Event()

    def __call__(self, *_: Any) -> None:
        if threading.get_ident() == self.thread:
            self.calls += 1
            if self.calls == self.call:
                self.reached.set()
                assert self.released.wait(WAIT)

    def run(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.thread = threading.get_ident()
        with torch.no_grad(), hooked(self.module, self):
            return function()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@torch.no_grad()
@pytest.mark.parametrize("blocks", ["up", "all"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_plain_call_during_a_call_with_style_attention_is_plain(
    backbone: Backbone, text: TextEmbedding, threads: ThreadPoolExecutor, blocks: str, call: int
) -> None:
    unet, latents = backbone.unet, draw_noise((4, 8, 8), [1, 2])
    before = dict(unet.attn_processors)

    def styled() -> torch.Tensor:
        return style_attention(backbone, blocks=blocks).with_painting(backbone.predict_noise)(latents, 500, text)

    def plain() -> torch.Tensor:
        return unet(latents, 300, encoder_hidden_states=text.tokens).sample

    alone_styled, alone = styled(), plain()
    pause = Pause(unet.mid_block, call)
    running = threads.submit(pause.run, styled)
    try:
        assert pause.reached.wait(WAIT)
        assert not is_as_before(unet, before)  # the other call is in the middle
        during = plain()
    finally:
        pause.released.set()
    assert torch.equal(during, alone)
    assert torch.equal(running.result(WAIT), alone_styled)
    assert is_as_before(unet, before)


@torch.no_grad()
@pytest.mark.parametrize("first_ends", ["last", "first"])
@pytest.mark.parametrize(("one_blocks", "other_blocks"), [("up", "up"), ("up", "all"), ("all", "up"), ("fine", "all")])
def test_two_styles_at_once_give_what_each_gives_alone(
    backbone: Backbone,
    text: TextEmbedding,
    threads: ThreadPoolExecutor,
    one_blocks: str,
    other_blocks: str,
    first_ends: str,
) -> None:
    unet, before = backbone.unet, dict(backbone.unet.attn_processors)
    latents, photo = draw_noise((4, 8, 8), [1, 2]), draw_noise((4, 8, 8), [3, 4])

    def one() -> torch.Tensor:
        attention = style_attention(backbone, blocks=one_blocks, weight=0.8)
        return attention.with_painting(backbone.predict_noise)(latents, 500, text)

    def other() -> torch.Tensor:
        attention = style_attention(
            backbone,
            [reference(backbone, 11, size=(8, 12))],
            lambda t: photo,
            blocks=other_blocks,
            query_preservation=0.5,
        )
        predict = attention.with_painting(backbone.predict_noise)
        return attention.with_content(lambda z, t: predict(z, t, text))(latents, 300)

    alone = one(), other()
    assert not torch.allclose(*alone, atol=1e-2)
    first, second = Pause(unet.mid_block, 2), Pause(unet.mid_block, 3)  # each in its last call
    try:
        running = threads.submit(first.run, one)
        assert first.reached.wait(WAIT)
        also_running = threads.submit(second.run, other)
        assert second.reached.wait(WAIT)
        order = [(first, running, alone[0]), (second, also_running, alone[1])]
        for pause, result, expected in order if first_ends == "first" else reversed(order):
            assert not is_as_before(unet, before)
            pause.released.set()
            assert torch.equal(result.result(WAIT), expected)
    finally:
        first.released.set()
        second.released.set()
    assert is_as_before(unet, before)


@torch.no_grad()
def test_a_plain_call_meanwhile_still_gives_its_own_arguments_to_its_own_processors(
    backbone: Backbone, text: TextEmbedding, threads: ThreadPoolExecutor
) -> None:
    """diffusers reads from a processor's signature which of `cross_attention_kwargs` it takes."""

    class Louder:
        def __call__(
            self,
            attn: Any,
            hidden_states: Any,
            encoder_hidden_states: Any = None,
            attention_mask: Any = None,
            gain: float = 1.0,
        ) -> Any:
            return gain * attn.to_v(hidden_states if encoder_hidden_states is None else encoder_hidden_states).mean(
                dim=1, keepdim=True
            ).expand(-1, hidden_states.shape[1], -1)

    unet, latents = copy.deepcopy(backbone.unet), draw_noise((4, 8, 8), [1, 2])
    unet.set_attn_processor(Louder())

    def plain(**arguments: Any) -> torch.Tensor:
        return unet(latents, 300, encoder_hidden_states=text.tokens, cross_attention_kwargs=arguments).sample

    def call() -> torch.Tensor:
        with handled(self_attention_layers(unet, "all"), lambda name, layer, hidden, plain: plain()):
            return unet(latents, 300, encoder_hidden_states=text.tokens).sample

    alone = plain(gain=3.0)
    assert not torch.allclose(alone, plain(), atol=1e-3)
    pause = Pause(unet.mid_block, 1)
    running = threads.submit(pause.run, call)
    try:
        assert pause.reached.wait(WAIT)
        during = plain(gain=3.0)
    finally:
        pause.released.set()
    assert torch.equal(running.result(WAIT), plain())
    assert torch.equal(during, alone)


# Wrong values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"weight": value}, "style attention") for value in (-0.1, 1.1, math.nan, math.inf, "a", True, None)),
        *(({"query_preservation": value}, "query preservation") for value in (-1, 2, math.nan, "a", True)),
        *(({"temperature": value}, "attention temperature") for value in (0, -1, math.nan, math.inf, "a", True)),
        *(({"blocks": value}, "attention blocks") for value in ("down", "", None, 1)),
    ],
)
def test_wrong_settings_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        AttentionSettings(**changes)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_numbers_of_numpy_are_settings_too(backbone: Backbone, text: TextEmbedding) -> None:
    numpy = pytest.importorskip("numpy")
    latents, photo = draw_noise((4, 8, 8), [1, 2]), draw_noise((4, 8, 8), [3, 4])
    found = []
    for number in (float, numpy.float32, numpy.float64):
        attention = style_attention(
            backbone,
            None,
            lambda t: photo,
            weight=number(0.5),
            query_preservation=number(0.25),
            temperature=number(1.5),
        )
        predict = attention.with_painting(backbone.predict_noise)
        found.append(attention.with_content(lambda z, t, predict=predict: predict(z, t, text))(latents, 500))
    close(found[1], found[0])
    close(found[2], found[0])


def test_between_fresh_timesteps_the_keys_and_values_are_kept(backbone: Backbone, text: TextEmbedding) -> None:
    """At a timestep that is not fresh, the result is the one with the painting at the fresh timestep before."""
    every, third = TIMESTEPS, TIMESTEPS[::3]
    latents, asked = draw_noise((4, 8, 8), [1, 2]), []
    painting = draw_noise((4, 8, 8), [10])

    def at(t: int) -> torch.Tensor:
        asked.append(t)
        return painting * (1 + t / 1000)

    settings, seen = AttentionSettings(), backbone.embed_text(["a painting"])
    attention = StyleAttention(backbone, settings, [Reference(at, seen)], every, fresh=third)
    predict = attention.with_painting(backbone.predict_noise)
    found = [predict(latents, t, text) for t in every]
    assert asked == third
    for place, t in enumerate(every):
        before = third[place // 3]
        with_fixed = StyleAttention(backbone, settings, [reference_at(backbone, painting, before)], [t])
        record = with_fixed._record_reference(with_fixed.references[0], [before])
        with_fixed._memory = {t: [record]}
        close(found[place], with_fixed.with_painting(backbone.predict_noise)(latents, t, text))


def reference_at(backbone: Backbone, painting: torch.Tensor, timestep: int) -> Reference:
    return Reference(lambda t: painting * (1 + timestep / 1000), backbone.embed_text(["a painting"]))
