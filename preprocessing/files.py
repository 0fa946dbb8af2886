"""Writing files so that a reader sees all of one or none; cheap to import."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Give a temporary path beside `file` to write to; it takes the name `file` when the block ends without error.

    The temporary name is always the same, so what a killed run leaves behind is overwritten by the next one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
