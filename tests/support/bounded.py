"""The memory that tests of hostile files may take."""

import sys
from collections.abc import Iterator

import pytest

_MOST = 2_000_000  # kB, with the libraries that the first test imports


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """Check that the tests of a module, all together, made the process no larger than by 2 GB."""
    if sys.platform != "linux":  # elsewhere, the unit is another one, or there is no such module
        yield
        return
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST
