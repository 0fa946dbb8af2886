"""Which processes of this machine are still at work.

Each holds a lock on a file of its own. The system lets go of the lock when the process ends, however it ends, so a kill
is noticed at once, and a process that sleeps with its laptop is not taken for dead.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

if os.name == "nt":
    import msvcrt

    def _try_lock(stream: IO[bytes]) -> bool:
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(stream: IO[bytes]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Worker:
    """This process's sign of life, from `with` to its end.

    Args:
        folder: Where the processes that work together have their files.

    Attributes:
        name: By which others ask for it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = f"{os.getpid()}-{uuid4().hex[:8]}"  # process numbers come again, this does not

    def __enter__(self) -> "Worker":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / f"{self.name}.lock"
        self._stream = self._file.open("wb")
        _try_lock(self._stream)
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._file.unlink(missing_ok=True)


def is_at_work(folder: Path, name: str) -> bool:
    """Tell whether a worker of this name lives; what a dead one left behind is removed."""
    file = folder / f"{name}.lock"
    try:
        with file.open("rb") as stream:
            alive = not _try_lock(stream)
    except FileNotFoundError:
        return False
    if not alive:
        file.unlink(missing_ok=True)
    return alive


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Let one process after the other run the block, by a lock on a file that stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        while not _try_lock(stream):
            time.sleep(0.02)
        yield
