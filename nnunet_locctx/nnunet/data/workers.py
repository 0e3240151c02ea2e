"""Work on many scans in processes of their own."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def map_in_workers(
    function: Callable[[Job], Answer], jobs: Sequence[Job], processes: int, shown: str | None = None
) -> Iterator[Answer]:
    """The answers in the order of the jobs, each as soon as it and those before it are there.

    Args:
        function: Can be pickled, and its answers too.
        jobs: Can be pickled.
        processes: At most this many; one job, or one process, is worked on here.
        shown: What is done, beside a progress bar; None: without one.

    Raises:
        MemoryError: A process was ended from outside, as systems do that run out of memory.
    """
    with tqdm(total=len(jobs), desc=shown, disable=shown is None or not jobs) as bar:
        for answer in _answers(function, jobs, processes):
            bar.update()
            yield answer


def _answers(function: Callable[[Job], Answer], jobs: Sequence[Job], processes: int) -> Iterator[Answer]:
    if min(processes, len(jobs)) <= 1:
        yield from map(function, jobs)
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
