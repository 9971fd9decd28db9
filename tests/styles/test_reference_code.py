"""The reference code's `embeddings.pt`: against modules of its layout that attend in full, and CLIP's own processor."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

from inst import Backbone, InstError, UsageError
from inst.pictures.reading import Photo, read_photo
from inst.pictures.tensors import to_image
from inst.styles.importing import import_style, read_embedding
from inst.styles.reference_code import CLASSES, ReferenceInversion, cast_as_reference, compute_vector
from inst.styles.style import Style
from tiny import WIDTH

HEADS, PER_HEAD = 2, 8


class CrossAttention(nn.Module):
    """Multi-head attention in the layout of the reference's class; written for these tests."""

    def __init__(self, width: int, dropout: float = 0.05) -> None:
        super().__init__()
        inner = HEADS * PER_HEAD
        self.scale, self.heads = PER_HEAD**-0.5, HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attention = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)
        return self.to_out((attention @ v).transpose(1, 2).flatten(2))


class Attentions(nn.Module):
    def __init__(self, width: int, dropout: float = 0.05) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, dropout), CrossAttention(width, dropout)
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.attn2(self.attn1(x), x))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lets both classes be pickled under the reference's names."""
    for kind, place in ((Attentions, "ldm.modules.embedding_manager"), (CrossAttention, "ldm.modules.attention")):
        monkeypatch.setattr(kind, "__module__", place)
        for end in ("ldm", "ldm.modules", place):
            monkeypatch.setitem(sys.modules, end, sys.modules.get(end) or ModuleType(end))
        setattr(sys.modules[place], kind.__name__, kind)
    return monkeypatch


def saved(path: Path, module: Any, importable: pytest.MonkeyPatch) -> Path:
    """Write what the reference's `EmbeddingManager.save` writes; then the classes are there no more."""
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "attention": module}, path)
    for name in ("ldm.modules.embedding_manager", "ldm.modules.attention", "ldm.modules", "ldm"):
        importable.delitem(sys.modules, name)
    return path


def painting(folder: Path, seed: int = 0) -> Photo:
    levels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    levels[:2, :2], levels[-1] = 0, 255
    Image.fromarray(levels).resize((90, 60), Image.Resampling.NEAREST).save(folder / f"painting-{seed}.png")
    return read_photo(folder / f"painting-{seed}.png", flattened=True)


def test_the_vector_equals_that_of_the_reference_module_in_evaluation_mode(
    tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    module = Attentions(WIDTH)  # in training mode, as the reference saves it
    found = read_embedding(saved(tmp_path / "embeddings.pt", module, importable))
    assert isinstance(found, ReferenceInversion)
    assert found.width == WIDTH
    pooled = torch.nn.functional.normalize(torch.randn(3, WIDTH), dim=-1)
    expected = module.eval()(pooled[:, None])[:, 0]
    torch.testing.assert_close(found(pooled), expected)
    torch.testing.assert_close(found(7 * pooled), expected)
    assert not torch.allclose(module.train()(pooled[:, None])[:, 0], expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_reference_module_and_a_painting_give_a_style(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch, zipped: bool
) -> None:
    module = Attentions(WIDTH).half() if zipped else Attentions(WIDTH)
    path = saved(tmp_path / "embeddings.pt", module, importable)
    picture = painting(tmp_path)
    style = import_style(tiny_backbone, path, painting=picture)
    assert tiny_backbone.image_encoder is not None
    pooled, _ = tiny_backbone.embed_picture(picture.picture[None])
    pooled = torch.nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(style.vectors, module.float().eval()(pooled[:, None])[:, 0])
    assert style.check(tiny_backbone) is None
    assert style.name == "painting-0"
    assert style.about["imported"]["format"] == "InST reference"
    assert style.about["paintings"] == [{"name": "painting-0.png", "sha256": picture.sha256}]
    assert len(style.paintings) == 1
    again = import_style(tiny_backbone, path, painting=picture)
    assert torch.equal(again.vectors, style.vectors)
    other = import_style(tiny_backbone, path, painting=painting(tmp_path, 1))
    assert not torch.allclose(other.vectors, style.vectors)


def test_the_reference_cast_equals_numpys_cast_to_8_bits() -> None:
    """Pixels from -1 to 1 to 8 bits: the sign is dropped with what is behind the point, and -1 wraps around."""
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(levels).resize((512, 512), Image.Resampling.NEAREST)
    values = 2 * (np.asarray(image).astype(np.float32) / 255) - 1
    expected = values.astype(np.int64).astype(np.uint8)  # by way of an integer: -1.0 itself has no 8-bit value in C
    found = np.asarray(cast_as_reference(image))
    assert found.dtype == np.uint8
    assert (found == expected).all()
    assert set(np.unique(found)) == {0, 1, 255}
    assert cast_as_reference(Image.new("RGB", (100, 30), "teal")).size == (512, 512)


def test_as_reference_clip_sees_the_cast_picture_as_its_own_processor_prepares_it(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    module = Attentions(WIDTH)
    found = read_embedding(saved(tmp_path / "embeddings.pt", module, importable))
    assert isinstance(found, ReferenceInversion)
    assert tiny_backbone.image_encoder is not None
    assert tiny_backbone.feature_extractor is not None
    size = tiny_backbone.feature_extractor.size
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    vectors = []
    for seed in (0, 1):
        picture = painting(tmp_path, seed)
        cast = cast_as_reference(to_image(picture.picture))
        pixels = processor(images=cast, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            pooled = torch.nn.functional.normalize(
                tiny_backbone.image_encoder(pixel_values=pixels).image_embeds, dim=-1
            )
            expected = module.eval()(pooled[:, None])[:, 0]
        vectors.append(compute_vector(found, tiny_backbone, picture, as_reference=True))
        torch.testing.assert_close(vectors[-1], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(vectors[-1], compute_vector(found, tiny_backbone, picture, as_reference=False))

    plain = [Photo(torch.full((3, 64, 64), value)) for value in (-0.5, 0.5)]
    dull = [compute_vector(found, tiny_backbone, one, as_reference=True) for one in plain]
    assert torch.equal(*dull)  # neither has black or white: CLIP sees the same black square


def test_a_module_needs_a_painting_and_plain_vectors_refuse_as_reference(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "embeddings.pt", Attentions(WIDTH), importable)
    with pytest.raises(UsageError, match="holds no vector, only the module that computes it from the painting"):
        import_style(tiny_backbone, path)
    torch.save({"emb_params": torch.ones(1, WIDTH)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="leave out `as_reference`"):
        import_style(tiny_backbone, tmp_path / "other.pt", as_reference=True)


def test_a_module_of_another_width_is_refused(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "embeddings.pt", Attentions(768), importable)
    with pytest.raises(UsageError, match=r"width 768 \(Stable Diffusion 1.x\), which does not fit"):
        import_style(tiny_backbone, path, painting=painting(tmp_path))


def test_modules_that_are_not_the_references_are_refused_with_the_reason(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    picture = painting(tmp_path)

    def refuse(module: Any, said: str) -> None:
        torch.save({"string_to_token": {}, "attention": module}, tmp_path / "embeddings.pt")
        with pytest.raises(InstError, match=said) as caught:
            import_style(tiny_backbone, tmp_path / "embeddings.pt", painting=picture)
        assert "\n" not in str(caught.value)

    refuse(nn.Linear(2, 2), "not an embeddings.pt of the reference code .*attn2")
    refuse(None, "not an embeddings.pt of the reference code")
    lacking = Attentions(WIDTH)
    del lacking.net[1]
    refuse(lacking, "not an embeddings.pt of the reference code")
    crooked = Attentions(WIDTH)
    crooked.net[1] = nn.Linear(WIDTH, WIDTH + 1)
    refuse(crooked, rf"net.1.weight has the shape \[{WIDTH + 1}, {WIDTH}\]")
    broken = Attentions(WIDTH)
    nn.init.constant_(broken.net[1].bias, float("inf"))
    refuse(broken, "net.1.bias is not a tensor of finite numbers")
    other = Attentions(WIDTH)
    other.net[0] = nn.GELU()
    refuse(other, r"asks for torch\.nn\.modules\.activation\.GELU, which is not on the allow-list")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_harmful_code_in_a_module_is_refused_and_not_run(
    tiny_backbone: Backbone, tmp_path: Path, importable: pytest.MonkeyPatch
) -> None:
    module = Attentions(WIDTH)
    module.extra = Harmful(tmp_path / "harmed")
    path = saved(tmp_path / "embeddings.pt", module, importable)
    with pytest.raises(InstError, match=r"asks for (posix|nt)\.mkdir, which is not on the allow-list; nothing was run"):
        import_style(tiny_backbone, path, painting=painting(tmp_path))
    assert not (tmp_path / "harmed").exists()
    assert all("mkdir" not in name for name in CLASSES)


def test_the_import_command_needs_a_painting_and_makes_the_same_style_as_python(
    run: Callable[..., tuple[int, str, str]],
    common: list[object],
    tiny_backbone: Backbone,
    tmp_path: Path,
    importable: pytest.MonkeyPatch,
) -> None:
    path = saved(tmp_path / "embeddings.pt", Attentions(WIDTH), importable)
    picture = painting(tmp_path)
    code, _, err = run("style", "import", path, *common)
    assert (code, err.count("\n")) == (2, 1)
    assert "give the painting as --painting" in err
    given = ["--painting", "painting-0.png", "--as-reference", "-o", "out.safetensors"]
    code, _, err = run("style", "import", path, *given, *common)
    assert (code, err) == (0, "")
    found = Style.load("out.safetensors")
    expected = import_style(tiny_backbone, path, painting=picture, as_reference=True)
    torch.testing.assert_close(found.vectors, expected.vectors)
    assert found.about["imported"]["as_reference"] is True
