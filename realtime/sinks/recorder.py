"""Recorder: the recording of a run, and the recordings and snapshots that keys start."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np

from common.errors import InputError
from realtime.sinks.files import create, write_picture
from realtime.sinks.recording import Recording, open_recording


class Recorder:
    """Start and stop recordings, and take snapshots.

    Args:
        captures: Folder for the files that keys start.
        fps: Frames per second of the source.

    Attributes:
        written: Files written.
    """

    def __init__(self, captures: Path, fps: float):
        self.written: list[Path] = []
        self._captures, self._fps = captures, fps
        self._current: tuple[Path, Recording] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a recording is running."""
        return self._current is not None

    def start(self, file: Path, size: tuple[int, int]) -> None:
        """Start a recording of frames of (width, height) pixels.

        Raises:
            InputError: the file cannot be written.
        """
        self._current = file, open_recording(file, size, self._fps)

    def stop(self) -> None:
        """Stop the recording, if one is running.

        Raises:
            InputError: the file cannot be finished.
        """
        if self._current:
            file, recording = self._current
            self._current = None
            self.written.append(file)
            recording.close()

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Add a drawn frame that is shown from `time` on, in seconds, if a recording is running.

        Raises:
            InputError: the frame cannot be written; the recording is stopped.
        """
        if not self._current:
            return
        try:
            self._current[1].write(time, drawn_bgr)
        except InputError:
            self.stop()
            raise

    def toggle(self, size: tuple[int, int]) -> str:
        """Stop the recording, or start a new one in the folder for captures, and return a note for the user."""
        if self._current:
            file = self._current[0]
            try:
                self.stop()
            except InputError as error:
                return f"the recording could not be finished: {error}"
            return f"wrote {_short(file)}"
        try:
            with self._new_capture(".mp4") as file:
                self.start(file, size)
        except (InputError, OSError) as error:
            return f"no recording: {error}"
        return f"recording {_short(file)}"

    def snapshot(self, drawn_bgr: np.ndarray) -> str:
        """Write a drawn frame into the folder for captures, and return a note for the user."""
        try:
            with self._new_capture(".png") as file:
                write_picture(file, drawn_bgr)
        except (InputError, OSError) as error:
            return f"no snapshot: {error}"
        self.written.append(file)
        return f"wrote {_short(file)}"

    @contextmanager
    def _new_capture(self, suffix: str) -> Iterator[Path]:
        """Create a file named after the time, numbered where that name exists; an error removes it."""
        self._captures.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        names = (self._captures / f"{stem}{f'_{n}' if n > 1 else ''}{suffix}" for n in count(1))
        file = next(filter(create, names))
        try:
            yield file
        except BaseException:
            file.unlink(missing_ok=True)
            raise


def _short(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
