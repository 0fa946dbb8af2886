"""Output files: checks before a run, creation without overwriting, and text files that grow by whole rows."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError
from common.files import atomic_file
from realtime.sources import media_files


def check_target(option: str, file: Path, source: str, overwrite: bool = False) -> None:
    """Refuse a file that cannot be written, that exists, or that is the source itself.

    Args:
        option: Command-line option that names the file.
        file: File to write.
        source: Value of `--source`.
        overwrite: Accept an existing file.

    Raises:
        InputError: names the option, the reason and the remedy.
    """
    if not file.parent.is_dir():
        raise InputError(f"{option} {file}: folder {file.parent} does not exist; create it or give another file")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{option} {file} cannot be written; give a file with write permission")
    if file.exists() and any(each.exists() and file.samefile(each) for each in _source_files(source)):
        raise InputError(f"{option} {file} is the source itself, which would be lost; give another file")
    if not overwrite and _holds_data(file):
        raise _exists(option, file)


def _source_files(source: str) -> Iterable[Path]:
    origin = Path(source)
    return [origin, *media_files(origin)] if origin.is_dir() else [origin]


def _holds_data(file: Path) -> bool:
    """Return whether overwriting the file loses data; a pipe or device has none."""
    return file.is_file() or (file.is_symlink() and not file.exists())


def _exists(option: str, file: Path) -> InputError:
    return InputError(f"{option} {file} exists already; give another name, or --overwrite to replace it")


def create(file: Path) -> bool:
    """Create an empty file, which reserves its name, and return whether it is new."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def claim(option: str, file: Path, overwrite: bool = False) -> bool:
    """Create an output file, or accept an existing one that may be replaced.

    Two runs that start together both pass `check_target`; only one of them passes this.

    Returns:
        Whether the file is new.

    Raises:
        InputError: the file exists, or cannot be created.
    """
    with write_errors(f"{option} {file}"):
        is_new = create(file)
    if not is_new and not overwrite and _holds_data(file):
        raise _exists(option, file)
    return is_new


@contextmanager
def write_errors(name: str) -> Iterator[None]:
    """Turn the system's refusal to write into an `InputError` that starts with `name`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{name} cannot be written ({error.strerror}); make room or give another file") from error


class RowFile:
    """Text file that grows by whole rows.

    The rows of one call reach the operating system together, so a killed program leaves no partial row. After a
    failed write the file ends with its last whole row.

    Args:
        name: Name of the file in errors, such as `--log faces.csv`.
        file: File to write.
        append: Continue an existing file; otherwise it is replaced.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, name: str, file: Path, append: bool = False):
        self._name = name
        with write_errors(name):
            self._file = file.open("ab" if append else "wb", buffering=0)

    def write(self, text: str) -> None:
        """Append rows, each with its line end.

        Raises:
            InputError: the file cannot be written.
        """
        rest = memoryview(text.encode())
        end = self._file.tell() if self._file.seekable() else None
        with write_errors(self._name):
            try:
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                if end is not None:
                    with suppress(OSError):  # a device cannot be truncated
                        self._file.seek(end)
                        self._file.truncate()
                raise

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: the system could not write all rows.
        """
        with write_errors(self._name):
            self._file.close()


def write_picture(file: Path, image_bgr: np.ndarray) -> None:
    """Write an image in the format of its suffix.

    Raises:
        InputError: the file cannot be written.
    """
    with write_errors(str(file)), atomic_file(file) as temporary:
        temporary.write_bytes(cv2.imencode(file.suffix, image_bgr)[1].tobytes())  # cv2.imwrite reports no reason
