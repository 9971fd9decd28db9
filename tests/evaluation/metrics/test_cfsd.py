import subprocess
import sys

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from inst.evaluation.metrics import cfsd
from inst.evaluation.metrics.cfsd import CFSD


def features(seed: int) -> list[Tensor]:
    """In the place of relu3_1, large enough that places differ."""
    made = torch.rand(2, 256, 10, 14, generator=torch.Generator().manual_seed(seed)) * 40
    return [torch.empty(0), torch.empty(0), made]


def test_cfsd_equals_its_definition_in_scipy() -> None:
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


def test_computing_the_positions_in_parts_gives_the_same_cfsd(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CFSD.compare(features(1), features(2))
    monkeypatch.setattr(cfsd, "_ENTRIES", 7 * 140)
    torch.testing.assert_close(CFSD.compare(features(1), features(2)), whole, rtol=1e-4, atol=0)


def test_one_picture_is_compared_with_every_photo_of_the_batch() -> None:
    pictures, photos = features(1), features(2)
    alone = [one[:1] for one in pictures]
    repeated = [one[[0, 0]] if one.dim() > 1 else one for one in pictures]
    torch.testing.assert_close(CFSD.compare(alone, photos), CFSD.compare(repeated, photos))


def test_the_similarities_of_a_large_batch_are_never_all_in_memory_at_once() -> None:
    """In a process of its own: what the whole process takes at most, for 4 pictures of 256 x 256 pixels."""
    program = """if True:
        import resource, torch
        from inst.evaluation.metrics.cfsd import CFSD
        torch.set_num_threads(1)
        def measure(side):
            made = [torch.empty(0), torch.empty(0), torch.rand(4, 16, side, side)]
            return CFSD.compare(made, made)
        measure(8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measure(64)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 160_000  # kB; the 4096 x 4096 similarities of the 4 take 268 MB a matrix


def test_cfsd_is_zero_for_the_photo_itself_and_between_two_flat_colours() -> None:
    torch.manual_seed(0)
    metric = CFSD().eval().requires_grad_(False)
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    assert metric(x, x).tolist() == [0, 0]
    flat, other = torch.zeros(1, 3, 40, 40), torch.full((1, 3, 40, 40), 0.7)
    assert metric(flat, other).item() == pytest.approx(0, abs=1e-6)  # every place is like every other in both
