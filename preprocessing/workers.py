"""Apply a function in worker processes, in order, and end them cleanly: on errors, on Ctrl-C and when killed."""

import multiprocessing
import multiprocessing.context
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

import cv2

from common.errors import InputError

MAX_WORKERS = 61  # processes: Windows cannot wait for more
CHUNK = 4  # items that a worker takes at a time; a run that is stopped ends when these are done

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_workers(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """Yield a function's results in order, computed by worker processes.

    Args:
        function: A function that can be pickled.
        items: Its arguments.
        processes: Number of workers.

    Raises:
        InputError: A worker was killed.
    """
    workers = _Workers()
    pool = ProcessPoolExecutor(processes, workers, _start_worker)
    try:
        with _ignored_interruptions():  # the workers start here
            try:
                results = pool.map(function, items, chunksize=CHUNK)
            except OSError as error:  # "handle is closed": the first worker ended while the next one was being started
                raise BrokenProcessPool(str(error)) from error
        yield from results
    except BrokenProcessPool as error:
        # The pool waits forever for a worker that started while the pool failed. Other children are the caller's.
        for worker in set(multiprocessing.active_children()).intersection(workers.processes):
            worker.kill()
        raise InputError(
            "a worker process was ended, perhaps for lack of memory; run the same command again to continue"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Workers(multiprocessing.context.SpawnContext):
    """Start processes in the same way on every system, and keep a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[multiprocessing.context.SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> multiprocessing.context.SpawnProcess:  # noqa: N802
        """Return a new process."""
        self.processes.append(multiprocessing.context.SpawnProcess(*arguments, **options))
        return self.processes[-1]


@contextmanager
def _ignored_interruptions() -> Iterator[None]:
    """Ignore Ctrl-C, also in processes started meanwhile. The main process gets it afterwards and ends its workers."""
    if current_thread() is not main_thread():  # where Python sets no signal handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not inherited on Windows
    cv2.setNumThreads(1)
    Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)  # the main process was killed
