import numpy as np
import pytest
import scipy.linalg
import torch

from inst.evaluation.metrics.fid import FeatureFile, FrechetScores, ReferenceSet, art_fid, distance_to, fid_infinity
from inst.evaluation.metrics.frechet import frechet_distance


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """As in the published implementations: the square root of the product of the covariances."""
    m1, m2, s1, s2 = x.mean(0), y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(s1 @ s2))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


def file_of(features: np.ndarray) -> FeatureFile:
    file = FeatureFile(features.shape[1])
    for part in np.array_split(features, 4):
        file.append(torch.from_numpy(part))
    return file


def set_of(features: np.ndarray, counts: list[int]) -> ReferenceSet:
    reference = ReferenceSet(features.shape[1])
    for index, (row, count) in enumerate(zip(features, counts, strict=True)):
        for _ in range(count):  # batches of one, as the pictures come
            reference.add(str(index), torch.from_numpy(row), 1)
    return reference


@pytest.mark.parametrize(("paintings", "dimensions"), [(6, 16), (40, 16)], ids=["few paintings", "many paintings"])
def test_fid_equals_scipys_with_each_painting_counted_as_often_as_it_was_used(paintings: int, dimensions: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, dimensions)) + 5).astype(np.float32)
    y = (rng.standard_normal((paintings, dimensions)) * 2 + 4).astype(np.float32)
    counts = rng.integers(1, 6, paintings).tolist()
    reference = set_of(y, counts).reference()
    assert reference is not None
    file = file_of(x)
    expected = by_scipy(x.astype(np.float64), np.repeat(y.astype(np.float64), counts, axis=0))
    assert distance_to(file.batches(), reference) == pytest.approx(expected, rel=1e-5)
    file.close()


def test_fid_of_a_large_set_equals_the_frechet_distance_of_its_gaussians() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3000, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32) + 1
    reference = set_of(y, [1] * 8).reference()
    assert reference is not None
    moments = [torch.from_numpy(one) for v in (x, y) for one in (v.mean(0), np.cov(v, rowvar=False))]
    assert distance_to(file_of(x).batches(), reference) == pytest.approx(frechet_distance(*moments), rel=1e-4)


def test_fid_infinity_removes_the_bias_of_a_small_set() -> None:
    # Two sets from the same distribution: the true distance is 0, and every finite set is above it.
    rng = np.random.default_rng(2)
    reference = set_of(rng.standard_normal((2000, 64)).astype(np.float32), [1] * 2000).reference()
    assert reference is not None
    found = FrechetScores.of(file_of(rng.standard_normal((400, 64)).astype(np.float32)), reference)
    assert found is not None
    assert found.fid_infinity is not None
    assert found.count == 400
    assert abs(found.fid_infinity) < found.fid / 4
    again = FrechetScores.of(file_of(rng.standard_normal((400, 64)).astype(np.float32)), reference, seed=1)
    assert again is not None
    assert again.fid == pytest.approx(found.fid, rel=0.1)


def test_fid_infinity_finds_the_limit_of_a_straight_line_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Line:
        """Stands in for features whose FID_N is 7 + 300 / N."""

        count = 12_000

        def batches(self, chosen: np.ndarray) -> int:
            assert len(set(chosen.tolist())) == len(chosen)
            assert 5000 <= len(chosen) < self.count
            return len(chosen)

    monkeypatch.setattr("inst.evaluation.metrics.fid.distance_to", lambda size, reference: 7 + 300 / size)
    assert fid_infinity(Line(), None, 7 + 300 / 12_000) == pytest.approx(7)  # type: ignore[arg-type]


def test_sets_that_are_too_small_have_no_fid() -> None:
    rng = np.random.default_rng(3)
    y = rng.standard_normal((3, 4)).astype(np.float32)
    assert set_of(y[:1], [5]).reference() is None
    reference = set_of(y, [1, 2, 3]).reference()
    assert reference is not None
    assert FrechetScores.of(file_of(y[:1]), reference) is None
    few = FrechetScores.of(file_of(rng.standard_normal((19, 4)).astype(np.float32)), reference)
    assert few is not None
    assert few.fid_infinity is None


def test_stored_features_are_read_back_in_small_parts_or_by_index() -> None:
    features = np.arange(3000 * 3, dtype=np.float32).reshape(3000, 3)
    file = file_of(features)
    parts = list(file.batches())
    assert max(len(part) for part in parts) <= 1024
    np.testing.assert_array_equal(torch.cat(parts).numpy(), features)
    np.testing.assert_array_equal(torch.cat(list(file.batches(np.array([7, 2, 2999])))).numpy(), features[[2, 7, 2999]])


def test_art_fid_equals_values_worked_out_by_hand() -> None:
    assert art_fid(0.5, 19) == 30
    assert art_fid(0, 0) == 1
