from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from inst.errors import InstError
from inst.evaluation.networks.inception import InceptionFID


def test_features_have_the_same_length_for_any_size_and_do_not_depend_on_the_batch(
    waves: Callable[[int], Tensor],
) -> None:
    model = InceptionFID().eval().requires_grad_(False)
    large, small = model(waves(320)), model(waves(40)[..., :30])
    assert large.shape == small.shape == (1, 2048)
    pair = torch.cat([waves(64), -waves(64)])
    torch.testing.assert_close(model(pair)[1:], model(pair[1:]), atol=1e-5, rtol=1e-3)


def test_features_equal_those_of_the_archives_network(
    weights_file: Callable[[str], Path], waves: Callable[[int], Tensor]
) -> None:
    """The expected numbers were made once with functional calls that follow the archive's own listing, with batch
    normalisation not folded in, on the tensors as they are in the archive."""
    features = InceptionFID.load(weights_file("inception-fid"))(waves(128))
    first = [0.6514274, 0.0053226, 0.0010422, 0.0, 1.6665331, 0.2521402, 0.9678128, 0.0]
    torch.testing.assert_close(features[0, :8], torch.tensor(first), atol=2e-4, rtol=0)
    assert features.mean().item() == pytest.approx(0.2408159, abs=1e-5)
    assert features.std().item() == pytest.approx(0.3896687, abs=1e-5)


def test_the_weights_file_holds_every_layer_of_the_network(weights_file: Callable[[str], Path]) -> None:
    stored = {name: tensor.shape for name, tensor in load_file(weights_file("inception-fid")).items()}
    assert stored == {name: tensor.shape for name, tensor in InceptionFID().state_dict().items()}
    assert len(stored) == 2 * 94  # convolutions of Inception-v3 without the auxiliary classifier


def test_a_missing_weights_file_is_reported_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InstError, match=r"absent\.safetensors: no such file"):
        InceptionFID.load(tmp_path / "absent.safetensors")
