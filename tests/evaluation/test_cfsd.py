import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from inst.evaluation import cfsd
from inst.evaluation.cfsd import CFSD


def features(seed: int) -> list[Tensor]:
    """In the place of relu3_1, large enough that places differ."""
    made = torch.rand(2, 256, 10, 14, generator=torch.Generator().manual_seed(seed)) * 40
    return [torch.empty(0), torch.empty(0), made]


def test_equals_the_definition_in_scipy() -> None:
    pictures, photos = features(1), features(2)
    expected = []
    for x, y in zip(pictures[2].double().numpy(), photos[2].double().numpy(), strict=True):
        similarity = []
        for one in (x.reshape(256, -1), y.reshape(256, -1)):
            likeness = np.einsum("ci,cj->ij", one, one) / 256**2
            similarity.append(scipy.special.softmax(likeness, axis=1))
        expected.append(scipy.special.rel_entr(similarity[1], similarity[0]).sum())
    assert min(expected) > 0.1
    np.testing.assert_allclose(CFSD.compare(pictures, photos).numpy(), expected, rtol=1e-4)


def test_the_places_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CFSD.compare(features(1), features(2))
    monkeypatch.setattr(cfsd, "_ROWS", 7)
    torch.testing.assert_close(CFSD.compare(features(1), features(2)), whole, rtol=1e-4, atol=0)


def test_the_photo_itself_is_at_zero_and_colours_do_not_count_alone() -> None:
    torch.manual_seed(0)
    metric = CFSD().eval().requires_grad_(False)
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    assert metric(x, x).tolist() == [0, 0]
    flat, other = torch.zeros(1, 3, 40, 40), torch.full((1, 3, 40, 40), 0.7)
    assert metric(flat, other).item() == pytest.approx(0, abs=1e-6)  # every place is like every other in both
