"""Writing files so that a reader sees all of one or none, and telling whether files changed; cheap to import."""

import hashlib
import json
from collections.abc import Iterator, Mapping
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


def fingerprint(files: Mapping[str, Path]) -> str:
    """Return a hash of files' names, sizes and times of last change (16 hex digits)."""
    stats = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files.items()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def file_hash(*files: Path) -> str:
    """Return a hash of files' content, one after the other (SHA-256, 16 hex digits)."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
