"""Graphs on a CPU: functions are recorded as a CUDA device does it."""

from collections.abc import Callable, Sequence

from torch import Tensor


class Recording:
    """Records functions as a CUDA device does, and counts them."""

    def __init__(self) -> None:
        self.built = self.replayed = 0

    def __call__(
        self, function: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], list[Tensor]]:
        self.built += 1
        outputs: list[Tensor] = []

        def replay() -> None:
            self.replayed += 1
            outputs[:] = function(inputs)

        return replay, outputs
