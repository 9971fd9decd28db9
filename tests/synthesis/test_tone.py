"""Tone: statistics against NumPy and SciPy, Oklab against published values, and what keeping colours promises."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from inst.pictures.oklab import oklab_to_srgb, srgb_to_oklab
from inst.synthesis.tone import Palette, adain, channel_statistics, keep_colours, match_palette


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


def statistics(picture: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    colours = picture.reshape(3, -1).double().numpy()
    return colours.mean(axis=1), np.cov(colours, bias=True)


def test_the_picture_gets_the_mean_and_covariance_of_the_palette() -> None:
    photos, painting = draw(2, 3, 16, 24) * 0.3, (draw(3, 9, 7, seed=1) * 0.2).cumsum(dim=0) / 2
    moved = match_palette(photos, Palette.of([painting]))
    for one in moved:
        for found, expected in zip(statistics(one), statistics(painting), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_map_of_colours_is_the_one_that_scipy_finds() -> None:
    """Between two Gaussians, the optimal transport map is unique; here it is found from matrix square roots."""
    photo, painting = draw(3, 16, 24) * 0.3, draw(3, 9, 7, seed=1) * 0.2
    (mean, covariance), (new_mean, new_covariance) = statistics(photo), statistics(painting)
    root = sqrtm(covariance)
    matrix = np.linalg.inv(root) @ sqrtm(root @ new_covariance @ root) @ np.linalg.inv(root)
    expected = matrix @ (photo.reshape(3, -1).double().numpy() - mean[:, None]) + new_mean[:, None]
    found = match_palette(photo[None], Palette.of([painting]))
    np.testing.assert_allclose(found.reshape(3, -1), expected, atol=1e-3)


def test_the_palette_of_the_picture_itself_changes_nothing() -> None:
    photo = draw(1, 3, 16, 16)
    torch.testing.assert_close(match_palette(photo, Palette.of([photo[0]])), photo, rtol=0, atol=1e-6)


def test_the_palette_of_several_paintings_is_their_weighted_mean() -> None:
    paintings = [draw(3, 8, 8, seed=seed) for seed in (1, 2)]
    found = Palette.of(paintings, (3.0, 1.0))
    (mean, covariance), (other_mean, other_covariance) = map(statistics, paintings)
    np.testing.assert_allclose(found.mean, 0.75 * mean + 0.25 * other_mean)
    np.testing.assert_allclose(found.covariance, 0.75 * covariance + 0.25 * other_covariance, atol=1e-5)


def test_every_picture_of_a_batch_can_have_its_own_palette() -> None:
    photos, paintings = draw(3, 3, 9, 7), draw(3, 3, 9, 7, seed=1)
    moved = match_palette(photos, Palette.of_each(paintings))
    alone = [match_palette(x[None], Palette.of([y])) for x, y in zip(photos, paintings, strict=True)]
    torch.testing.assert_close(moved, torch.cat(alone))


@pytest.mark.parametrize("flat", ["photo", "painting", "both"])
def test_a_picture_of_one_colour_gives_finite_colours(flat: str) -> None:
    photo, painting = draw(1, 3, 8, 8), draw(3, 8, 8, seed=1)
    photo = torch.full_like(photo, 0.25) if flat != "painting" else photo
    painting = torch.full_like(painting, -0.5) if flat != "photo" else painting
    moved = match_palette(photo, Palette.of([painting]))
    assert moved.isfinite().all()
    mean = painting.mean(dim=(1, 2))
    torch.testing.assert_close(moved.mean(dim=(0, 2, 3)), mean, rtol=0, atol=0.02)


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
