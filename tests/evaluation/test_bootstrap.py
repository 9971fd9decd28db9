import numpy as np
import pytest
import scipy.stats

from inst.evaluation.bootstrap import mean_intervals


def crossed(photos: int, paintings: int) -> tuple[np.ndarray, np.ndarray]:
    grid = np.indices((photos, paintings)).reshape(2, -1)
    return grid[0], grid[1]


def test_with_one_painting_the_interval_equals_that_of_the_ordinary_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2, size=60)
    for photos, paintings in ((np.arange(60), np.zeros(60)), (np.arange(60), np.arange(60))):
        (found,) = mean_intervals(values[:, None], photos, paintings, replicates=4000) or []
        usual = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1)
        assert found == pytest.approx(tuple(usual.confidence_interval), abs=0.03)


def test_pictures_that_share_a_painting_are_not_counted_as_independent() -> None:
    # Only the painting matters: 400 pictures are worth 4 observations.
    rng = np.random.default_rng(1)
    photo, painting = crossed(100, 4)
    values = rng.standard_normal(4)[painting] + 0.01 * rng.standard_normal(400)
    ((low, high),) = mean_intervals(values[:, None], photo, painting) or []
    naive = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low > 5 * naive
    ((nested_low, nested_high),) = mean_intervals(values[:, None], np.arange(400), painting) or []
    assert nested_high - nested_low == pytest.approx(high - low, rel=0.1)


def test_the_interval_contains_the_true_mean_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(2), 0
    photo, painting = crossed(20, 20)
    for trial in range(120):
        values = rng.standard_normal(20)[photo] + rng.standard_normal(20)[painting] + rng.standard_normal(400)
        ((low, high),) = mean_intervals(values[:, None], photo, painting, replicates=200, seed=trial) or []
        hits += low <= 0 <= high
    assert 0.88 <= hits / 120 <= 1  # 20 of a kind make percentile intervals a little short


def test_intervals_depend_on_the_seed_but_not_on_other_columns_or_on_labels() -> None:
    rng = np.random.default_rng(3)
    photo, painting = crossed(5, 6)
    values = rng.standard_normal((30, 2))
    both = mean_intervals(values, photo, painting, seed=4)
    assert both is not None
    assert both == mean_intervals(values, photo * 10 + 3, painting, seed=4)
    assert both[0] == pytest.approx((mean_intervals(values[:, :1], photo, painting, seed=4) or [])[0])
    assert both != mean_intervals(values, photo, painting, seed=5)
    for (low, high), mean in zip(both, values.mean(0), strict=True):
        assert low < mean < high


def test_one_photo_and_one_painting_have_no_interval() -> None:
    assert mean_intervals(np.ones((1, 1)), np.zeros(1), np.zeros(1)) is None
    assert mean_intervals(np.ones((3, 1)), np.zeros(3), np.zeros(3)) is None
