"""Gram matrices, means and standard deviations against hand-worked cases and their own properties."""

import numpy as np
import pytest
import torch

from inst.evaluation.metrics.gram import GramDistance, MeanStdDistance, gram_matrix


def test_a_gram_matrix_equals_one_worked_out_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # channel 0: (1, 2), channel 1: (3, -1)
    assert gram_matrix(features).tolist() == [[[2.5, 0.5], [0.5, 5.0]]]


def test_the_gram_matrix_ignores_positions_but_not_channels() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 4, 6, 6)
    shuffled = features.flatten(2)[..., torch.randperm(36)].unflatten(2, (6, 6))
    assert torch.allclose(gram_matrix(features), gram_matrix(shuffled), atol=1e-6)
    assert not torch.allclose(gram_matrix(features), gram_matrix(features.flip(1)), atol=1e-2)


def make() -> GramDistance:
    torch.manual_seed(0)
    return GramDistance().eval().requires_grad_(False)


def test_equal_pictures_have_distance_zero_and_pairs_do_not_affect_each_other() -> None:
    distance = make()
    a, b = torch.rand(2, 3, 64, 48) * 2 - 1, torch.rand(1, 3, 32, 80) * 2 - 1
    together = distance(a, b)
    assert distance(a, a).tolist() == [0, 0]
    assert (together > 0).all()
    assert torch.allclose(together, torch.cat([distance(one[None], b) for one in a]), atol=1e-6)


def test_the_gram_distance_is_relative_to_the_paintings_gram_matrix() -> None:
    distance = make()
    a, b = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1
    expected = [
        (gram_matrix(x) - gram_matrix(y)).norm() / gram_matrix(y).norm()
        for x, y in zip(distance.network(a), distance.network(b), strict=True)
    ]
    assert distance(a, b).item() == pytest.approx(sum(expected).item() / 5)


def test_the_mean_and_std_distance_equals_one_computed_by_numpy() -> None:
    torch.manual_seed(0)
    distance = MeanStdDistance().eval().requires_grad_(False)
    a, b = torch.rand(2, 3, 64, 48) * 2 - 1, torch.rand(1, 3, 48, 64) * 2 - 1
    expected = np.zeros(2)
    for x, y in zip(distance.network(a)[:4], distance.network(b)[:4], strict=True):  # relu1_1 to relu4_1
        x, y = x.numpy().reshape(2, x.shape[1], -1), y.numpy().reshape(1, y.shape[1], -1)
        expected += np.linalg.norm(x.mean(2) - y.mean(2), axis=1)
        expected += np.linalg.norm(x.std(2, ddof=1) - y.std(2, ddof=1), axis=1)
    np.testing.assert_allclose(distance(a, b).numpy(), expected, rtol=1e-4)
    assert distance(a, a).tolist() == [0, 0]
