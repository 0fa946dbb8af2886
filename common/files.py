"""Atomic writes that survive kills and full disks, and hashes of files. Cheap to import."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError


@contextmanager
def named_errors(file: Path) -> Iterator[None]:
    """Add the path of the file or folder that the block writes to system errors without one.

    Python leaves the path out when writing fails, for example on a full disk.
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
    """Yield a temporary path beside `file`, and rename it to `file` if the block ends without an error.

    The temporary name is always the same, so the next run overwrites what a killed run left.

    Raises:
        OSError: The file cannot be written, for example on a full disk. `filename` is `file`, which is unchanged.
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
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(file: Path, content: bytes) -> None:
    """Write a whole file from memory, or leave it unchanged.

    HDF5 crashes the process when a write fails, so its files are made in memory and written by this function.

    Raises:
        OSError: The disk is full, a quota is reached, or the file does not read back as written.
    """
    with atomic_file(file) as temporary:
        write_checked(temporary, content)


def write_checked(file: Path, content: bytes) -> None:
    """Write bytes to a temporary file, and read them back.

    Raises:
        OSError: The bytes cannot be written, or the file does not read back as written.
    """
    with named_errors(file):
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.read_bytes() != content:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))


def fingerprint(files: Mapping[str, Path]) -> str:
    """Return a hash of the names, sizes and modification times of files (16 hex digits)."""
    stats = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files.items()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def file_hash(*files: Path) -> str:
    """Return the content hash of files, concatenated (SHA-256, 16 hex digits)."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()[:16]


def printable(name: str) -> str:
    """Return a name that a UTF-8 file can contain: bytes that are not UTF-8 become escapes such as `\\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_utf8(name: str, remedy: str) -> None:
    """Refuse the name of a file that OpenCV opens: it crashes on bytes that are not UTF-8.

    Raises:
        InputError: The name is not UTF-8; the message ends with the remedy.
    """
    if (shown := printable(name)) != name:
        raise InputError(f"{shown} is no UTF-8 name; {remedy}")
