"""The cores that a process may use, and folders that one process at a time may write."""

import errno
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from common.errors import InputError

LOCK_FILE = ".lock"
_LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def available_cores() -> int:
    """Return the number of cores that this process may use, which `taskset` or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def exclusive_lock(folder: Path, remedy: str = "then run this command again") -> Iterator[None]:
    """Let only this process write a folder while the block runs.

    The operating system locks the file `folder/.lock` and frees it when the process ends, also by a kill. All paths to
    the same folder share the lock. On a file system without locks (some network disks) the lock file is in the
    system's temporary folder, so the lock holds on this machine only. A read-only folder needs no lock.

    Args:
        folder: The folder. It is created, and removed again if the block leaves it empty.
        remedy: End of the error message: what else the user can do.

    Raises:
        InputError: Another process holds the lock; the message names it.
    """
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK_FILE]:  # a killed run created it
        created.insert(0, folder)
    release = _acquire(folder, remedy)
    try:
        yield
    finally:
        release()
        for place in created:
            with suppress(OSError):  # not empty
                place.rmdir()


def _acquire(folder: Path, remedy: str) -> Callable[[], object]:
    """Acquire the lock of a folder, and return the function that releases it."""
    from filelock import FileLock, Timeout  # late: the import takes a tenth of a second

    file = folder / LOCK_FILE
    for attempt in range(10):
        held: list[int] = []
        lock = FileLock(file, timeout=0.1, on_acquired=held.append)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            break
        except Timeout:
            raise InputError(f"{folder} is in use by {_holder(file)}; wait until it ends, {remedy}") from None
        except OSError as error:
            if error.errno in _NOT_WRITABLE and not os.access(folder, os.W_OK):
                return lambda: None
            if error.errno in _LOCKS_UNSUPPORTED and file.parent == folder:
                file.unlink(missing_ok=True)
                place = folder.stat()
                file = Path(tempfile.gettempdir()) / f"{place.st_dev:x}-{place.st_ino:x}{LOCK_FILE}"
            elif error.errno != errno.ENOENT or attempt == 9:  # ENOENT: another process removed the empty folder
                raise
    _describe_this_process(held[0])

    def release() -> None:
        with suppress(OSError):  # Windows keeps a file that is open
            if os.path.samestat(file.stat(), os.fstat(held[0])):  # else another process has a new lock file
                file.unlink()
        lock.release()

    return release


def _describe_this_process(descriptor: int) -> None:
    """Write the holder of the lock into the lock file. The first byte is blank, as Windows locks it against reading."""
    from common.command_line import typed_command

    since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    text = f" process {os.getpid()} on {platform.node()} since {since} ({typed_command()})"
    with suppress(OSError):  # a full disk: the lock holds without the text
        os.ftruncate(descriptor, 0)
        os.write(descriptor, os.fsencode(text))  # a path may have bytes that are not UTF-8


def _holder(file: Path) -> str:
    """Return the text of a lock file."""
    with suppress(OSError), file.open("rb") as stream:
        stream.seek(1)
        return " ".join(stream.read(400).decode(errors="replace").split()) or "another process"
    return "another process"
