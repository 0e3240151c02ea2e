import os

import pytest

from nnunet_locctx.nnunet.data.workers import map_in_workers


def test_a_worker_that_was_killed_is_named_as_a_lack_of_memory() -> None:
    with pytest.raises(MemoryError, match="one of 2 worker processes was ended from outside"):
        list(map_in_workers(os._exit, [1, 1], 2))
