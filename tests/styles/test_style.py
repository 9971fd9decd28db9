"""Style files: what is kept, what is refused and in which words, and what fits which backbone."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from inst import Backbone, InstError, UsageError
from inst.pictures.stored import encode_painting
from inst.styles.style import Style
from tiny import WIDTH

HERE, THERE = "0123456789abcdef", "fedcba9876543210"


def random_vectors(seed: int = 0, n: int = 3, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def full_style() -> Style:
    picture = torch.linspace(-1, 1, 3 * 40 * 60).view(3, 40, 60)
    return Style(
        random_vectors(),
        HERE,
        THERE,
        about={
            "name": "Wellen",
            "backbone": "tiny",
            "variant": "attention",
            "steps": 200,
            "loss": 0.1234567890123,
            "crops": True,
            "paintings": [{"name": "/home/ann/睡莲.jpg", "sha256": "00ff"}],
            "captions": ["[C]", "black/white [C]"],
        },
        paintings=(encode_painting(picture), encode_painting(-picture)),
        shares=(0.75, 0.25),
        module={"layers.0.weight": torch.eye(4), "base": torch.arange(3.0), "spread": torch.tensor(0.5)},
        module_config={"layers": 1, "dropout": 0.05, "variant": "attention"},
    )


# What is kept


def test_a_saved_style_is_loaded_with_everything_it_had(tmp_path: Path) -> None:
    style = full_style()
    path = style.save(tmp_path / "waves.safetensors")
    found = Style.load(path)
    assert torch.equal(found.vectors, style.vectors)
    assert (found.fingerprint, found.denoiser) == (HERE, THERE)
    assert (found.paintings, found.shares) == (style.paintings, (0.75, 0.25))
    assert found.about == style.about
    assert found.about["paintings"] == [{"name": "睡莲.jpg", "sha256": "00ff"}]
    assert found.about["captions"][1] == "black/white [C]"
    assert found.module is not None
    assert style.module is not None
    assert found.module.keys() == style.module.keys()
    assert all(torch.equal(found.module[key], style.module[key]) for key in style.module)
    assert found.module_config == style.module_config
    assert found.painting(1).shape == (3, 40, 60)
    assert (found.painting(1) + found.painting()).abs().mean() < 0.1

    smallest = Style(random_vectors(), HERE)
    found = Style.from_bytes(smallest.to_bytes())
    assert torch.equal(found.vectors, smallest.vectors)
    assert (found.denoiser, found.about, found.name) == ("", {}, "unnamed")
    assert (found.paintings, found.shares, found.module, found.module_config) == ((), (), None, None)


def test_a_style_file_can_be_read_by_safetensors_alone(tmp_path: Path) -> None:
    path = full_style().save(tmp_path / "waves.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {
            "vectors",
            "painting.0",
            "painting.1",
            "module.layers.0.weight",
            "module.base",
            "module.spread",
        }
        assert torch.equal(file.get_tensor("vectors"), full_style().vectors)
        assert file.get_tensor("painting.0").dtype == torch.uint8
        assert json.loads(file.metadata()["inst_style"])["about"]["steps"] == 200


def test_the_same_style_gives_the_same_bytes(tmp_path: Path) -> None:
    data = full_style().to_bytes()
    assert Style.from_bytes(data).to_bytes() == data
    style = full_style()
    reordered = dataclasses.replace(
        style,
        about=dict(reversed(style.about.items())),
        module=dict(reversed((style.module or {}).items())),
        module_config=dict(reversed((style.module_config or {}).items())),
    )
    assert reordered.to_bytes() == data
    # Hash seeds differ from process to process, and safetensors' own do too.
    path = tmp_path / "waves.safetensors"
    path.write_bytes(data)
    program = (
        "import sys, hashlib; from inst.styles.style import Style;"
        f"print(hashlib.sha256(Style.load({str(path)!r}).to_bytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert other.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_vectors_are_a_float32_copy_that_can_be_learned_on() -> None:
    source = torch.nn.Parameter(random_vectors().double())
    style = Style(source, HERE)
    with torch.no_grad():
        source.zero_()
    assert style.vectors.dtype == torch.float32
    assert not style.vectors.requires_grad
    assert torch.equal(style.vectors, random_vectors())
    assert torch.equal(Style(random_vectors().half(), HERE).vectors, random_vectors().half().float())
    with torch.inference_mode():
        style = Style(random_vectors() * 2, HERE)
    (style.vectors * torch.ones(WIDTH, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    vectors = random_vectors()
    vectors[1, 2] = value
    with pytest.raises(InstError, match=r"not finite: learn the style again"):
        Style(vectors, HERE)
    path = rewrite(tmp_path / "nan.safetensors", {"vectors": vectors})
    refuse(path, "not finite")


@pytest.mark.parametrize("shape", [(WIDTH,), (1, 2, WIDTH), (3, 0)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        Style(torch.zeros(shape), HERE)
    refuse(rewrite(tmp_path / "shape.safetensors", {"vectors": torch.zeros(shape)}), "have the shape [n, d]")


def test_widths_of_two_text_encoders_are_kept(tmp_path: Path) -> None:
    style = Style(random_vectors(), HERE, widths=(20, WIDTH - 20))
    assert Style.load(style.save(tmp_path / "two.safetensors")).widths == (20, WIDTH - 20)
    assert style.bare(paintings=False).widths == style.widths
    assert Style.mix([(style, 1), (style, 2)]).widths == style.widths
    assert style.width_text == f"20 + {WIDTH - 20}"
    one = Style(random_vectors(), HERE)
    assert (one.widths, one.width_text) == ((WIDTH,), str(WIDTH))
    assert Style.from_bytes(one.to_bytes()).widths == (WIDTH,)
    with pytest.raises(UsageError, match=rf"different widths .20 \+ {WIDTH - 20} and {WIDTH}"):
        Style.mix([(style, 1), (one, 1)])


def test_older_style_files_without_widths_and_with_a_thumbnail_are_still_read(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.new("RGB", (20, 10)).save(thumbnail, format="PNG")
    stored = torch.frombuffer(bytearray(thumbnail.getvalue()), dtype=torch.uint8)
    old = Style.load(rewrite(tmp_path / "old.safetensors", {"vectors": random_vectors(), "thumbnail": stored}))
    assert old.widths == (WIDTH,)
    assert (old.paintings, old.shares) == ((thumbnail.getvalue(),), (1.0,))
    assert old.painting().shape == (3, 10, 20)


def test_a_style_may_have_paintings_and_no_word(tmp_path: Path) -> None:
    wordless = dataclasses.replace(full_style(), vectors=torch.zeros(0, WIDTH))
    assert (wordless.has_word, full_style().has_word) == (False, True)
    found = Style.load(wordless.save(tmp_path / "wordless.safetensors"))
    assert (found.vectors.shape, found.paintings) == ((0, WIDTH), wordless.paintings)


@pytest.mark.parametrize("widths", [(WIDTH, 1), (WIDTH + 1, -1), (WIDTH, 0), (1,)])
def test_widths_that_do_not_split_the_vectors_are_refused(widths: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not split"):
        Style(random_vectors(), HERE, widths=widths)
    refuse(rewrite(tmp_path / "bad.safetensors", {"vectors": random_vectors()}, widths=list(widths)), "do not split")


@pytest.mark.parametrize("widths", [str(WIDTH), [str(WIDTH)], [float(WIDTH)], [None], {str(WIDTH): 1}])
def test_widths_that_are_not_integers_are_refused(widths: object, tmp_path: Path) -> None:
    refuse(rewrite(tmp_path / "bad.safetensors", {"vectors": random_vectors()}, widths=widths), "is damaged")


def test_provenance_that_is_not_plain_values_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be recorded"):
        Style(random_vectors(), HERE, about={"what": object()})


# Files that are no style


def rewrite(path: Path, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
    """A style file put together by hand, by safetensors alone."""
    content = {"format": 1, "fingerprint": HERE, "denoiser": "", "about": {}, "module_config": None} | changes
    content = {key: value for key, value in content.items() if value != "left out"}
    save_file(tensors, path, {"inst_style": json.dumps(content)})
    return path


def refuse(path: Path, said: str) -> None:
    with pytest.raises(InstError) as caught:
        Style.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count(str(path)) == 1
    assert "\n" not in message
    assert said in message


def test_missing_files_folders_and_empty_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere.safetensors", "no such file")
    refuse(tmp_path / "nowhere" / "style.safetensors", "no such file")
    refuse(tmp_path, "is a folder")
    (tmp_path / "empty.safetensors").touch()
    refuse(tmp_path / "empty.safetensors", "is empty (0 bytes)")
    refuse(tmp_path / "empty.safetensors" / "inner", "cannot be read")


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """Lengths such as 1152 (0x480) begin with the bytes of a pickle."""
    path, seen = tmp_path / "style.safetensors", set()
    for spaces in range(1200):
        style = Style(random_vectors(), "0" * 16, about={"note": "x" * spaces})
        style.save(path)
        seen.add(int.from_bytes(path.read_bytes()[:2], "little"))
        assert Style.load(path).about["note"] == "x" * spaces
    assert {0x380, 0x480} <= seen


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "harmed"),)

    path = tmp_path / "style.pt"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Harmful(), protocol))
        refuse(path, "is a pickle, as other programs write")
    torch.save({"[C]": random_vectors()}, path)
    refuse(path, "is a pickle or a zip archive")
    path.write_bytes(pickle.dumps(Harmful(), 0))
    refuse(path, "is not a safetensors file")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif"])
def test_a_picture_is_refused_as_a_style(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"painting.{ending}"
    Image.new("RGB", (9, 9)).save(path)
    refuse(path, "is a picture: give a style file, which inst.learn makes from a painting")


@pytest.mark.parametrize("content", [b"x", b"hello, I am a text", bytes(50), b"\xff" * 50])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(content)
    refuse(path, "is not a safetensors file")


def test_a_safetensors_file_that_is_no_style_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"emb_params": random_vectors()}, path, metadata)
        refuse(path, "is a safetensors file, but not an InST style")


def test_a_foreign_model_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + (1 << 40))  # a terabyte, of which the disk holds a block
        except OSError:
            pytest.skip("no sparse files of this size here")
    refuse(path, "not an InST style")


def test_truncated_style_files_are_refused(tmp_path: Path) -> None:
    data = full_style().to_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [*range(1, 40), *range(40, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        refuse(path, "is damaged" if length >= 8 else "is not a safetensors file")
    path.write_bytes(data + b"\0")
    refuse(path, "is damaged")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_style_file_with_wrong_bytes_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    content = bytearray(full_style().to_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=9))
    content[at : at + len(noise)] = noise
    said = ""
    try:
        Style.from_bytes(bytes(content), "x")
    except InstError as error:
        said = str(error)
    assert said == "" or (said.startswith("x") and "\n" not in said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": 7}, "fingerprint is a int, not a str"),
        ({"fingerprint": "left out"}, "'fingerprint' is missing"),
        ({"about": None}, "about is a NoneType, not a dict"),
        ({"module_config": [1]}, "module_config is a list, not a dict"),
        ({"format": "left out"}, "'format' is missing"),
        ({"format": "one"}, "is damaged"),
        ({"format": 3}, "was written by a newer version of inst: update inst"),
        ({"about": {"loss": float("nan")}}, "is not finite"),
        ({"about": {"paintings": ["waves.jpg"]}}, "paintings are not a list of objects"),
        ({"about": {"paintings": 3}}, "is damaged"),
    ],
)
def test_metadata_with_wrong_values_are_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    refuse(rewrite(tmp_path / "wrong.safetensors", {"vectors": random_vectors()}, **changes), said)


def test_metadata_that_are_no_json_or_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    for text in ("", "[]", "{", "null", "[" * 100_000):
        save_file({"vectors": random_vectors()}, path, {"inst_style": text})
        refuse(path, "is damaged")
    save_file({"other": random_vectors()}, path, {"inst_style": json.dumps({"format": 1, "module_config": None})})
    refuse(path, "'vectors' is missing")


def test_a_damaged_painting_is_reported_with_the_name_of_the_style() -> None:
    style = Style(random_vectors(), HERE, about={"name": "Wellen"}, paintings=(b"no picture",))
    with pytest.raises(InstError, match='The painting of the style "Wellen" is not a picture'):
        Style.from_bytes(style.to_bytes()).painting()


# Writing


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Art Nouveau 1890/1910", "Art Nouveau 1890/1910"),
        ("/home/someone/waves", "waves"),
        ("C:\\Users\\someone\\waves", "waves"),
        ("../someone/waves", "waves"),
        (Path("someone/waves"), "waves"),
    ],
)
def test_a_name_keeps_its_slash_but_no_path_gets_into_a_file(name: object, kept: str, tmp_path: Path) -> None:
    style = Style(torch.ones(1, 4), "space", about={"name": name, "paintings": [{"name": "a/b.png", "sha256": ""}]})
    read = Style.load(style.save(tmp_path / "s.safetensors"))
    assert read.name == kept
    assert read.about["paintings"][0]["name"] == "b.png"


def test_a_style_can_be_saved_only_under_a_safetensors_name(tmp_path: Path) -> None:
    painting = tmp_path / "painting.png"
    painting.write_bytes(b"a painting")
    with pytest.raises(UsageError, match=r"give a name that ends in \.safetensors"):
        full_style().save(painting)
    assert painting.read_bytes() == b"a painting"


def test_a_full_disk_leaves_the_old_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = full_style().save(tmp_path / "waves.safetensors")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InstError, match=r"cannot be written \(No space left on device\): free space on the disk"):
        Style(-random_vectors(), HERE).save(path)
    assert Style.load(path).to_bytes() == full_style().to_bytes()
    assert list(tmp_path.iterdir()) == [path]


# Which backbone


def test_a_style_fits_the_backbone_it_was_learned_with(tiny_backbone: Backbone) -> None:
    fingerprint, denoiser = tiny_backbone.fingerprint, tiny_backbone.denoiser_fingerprint
    assert Style(random_vectors(), fingerprint, denoiser).check(tiny_backbone) is None
    assert Style(random_vectors(), fingerprint).check(tiny_backbone) is None
    assert (
        tiny_backbone.embed_text(["[C]"], {"[C]": Style(random_vectors(), fingerprint).vectors}).tokens.isfinite().all()
    )


def test_a_style_of_another_text_space_is_refused_with_both_names(tiny_backbone: Backbone) -> None:
    style = Style(random_vectors(), HERE, about={"name": "Wellen", "backbone": "stable-diffusion-2"})
    with pytest.raises(UsageError) as caught:
        style.check(tiny_backbone)
    for part in ('"Wellen"', HERE, "stable-diffusion-2", tiny_backbone.fingerprint, tiny_backbone.name):
        assert part in str(caught.value)


def test_a_style_of_another_unet_gives_a_warning(tiny_backbone: Backbone) -> None:
    warning = Style(random_vectors(), tiny_backbone.fingerprint, THERE, {"name": "Wellen"}).check(tiny_backbone)
    assert warning is not None
    assert "\n" not in warning
    for part in ('"Wellen"', THERE, tiny_backbone.denoiser_fingerprint, "may look different"):
        assert part in warning


def test_vectors_of_another_width_are_refused(tiny_backbone: Backbone) -> None:
    style = Style(random_vectors(width=WIDTH + 1), tiny_backbone.fingerprint)
    with pytest.raises(InstError, match=f"width {WIDTH + 1}, but its text space has width {WIDTH}"):
        style.check(tiny_backbone)


# Mixing


def test_both_ends_of_an_interpolation_are_exact() -> None:
    one, other = Style(random_vectors(1), HERE), Style(random_vectors(2), HERE)
    for style in (one, other):
        mixed = Style.mix([(one, 1.0 if style is one else 0.0), (other, 0.0 if style is one else 1.0)])
        assert torch.equal(mixed.vectors, style.vectors)
    assert torch.equal(Style.mix([(one, 0.3)]).vectors, one.vectors)


def test_only_the_proportions_of_the_weights_matter_in_a_mixture() -> None:
    one, other = Style(random_vectors(1), HERE), Style(random_vectors(2), HERE)
    mixed = Style.mix([(one, 2), (other, 1)])
    torch.testing.assert_close(mixed.vectors, (2 * one.vectors + other.vectors) / 3)
    assert torch.equal(mixed.vectors, Style.mix([(one, 0.5), (other, 0.25)]).vectors)
    assert torch.equal(mixed.vectors, Style.mix([(other, 1), (one, 2)]).vectors)
    torch.testing.assert_close(Style.mix([(one, 1), (one, 5)]).vectors, one.vectors)


def test_a_mixture_says_what_it_is_made_of() -> None:
    one, other = (
        Style(
            random_vectors(seed),
            HERE,
            denoiser,
            {"name": name, "backbone": "tiny", "paintings": [{"name": f"{name}.jpg", "sha256": name}]},
            paintings=(name.encode(),),
        )
        for seed, name, denoiser in ((1, "waves", HERE), (2, "lilies", THERE))
    )
    mixed = Style.mix([(one, 1), (other, 3)])
    assert mixed.name == "25% waves + 75% lilies"
    assert [painting["name"] for painting in mixed.about["paintings"]] == ["waves.jpg", "lilies.jpg"]
    assert [part["weight"] for part in mixed.about["mixed"]] == [0.25, 0.75]
    assert mixed.about["mixed"][0]["about"] == one.about
    assert mixed.about["backbone"] == "tiny"
    assert (mixed.paintings, mixed.shares, mixed.module) == ((b"waves", b"lilies"), (0.25, 0.75), None)
    assert mixed.denoiser not in (HERE, THERE)
    assert Style.mix([(one, 1), (one, 1)]).denoiser == HERE
    assert Style.mix([(one, 1), (other, 0)]).denoiser == HERE
    unknown = Style(random_vectors(3), HERE)
    assert Style.mix([(unknown, 1), (one, 1)]).denoiser == HERE
    assert Style.mix([(unknown, 1), (unknown, 1)]).denoiser == ""
    assert Style.from_bytes(mixed.to_bytes()).about == mixed.about


def test_a_mixture_of_different_unets_gives_a_warning(tiny_backbone: Backbone) -> None:
    own = tiny_backbone.denoiser_fingerprint
    styles = [(Style(random_vectors(), tiny_backbone.fingerprint, denoiser), 1.0) for denoiser in (own, THERE)]
    assert Style.mix(styles[:1]).check(tiny_backbone) is None
    assert "another UNet" in (Style.mix(styles).check(tiny_backbone) or "")


def test_styles_that_do_not_fit_each_other_cannot_be_mixed() -> None:
    one = Style(random_vectors(), HERE, about={"name": "waves"})
    for other, said in (
        (Style(random_vectors(), THERE, about={"name": "lilies"}), f"different text spaces .{HERE} and {THERE}"),
        (Style(random_vectors(n=5), HERE, about={"name": "lilies"}), "different numbers of vectors .3 and 5"),
        (Style(random_vectors(width=9), HERE, about={"name": "lilies"}), f"different widths .{WIDTH} and 9"),
    ):
        with pytest.raises(UsageError, match=f'"waves" and "lilies" have {said}'):
            Style.mix([(one, 1), (other, 1)])


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1], [1e308, 1e308]])
def test_weights_that_make_no_mixture_are_refused(weights: list[float]) -> None:
    style = Style(random_vectors(), HERE)
    with pytest.raises(UsageError, match="make no mixture"):
        Style.mix([(style, weight) for weight in weights])
