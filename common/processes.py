"""What a process shares with others: the cores of the machine, and folders that one process at a time may write."""

import errno
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from common.errors import InputError

LOCK_FILE = ".lock"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link of the lock's name must not lead to a file that is then overwritten
_LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


def available_cores() -> int:
    """Return the number of cores that this process may use, which `taskset` or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def exclusive_lock(folder: Path, remedy: str = "then run this command again") -> Iterator[None]:
    """Let only this process write a folder while the block runs.

    The operating system locks the file `folder/.lock`, so a killed process leaves no locked folder behind. All paths to
    the same folder share the lock. Where the file system has no locks, the file is in the system's temporary folder,
    and the lock holds on this machine only. A folder that this process cannot write needs no lock.

    Args:
        folder: The folder. It is created, and removed again where the block leaves nothing in it.
        remedy: What else the user can do; it ends the message of the error.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    held = _acquire(folder, remedy)
    try:
        yield
    finally:
        if held is not None:
            file, descriptor = held
            with suppress(OSError):  # Windows keeps a file that is open
                if _is_opened_as(file, descriptor):  # else: the file was removed, and another process has a new one
                    file.unlink()
            os.close(descriptor)
        for place in created:
            with suppress(OSError):  # not empty
                place.rmdir()


def _acquire(folder: Path, remedy: str) -> tuple[Path, int] | None:
    """Return the locked file and its descriptor; None where this process cannot write in the folder."""
    from filelock import lock_descriptor  # late: it takes a tenth of a second to import

    file = folder / LOCK_FILE
    while True:
        descriptor = _open(folder, file)
        if descriptor is None:
            return None
        try:
            locked = lock_descriptor(descriptor, blocking=False)
            if locked and _is_opened_as(file, descriptor):
                _describe_this_process(descriptor)
                return file, descriptor
            holder = "" if locked else _read_holder(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _LOCKS_UNSUPPORTED or file.name != LOCK_FILE:
                raise
            with suppress(OSError):
                file.unlink()
            place = folder.stat()
            file = Path(tempfile.gettempdir()) / f"{place.st_dev:x}-{place.st_ino:x}{LOCK_FILE}"
            continue
        os.close(descriptor)
        if not locked:  # else: the holder removed the file after it was opened here, so it locks nobody out
            raise InputError(f"{folder} is in use by {holder or 'another process'}; wait until it ends, {remedy}")


def _open(folder: Path, file: Path) -> int | None:
    """Open a lock file, a new one where there is none; None where this process cannot write in the folder."""
    for attempt in range(10):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        except OSError as error:
            if error.errno == errno.ENOENT and attempt < 9:  # another process removed a folder that it left empty
                continue
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            try:
                return os.open(file, os.O_RDONLY | _NO_LINK)  # of another user: reading it is enough for a lock
            except OSError:
                if os.access(folder, os.W_OK):
                    raise error from None
                break
    return None


def _is_opened_as(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _describe_this_process(descriptor: int) -> None:
    """Write into the locked file who holds the lock. The first byte is blank: Windows lets nobody read a locked one."""
    from common.command_line import typed_command

    since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {platform.node()} since {since} ({typed_command()})"
    with suppress(OSError):  # a full disk, or a file of another user: the lock holds without it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f" {text}".encode())


def _read_holder(descriptor: int) -> str:
    with suppress(OSError):
        os.lseek(descriptor, 1, os.SEEK_SET)
        return " ".join(os.read(descriptor, 400).decode(errors="replace").split())
    return ""
