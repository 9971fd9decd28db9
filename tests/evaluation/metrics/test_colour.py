import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inst.evaluation.metrics.colour import ColourDistance, ColourHistogram


def by_loops(picture: np.ndarray) -> np.ndarray:
    """The paper's histogram of a picture [3, H, W] in [0, 1], pixel by pixel and bin by bin."""
    histogram = np.zeros((3, 64, 64))
    centres = np.linspace(-3, 3, 64)
    for pixel in picture.reshape(3, -1).T:
        intensity = math.sqrt((pixel**2).sum() + 1e-6)
        for channel in range(3):
            first, second = (other for other in range(3) if other != channel)
            u, v = (math.log(pixel[channel] + 1e-6) - math.log(pixel[other] + 1e-6) for other in (first, second))
            in_u, in_v = (1 / (1 + ((value - centres) / 0.02) ** 2) for value in (u, v))
            histogram[channel] += intensity * np.outer(in_u, in_v)
    return histogram / (histogram.sum() + 1e-6)


def test_the_colour_histogram_equals_the_papers_formula_in_loops() -> None:
    pictures = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    got = ColourHistogram()(pictures * 2 - 1)
    np.testing.assert_allclose(got.numpy(), [by_loops(one.double().numpy()) for one in pictures], rtol=5e-3, atol=1e-7)
    torch.testing.assert_close(got.sum((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def flat(red: float, green: float, blue: float, size: int = 8) -> Tensor:
    return (torch.tensor([red, green, blue]).view(1, 3, 1, 1) * 2 - 1).expand(1, 3, size, size)


def test_the_colour_distance_depends_on_the_palette_and_not_on_positions() -> None:
    distance = ColourDistance()
    half = torch.cat([flat(0.8, 0.3, 0.2), flat(0.2, 0.3, 0.8)], 3)
    assert distance(half, half.flip(3)).item() == pytest.approx(0, abs=1e-3)
    assert distance(flat(0.8, 0.3, 0.2), flat(0.2, 0.3, 0.8)).item() > 0.8
    # Half of the pixels, of the same intensity, have the other's colour: 1 - sqrt(1/2) under the root, or close to it.
    assert distance(half, flat(0.8, 0.3, 0.2)).item() == pytest.approx(math.sqrt(1 - math.sqrt(0.5)), abs=0.03)


def test_several_large_pictures_can_be_compared_with_one_small_painting() -> None:
    distance = ColourDistance()
    a = torch.cat([flat(0.8, 0.3, 0.2, 600), flat(0.3, 0.6, 0.4, 600)])
    got = distance(a, flat(0.8, 0.3, 0.2, 40))
    assert got[0].item() == pytest.approx(0, abs=1e-3)
    assert got[1].item() > 0.5
