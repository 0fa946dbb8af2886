"""Writing files so that a reader sees all of one or none, and telling whether files changed; cheap to import."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named_errors(file: Path) -> Iterator[None]:
    """Give the system's errors in the block the name of the file or folder that it writes.

    Python leaves the name out where writing fails, for example on a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and "requested and" in str(error):  # numpy hides the system's error
            raise OSError(errno.ENOSPC, f"the disk accepts no more data ({error})", str(file)) from error
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Give a temporary path beside `file` to write to; it takes the name `file` when the block ends without error.

    The temporary name is always the same, so what a killed run leaves behind is overwritten by the next one.

    Raises:
        OSError: the file cannot be written, such as on a full disk; `filename` is `file`, which stays as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        with named_errors(file):
            yield temporary
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())  # network disks and quotas report some failed writes only here
        temporary.replace(file)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error  # a failed write names no file
    finally:
        temporary.unlink(missing_ok=True)


def write_file(file: Path, content: bytes) -> None:
    """Write a whole file from memory, or leave it as it was.

    HDF5 crashes the process when a write fails, so its files are made in memory and written by this function.

    Raises:
        OSError: the disk is full, a quota is reached, or the file does not read back as it was written.
    """
    with atomic_file(file) as temporary:
        write_checked(temporary, content)


def write_checked(file: Path, content: bytes) -> None:
    """Write bytes to a temporary file, and read them back.

    Raises:
        OSError: not all of them can be written, or other ones are read.
    """
    try:
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error  # a failed write names no file
    if file.read_bytes() != content:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))


def fingerprint(files: Mapping[str, Path]) -> str:
    """Return a hash of files' names, sizes and times of last change (16 hex digits)."""
    stats = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files.items()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def file_hash(*files: Path) -> str:
    """Return a hash of files' content, one after the other (SHA-256, 16 hex digits)."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]
