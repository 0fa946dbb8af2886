"""Apply a function to many items: with worker processes of this machine, or with Ray on several machines.

Worker processes end cleanly: on errors, on Ctrl-C, and when the main process is killed.
"""

import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from threading import Thread, current_thread, main_thread
from typing import Annotated, Any, TypeVar

import cv2
import typer

from common.errors import INSTALL_DISTRIBUTED, InputError
from common.logging import quiet_start
from common.processes import available_cores

MAX_WORKERS = 61  # processes: Windows cannot wait for more
ENGINES = ("local", "ray")
RAY_CHUNK = 8  # times as many items in a chunk, as Ray takes milliseconds for each chunk

EngineName = Annotated[str, typer.Option("--engine", help="local: processes on this machine; ray: a Ray cluster.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Ray cluster, HOST:PORT. [default: Ray starts on this machine]")
]

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerEndedError(Exception):
    """A worker process was killed, or crashed."""


@dataclass(frozen=True)
class Engine:
    """Where a function is applied to many items.

    Attributes:
        name: `local`: one worker process per allowed core; `ray`: Ray Data.
        ray_address: Address of a Ray cluster; None: Ray starts on this machine and ends with this process.

    Raises:
        InputError: The engine is not known or not installed, or the address needs Ray.
    """

    name: str = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise InputError(f"--engine {self.name!r} is not known; accepted: {' or '.join(ENGINES)}")
        if self.ray_address and self.name != "ray":
            raise InputError(f"--ray-address {self.ray_address} needs --engine ray")
        if self.name == "ray" and not (find_spec("ray") and find_spec("pyarrow")):
            raise InputError(f"--engine ray needs Ray Data, which is not installed; {INSTALL_DISTRIBUTED}")

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        chunk: int,
        crashed: Callable[[Item], Result],
        in_order: bool = True,
    ) -> Generator[Result, None, None]:
        """Yield a function's results. Closing it kills the local workers at once.

        Args:
            function: A function that can be pickled. It may cache what it loads: a process calls it many times.
            items: Its arguments. Paths must be absolute; with Ray, every node must have them.
            chunk: Number of items that a worker takes at a time. Ray takes up to eight times as many, unless it is 1.
            crashed: Returns the result of an item that ends its worker, or raises an error. Local engine only; Ray
                repeats the item in a new worker.
            in_order: Yield the results in the order of the items; False: as soon as each chunk is finished.

        Raises:
            InputError: Ray fails or cannot be reached. Errors of the function are raised unchanged.
        """
        if self.name == "ray":
            finished = _map_with_ray(function, items, chunk, self.ray_address)
        else:
            processes = min(available_cores(), MAX_WORKERS)
            finished = _map_locally(function, dict(enumerate(items)), processes, chunk, crashed)
        with closing(finished):
            yield from _ordered(finished) if in_order else (result for _, result in finished)


