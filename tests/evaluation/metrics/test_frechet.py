import numpy as np
import pytest
import scipy.linalg
import torch

from inst.evaluation.metrics.frechet import FeatureStatistics, frechet_distance


def test_the_distance_in_one_dimension_equals_a_value_worked_out_by_hand() -> None:
    # (m1 - m2)^2 + (s1 - s2)^2 for normal distributions on a line: (3 - 1)^2 + (2 - 5)^2
    distance = frechet_distance(torch.tensor([3.0]), torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([[25.0]]))
    assert distance == pytest.approx(13)


def test_a_rotation_of_both_covariances_does_not_change_the_distance() -> None:
    # diag(9, 1) against diag(1, 9): each axis gives (3 - 1)^2, and a common turn of both changes nothing.
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    one, two = torch.diag(torch.tensor([9.0, 1.0]).double()), torch.diag(torch.tensor([1.0, 9.0]).double())
    zero = torch.zeros(2)
    assert frechet_distance(zero, turn @ one @ turn.T, zero, turn @ two @ turn.T) == pytest.approx(8)


@pytest.mark.parametrize(("samples", "dimensions"), [(200, 8), (12, 20)], ids=["full rank", "fewer than dimensions"])
def test_the_distance_equals_the_formula_with_scipys_matrix_square_root(samples: int, dimensions: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, dimensions)) @ rng.standard_normal((dimensions, dimensions))
    y = rng.standard_normal((samples, dimensions)) @ rng.standard_normal((dimensions, dimensions)) + 1
    (m1, s1), (m2, s2) = ((v.mean(0), np.cov(v, rowvar=False)) for v in (x, y))
    root = np.real(scipy.linalg.sqrtm(s1 @ s2))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    got = frechet_distance(*(torch.from_numpy(value) for value in (m1, s1, m2, s2)))
    assert got == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*(torch.from_numpy(value) for value in (m1, s1, m1, s1))) == pytest.approx(0, abs=1e-5)


def test_statistics_do_not_depend_on_the_batches() -> None:
    # A large mean with a small spread: sums of squares would lose the spread.
    features = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01 + 1000
    statistics = FeatureStatistics(5)
    for part in features.split([1, 99, 3, 197]):
        statistics.update(part)
    assert statistics.count == 300
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-7)


def test_a_covariance_needs_two_samples() -> None:
    statistics = FeatureStatistics(2)
    statistics.update(torch.ones(1, 2))
    with pytest.raises(ValueError, match="at least 2"):
        _ = statistics.covariance
