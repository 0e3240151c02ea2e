"""Work on many scans in processes of their own."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

START_SECONDS = 10.0
"""Least time that a new process takes to start: it imports again all that this process has imported."""

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def map_in_workers(
    function: Callable[[Job], Answer], jobs: Sequence[Job], processes: int, shown: str | None = None
) -> Iterator[Answer]:
    """The answers in the order of the jobs, each as soon as it and those before it are finished.

    Jobs run in this process until worker processes are expected to save more time than they take to start: about as
    long as the first job, for which this process had to import as much.

    Args:
        function: Can be pickled, and its answers too.
        jobs: Can be pickled.
        processes: Largest number of processes.
        shown: Description beside a progress bar; None: without one.

    Raises:
        ValueError: Fewer than one process; raised at once, not with the first answer.
        MemoryError: A process was ended from outside, as systems do that run out of memory.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    return _with_bar(function, jobs, processes, shown)


def _with_bar(
    function: Callable[[Job], Answer], jobs: Sequence[Job], processes: int, shown: str | None
) -> Iterator[Answer]:
    with tqdm(total=len(jobs), desc=shown, disable=shown is None or not jobs) as bar:
        for answer in _answers(function, jobs, processes):
            bar.update()
            yield answer


def _answers(function: Callable[[Job], Answer], jobs: Sequence[Job], processes: int) -> Iterator[Answer]:
    seconds: list[float] = []
    while len(seconds) < len(jobs):
        usual, left = sum(seconds[1:]) / max(1, len(seconds) - 1), len(jobs) - len(seconds)
        saved = usual * left * (1 - 1 / max(1, min(processes, left)))
        if processes > 1 and saved > max([START_SECONDS, *seconds[:1]]):
            break
        begun = time.monotonic()
        answer = function(jobs[len(seconds)])
        seconds.append(time.monotonic() - begun)
        yield answer
    jobs = jobs[len(seconds) :]
    if not jobs:
        return
    # spawn: forking after ITK has started its threads can hang
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
            yield from pool.map(function, jobs)
    except BrokenProcessPool as error:
        raise MemoryError(
            f"one of {processes} worker processes was ended from outside, most likely because memory ran out; use fewer"
        ) from error
