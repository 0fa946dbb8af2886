"""The manifest of a batch run: one line of JSON for each finished file, written as soon as it is finished.

The first line holds the settings. Lines are only appended, so a killed run loses at most the files in work. Of several
lines for a file the last one counts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_file
from realtime.sinks.files import RowFile


@dataclass(frozen=True)
class Outcome:
    """What a batch run found in a file.

    Attributes:
        name: The file, relative to its source.
        bytes: Its size.
        modified: When it was last changed, nanoseconds since 1970; of a file in an archive, that of the archive.
        faces: Number of faces, summed over the frames of a video; tentative ones are not counted.
        rows: A picture's rows of `FaceLog`, as CSV; empty for a video, which has a table of its own.
        error: Why it could not be read, or not to its end; else empty.
    """

    name: str
    bytes: int
    modified: int = 0
    faces: int = 0
    rows: str = ""
    error: str = ""


class Manifest:
    """The finished files of a batch run, in a file that survives a kill at any moment.

    Args:
        file: The manifest. It is created, or continued after its last whole line.
        settings: What all outcomes depend on, as JSON values.

    Raises:
        InputError: The manifest has other settings, is damaged, or cannot be written.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        self._file = file
        self._lines: dict[str, tuple[int, int, int, bool]] = {}  # name -> place in the file, bytes, modified, failed
        if not file.exists():
            write_file(file, _line(settings))
        self._end = self._read(settings)
        with file.open("r+b") as stream:
            stream.truncate(self._end)
        self._rows = RowFile(str(file), file, append=True)

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Read the lines, and return the end of the last whole one."""
        with self._file.open("rb") as stream:
            _check_settings(self._file, stream.readline(), settings)
            while (start := stream.tell()) >= 0 and (line := stream.readline()).endswith(b"\n"):
                try:
                    self._note(start, Outcome(**json.loads(line)))
                except (ValueError, TypeError):  # cut by a full disk or a loss of power
                    break
            return start

    def _note(self, start: int, outcome: Outcome) -> None:
        self._lines[outcome.name] = start, outcome.bytes, outcome.modified, bool(outcome.error)

    def has(self, name: str, size: int, modified: int) -> bool:
        """Return whether a file of this name, size and time was read without an error."""
        return self._lines.get(name, ())[1:] == (size, modified, False)

    def add(self, outcome: Outcome) -> None:
        """Append a finished file.

        Raises:
            InputError: The disk is full.
        """
        line = _line(asdict(outcome))
        self._rows.write(line.decode())
        self._note(self._end, outcome)
        self._end += len(line)

    def outcomes(self, names: Iterable[str]) -> Iterator[Outcome]:
        """Yield the last outcome of each file, in the order of the names."""
        with self._file.open("rb") as stream:
            for name in names:
                stream.seek(self._lines[name][0])
                yield Outcome(**json.loads(stream.readline()))

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


def _line(entries: Mapping[str, Any]) -> bytes:
    return (json.dumps(entries) + "\n").encode()


def _check_settings(file: Path, line: bytes, settings: Mapping[str, Any]) -> None:
    """Refuse a manifest of other settings."""
    try:
        before = dict(json.loads(line))
    except (ValueError, TypeError):
        raise InputError(f"{file} is damaged: its first line is not JSON; give another --output") from None
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise InputError(
            f"{file.parent} was made with other settings (different: {', '.join(changed)}); give another --output, "
            "or repeat the command that made it"
        )