def _ordered(finished: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Yield results in the order of their positions, 0, 1, 2, ..."""
    waiting: dict[int, Result] = {}
    following = 0
    for position, result in finished:
        waiting[position] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _map_locally(
    function: Callable[[Item], Result],
    items: dict[int, Item],
    processes: int,
    chunk: int,
    crashed: Callable[[Item], Result],
    alone: bool = False,
) -> Generator[tuple[int, Result], None, None]:
    """Yield positions and results. After a crash, the items in work are repeated, each alone in a worker.

    Args:
        function: A function that can be pickled.
        items: Its arguments, by position. Finished ones are removed.
        processes: Number of workers.
        chunk: Number of items that a worker takes at a time.
        crashed: Returns the result of an item that ends its worker when it is alone.
        alone: The items are repeated, with one worker and chunks of one.
    """
    while items:
        try:
            for position, result in map_in_workers(function, items, processes, chunk):
                del items[position]
                yield position, result
        except WorkerEndedError:
            # Workers take the chunks in order, so those in work are the first unfinished ones.
            suspects = dict(islice(items.items(), processes * chunk))
            for position in suspects:
                del items[position]
            if alone:
                yield from ((position, crashed(item)) for position, item in suspects.items())
            else:
                yield from _map_locally(function, suspects, 1, 1, crashed, alone=True)


def map_in_workers(
    function: Callable[[Item], Result], items: Mapping[int, Item], processes: int, chunk: int
) -> Iterator[tuple[int, Result]]:
    """Yield positions and results as they are finished, by worker processes with one thread of OpenCV each.

    Args:
        function: A function that can be pickled.
        items: Its arguments, by position.
        processes: Number of workers.
        chunk: Number of items that a worker takes at a time.

    Raises:
        WorkerEndedError: A worker was killed, or crashed. Like an error of the function, it is raised after the results
            of all chunks in work have been yielded.
    """
    workers, positions, errors = _Workers(), list(items), dict[int, BaseException]()
    waiting = iter([positions[start : start + chunk] for start in range(0, len(positions), chunk)])
    in_work: dict[Future[list[Result]], list[int]] = {}
    pool = ProcessPoolExecutor(processes, workers, _start_worker)
    try:
        while True:
            # A few chunks at a time: after an error none has to be cancelled, which the pool does not survive.
            while not errors and len(in_work) <= 2 * processes and (part := next(waiting, None)):
                try:
                    with _ignored_interruptions():  # a worker may start here
                        in_work[pool.submit(_apply, function, [items[place] for place in part])] = part
                except (BrokenProcessPool, OSError) as error:
                    # "handle is closed": the first worker ended while the next one was being started
                    errors[part[0]] = BrokenProcessPool(str(error))
                    workers.kill()  # so that the pool ends the chunks in work
            if not in_work:
                break
            for future in wait(in_work, return_when=FIRST_COMPLETED).done:
                part = in_work.pop(future)
                if error := future.exception():
                    errors[part[0]] = error
                else:
                    yield from zip(part, future.result(), strict=True)
        if errors:
            raise errors[min(errors)]
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        workers.kill()  # an item may take hours; it is repeated by the next run
        raise
    except BrokenProcessPool as error:
        workers.kill()  # the pool waits forever for a worker that started while the pool failed
        raise WorkerEndedError from error
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


class _Workers(multiprocessing.context.SpawnContext):
    """Start processes in the same way on every system, and keep a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[multiprocessing.context.SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> multiprocessing.context.SpawnProcess:  # noqa: N802
        """Return a new process."""
        self.processes.append(multiprocessing.context.SpawnProcess(*arguments, **options))
        return self.processes[-1]

    def kill(self) -> None:
        """Kill these processes; other children are the caller's."""
        for worker in set(multiprocessing.active_children()).intersection(self.processes):
            worker.kill()


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


def _map_with_ray(
    function: Callable[[Item], Result], items: Sequence[Item], chunk: int, address: str | None
) -> Generator[tuple[int, Result], None, None]:
    """Yield positions and results as they are finished, computed by actors of Ray Data.

    Ray restarts an actor that was killed and repeats its unfinished chunks. Chunks and results are pickled, because
    Ray Data would turn them into columns of a table. Ray runs until this process ends, as its start takes seconds.
    """
    _start_ray(address)
    import ray  # pyright: ignore[reportMissingImports]  # optional
    import ray.data  # pyright: ignore[reportMissingImports]  # optional
    import ray.exceptions  # pyright: ignore[reportMissingImports]  # optional

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised as well as logged
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Actors on all slots would leave none for reading, and Ray Data would hang (ray issue 44687).
    actors = max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
    if chunk > 1:
        chunk = max(chunk, min(RAY_CHUNK * chunk, len(items) // (8 * actors)))  # eight chunks per actor, or more
    chunks = [{"chunk": pickle.dumps((start, items[start : start + chunk]))} for start in range(0, len(items), chunk)]
    rows = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _Actor,
        fn_constructor_args=[function],
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(chunks))),
    )
    try:
        for row in rows.iter_rows():
            start, results = pickle.loads(row["results"])
            if isinstance(results, Exception):
                raise results
            yield from enumerate(results, start)
    except ray.exceptions.RayError as error:
        raise InputError(f"--engine ray: {_reason(error)}; run the same command again to continue") from error


def _start_ray(address: str | None) -> None:
    """Start Ray on this machine, with a slot more than there are cores, or connect to a cluster.

    Raises:
        InputError: Ray does not start, or nothing answers at the address.
    """
    if address:
        _check_address(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change in a later version
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    slots = {} if address else {"num_cpus": available_cores() + 1, "include_dashboard": False}
    try:
        with quiet_start():
            import ray  # pyright: ignore[reportMissingImports]  # optional

            if ray.is_initialized():
                return
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **slots)
    except Exception as error:  # Ray raises exceptions of many kinds, also where a busy machine starts it too slowly
        remedy = "run the same command again"
        if address:
            remedy = "set RAY_AUTH_MODE=token where the cluster has a token, else RAY_AUTH_MODE=disabled"
        raise InputError(f"--engine ray: Ray does not start ({_reason(error)}); {remedy}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_address(address: str) -> None:
    """Refuse an address at which nothing answers; Ray would wait for it for minutes.

    Raises:
        InputError: The address is not HOST:PORT, or refuses a connection.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError):
        raise InputError(
            f"--ray-address {address}: no Ray cluster answers there; give HOST:PORT, as printed by ray start --head"
        ) from None


class _Actor:
    """A worker of Ray Data. The function loads its networks at the first call and keeps them."""

    def __init__(self, function: Callable[[Any], Any]):
        cv2.setNumThreads(1)
        self._function = function

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled results of a chunk, or the exception that ended it, which Ray would wrap."""
        start, items = pickle.loads(batch["chunk"][0])
        try:
            results: Any = _apply(self._function, items)
        except Exception as error:
            results = error
        return {"results": [pickle.dumps((start, results))]}
