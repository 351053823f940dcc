"""Work on many files in several processes: in order, with progress, and past a file that kills its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from mnv2det.errors import DataError
from mnv2det.io import is_watched

Job = TypeVar("Job")
Done = TypeVar("Done")
GROUP = 16  # jobs handed over at once
MOST_CRASHES = 20
PATIENCE = 0.5  # seconds after which an interrupt is noticed


class Crash(NamedTuple):
    """In place of a result: the process that worked on it died."""

    reason: str


class _Worker:
    """What a worker process keeps."""

    work: Callable[[Any], Any]
    listening = False


def parallel(
    work: Callable[[Job], Done], jobs: Sequence[Job], workers: int, *, desc: str, unit: str
) -> list[Done | Crash]:
    """The results of ``work`` on every job, in their order.

    Args:
        work: Raises nothing that is to be expected.
        jobs: Few bytes each; only some are handed over at a time.
        workers: Processes; 0 works in this one, where a job that kills its process ends everything.
        desc: Of the progress bar, which is shown on a terminal alone.
        unit: What the progress bar counts.

    Raises:
        DataError: Processes die so often that it cannot be the files.
    """
    if not jobs:
        return []
    if not workers:
        return [work(job) for job in jobs]
    results: list[Any] = [None] * len(jobs)
    waiting = deque(list(range(first, min(first + GROUP, len(jobs)))) for first in range(0, len(jobs), GROUP))
    with tqdm(total=len(jobs), desc=desc, unit=unit, leave=False, disable=not is_watched()) as bar:

        def keep(group: list[int], done: list[Any]) -> None:
            for index, result in zip(group, done, strict=True):
                results[index] = result
            bar.update(len(group))

        crashes = 0
        while waiting:
            lost = _run(work, jobs, waiting, min(workers, len(waiting)), keep)
            # jobs singly, so that it is known which of them kills its process
            single = deque([index] for group in lost for index in group)
            while single:
                left = _run(work, jobs, single, 1, keep, ahead=1)
                if left:
                    keep(left[0], [Crash("its process died while reading it")])
                    crashes += 1
                if crashes > MOST_CRASHES:
                    raise DataError(f"{crashes} processes died ({desc}); is there enough memory? Try fewer workers")
    return results


def _run(
    work: Callable[[Job], Done],
    jobs: Sequence[Job],
    groups: deque[list[int]],
    workers: int,
    keep: Callable[[list[int], list[Any]], None],
    *,
    ahead: int = 4,
) -> list[list[int]]:
    """Works through ``groups`` until a process dies; returns the groups that were handed over at that moment."""
    pool = ProcessPoolExecutor(
        workers,
        # forked workers need no imports of their own
        mp_context=multiprocessing.get_context("fork" if sys.platform == "linux" else None),
        initializer=_start,
        initargs=(work,),
    )
    handed: dict[Future[list[Any]], list[int]] = {}
    interrupted, handler_before = _defer_interrupts()
    try:
        while groups or handed:
            if interrupted.is_set():
                raise KeyboardInterrupt
            while groups and len(handed) < ahead * workers:
                handed[pool.submit(_work, [jobs[index] for index in groups[0]])] = groups[0]
                groups.popleft()
            for future in wait(handed, timeout=PATIENCE, return_when=FIRST_COMPLETED).done:
                keep(handed[future], future.result())
                del handed[future]
    except BrokenProcessPool:
        return list(handed.values())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if handler_before is not None:
            signal.signal(signal.SIGINT, handler_before)
    return []


def _defer_interrupts() -> tuple[threading.Event, Any]:
    """Makes the next Ctrl-C set an event, and those after it do what they did before; returns that handler, too.

    An interrupt in the middle of ``wait`` leaves the lock of a future held for ever, and the pool could not be shut
    down. Outside of the main thread, which alone gets signals, nothing is changed and the handler is None.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return interrupted, None
    before = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, request)
    return interrupted, before


def _start(work: Callable[[Any], Any]) -> None:
    """Prepares a worker: one thread, no signals meant for its parent, and an end when the parent ends."""
    import cv2

    if hasattr(os, "setpgrp"):  # Windows has no process groups
        os.setpgrp()
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _Worker.work = staticmethod(work)
    # decoders only print what they find damaged
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
    _Worker.listening = True


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(jobs: list[Any]) -> list[Any]:
    return [_Worker.work(job) for job in jobs]


def printed() -> str:
    """What libraries have printed in this process since the last call; empty outside of `parallel`."""
    if not _Worker.listening:
        return ""
    os.lseek(2, 0, os.SEEK_SET)
    text = os.read(2, 4000).decode("utf-8", "replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return text
