import os
import time
from pathlib import Path

import pytest

from nnunet_locctx.nnunet.data import workers
from nnunet_locctx.nnunet.data.workers import map_in_workers


def work(file: Path) -> int:
    """Takes a tenth of a second; says in which process."""
    time.sleep(0.1)
    file.touch()
    return os.getpid()


def test_a_worker_that_was_killed_is_named_as_a_lack_of_memory(workers_at_once: None) -> None:
    with pytest.raises(MemoryError, match="one of 2 worker processes was ended from outside"):
        list(map_in_workers(os._exit, [1, 1], 2))


def test_fewer_than_one_process_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        map_in_workers(work, [], 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_few_jobs_are_worked_on_here(processes: int, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(5)]
    assert set(map_in_workers(work, files, processes)) == {os.getpid()}
    assert all(file.is_file() for file in files)


def test_many_jobs_are_handed_to_processes_as_soon_as_that_saves_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second job tells that 8 are left of a tenth of a second each, of which two processes save 0.4 s
    monkeypatch.setattr(workers, "START_SECONDS", 0.3)
    answers = list(map_in_workers(work, [tmp_path / str(number) for number in range(10)], 2))
    assert answers[:2] == [os.getpid()] * 2
    assert os.getpid() not in answers[2:]
    assert len(list(tmp_path.iterdir())) == len(answers) == 10
