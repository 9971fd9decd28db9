"""Tone: AdaIN against its definition, Oklab against published values, and what keeping the photo's colours promises."""

import numpy as np
import pytest
import torch

import inst
from inst.pictures.io import resize
from inst.pictures.oklab import oklab_to_srgb, srgb_to_oklab
from inst.synthesis.tone import adain, channel_statistics, keep_colours, palette_statistics


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_channel_statistics_equal_numpys_unbiased_ones() -> None:
    latents = draw(2, 3, 4, 5)
    mean, std = channel_statistics(latents)
    assert mean.shape == std.shape == (2, 3, 1, 1)
    np.testing.assert_allclose(mean[:, :, 0, 0], latents.numpy().mean(axis=(2, 3)), rtol=1e-5, atol=1e-7)
    variance = latents.numpy().var(axis=(2, 3), ddof=1)
    np.testing.assert_allclose(std[:, :, 0, 0], np.sqrt(variance + 1e-5), rtol=1e-5)


def test_adain_moves_each_channel_to_the_other_statistics() -> None:
    photo, painting = draw(2, 4, 16, 24) * 0.3 + 1, draw(1, 4, 9, 7, seed=1)
    mean, std = channel_statistics(painting)
    found_mean, found_std = channel_statistics(adain(photo, mean, std))
    torch.testing.assert_close(found_mean, mean.expand_as(found_mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(found_std, std.expand_as(found_std), rtol=1e-3, atol=0)


def test_adain_toward_its_own_statistics_changes_nothing() -> None:
    latents = draw(2, 4, 8, 8)
    torch.testing.assert_close(adain(latents, *channel_statistics(latents)), latents, rtol=0, atol=1e-6)


def test_adain_of_a_flat_channel_is_finite() -> None:
    flat = torch.full((1, 1, 8, 8), 3.0)
    assert adain(flat, *channel_statistics(draw(1, 1, 8, 8))).isfinite().all()


def test_the_palette_of_a_very_long_painting_is_computed_in_tiles(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A painting 25 times as long as it is high, whose thumbnail is enlarged: the memory of a tile has to do."""
    scroll, widths = draw(3, 10, 256), []
    whole = channel_statistics(tiny_backbone.encode(resize(scroll[None], (64, 1632))))
    encode = tiny_backbone.encode
    monkeypatch.setattr(tiny_backbone, "encode", lambda given: widths.append(given.shape[-1]) or encode(given))
    mean, std = palette_statistics(tiny_backbone, [scroll])
    assert max(widths) <= 2 * tiny_backbone.native_size
    torch.testing.assert_close(mean, whole[0], rtol=0, atol=0.1 * float(whole[1].mean()))
    torch.testing.assert_close(std, whole[1], rtol=0.2, atol=0)


@pytest.mark.parametrize(
    ("levels", "oklab"),
    [  # the sRGB primaries' Oklab values as CSS Color 4 quotes them
        ((1, 1, 1), (1, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (0.62796, 0.22486, 0.12585)),
        ((0, 1, 0), (0.86644, -0.23389, 0.17950)),
        ((0, 0, 1), (0.45201, -0.03246, -0.31153)),
    ],
)
def test_oklab_of_known_colours_equals_the_published_values(
    levels: tuple[float, ...], oklab: tuple[float, ...]
) -> None:
    picture = torch.tensor(levels).view(3, 1, 1) * 2.0 - 1
    torch.testing.assert_close(srgb_to_oklab(picture).flatten(), torch.tensor(oklab).float(), rtol=0, atol=2e-4)


def test_srgb_to_oklab_and_back_gives_the_same_picture() -> None:
    pictures = torch.cat([draw(4, 3, 16, 16), torch.full((4, 3, 1, 16), -1.0), torch.full((4, 3, 1, 16), 1.0)], dim=2)
    torch.testing.assert_close(oklab_to_srgb(srgb_to_oklab(pictures)), pictures, rtol=0, atol=2e-4)


def test_keep_colours_takes_lightness_from_the_result_and_hue_from_the_photo() -> None:
    result, photo = draw(2, 3, 32, 32), draw(1, 3, 32, 32, seed=1)
    kept = keep_colours(result, photo)
    assert kept.shape == result.shape
    assert kept.abs().max() <= 1
    lightness, _, _ = srgb_to_oklab(kept).unbind(1)
    torch.testing.assert_close(lightness, srgb_to_oklab(result)[:, 0], rtol=0, atol=2e-3)

    colour, of_photo = srgb_to_oklab(kept)[:, 1:], srgb_to_oklab(photo)[:, 1:].expand(2, -1, -1, -1)
    chroma, chroma_of_photo = colour.norm(dim=1), of_photo.norm(dim=1)
    assert (chroma <= chroma_of_photo + 2e-3).all()
    cosine = (colour * of_photo).sum(dim=1) / (chroma * chroma_of_photo).clamp_min(1e-6)
    assert cosine[chroma > 0.02].min() > 0.99


def test_colours_that_srgb_can_show_are_kept_completely() -> None:
    photo = draw(1, 3, 16, 16) * 0.2  # greyish: every one of them exists at every middling lightness
    result = photo.roll(5, dims=-1)
    torch.testing.assert_close(
        srgb_to_oklab(keep_colours(result, photo))[:, 1:], srgb_to_oklab(photo)[:, 1:], rtol=0, atol=1e-3
    )


def test_keeping_the_colours_of_the_picture_itself_changes_nothing() -> None:
    photo = draw(1, 3, 32, 32)
    torch.testing.assert_close(keep_colours(photo, photo), photo, rtol=0, atol=5e-3)


def test_keeping_the_colours_of_a_grey_photo_gives_a_grey_picture() -> None:
    photo = draw(1, 1, 16, 16).expand(-1, 3, -1, -1)
    kept = keep_colours(draw(1, 3, 16, 16, seed=1), photo)
    assert (kept.amax(dim=1) - kept.amin(dim=1)).max() < 2e-3
