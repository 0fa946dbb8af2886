"""What is kept of a run: an annotated video or picture, and a CSV log."""

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import atomic_file
from realtime.recognition import Result
from realtime.sources import Source

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
RESERVE = 16 << 20  # bytes left free on the disk: OpenCV does not tell of a full one, and a video ends with its index


class Output(Protocol):
    """Where results go: a recording or the log."""

    def write(self, result: Result, drawn_bgr: np.ndarray) -> None:
        """Take one frame's result and its annotated picture."""
        ...

    def close(self) -> None:
        """Finish what was written."""
        ...


def check_target(option: str, file: Path, suffixes: Sequence[str], source: str) -> None:
    """Refuse a file that could not be written, or that is the source itself.

    Raises:
        InputError: naming the option, what it accepts, and the remedy.
    """
    existing = file if file.exists() else file.parent
    if file.suffix.lower() not in suffixes:
        raise InputError(f"{option} {file} must end in {' or '.join(suffixes)} for this source")
    if not file.parent.is_dir():
        raise InputError(f"{option} {file}: the folder {file.parent} does not exist; make it, or give another file")
    if file.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{option} {file} cannot be written; give a file where you may write")
    origin = Path(source)
    read = [origin, *origin.iterdir()] if origin.is_dir() and file.suffix.lower() in PICTURE_SUFFIXES else [origin]
    if file.exists() and any(other.exists() and file.samefile(other) for other in read):
        raise InputError(f"{option} {file} is the source itself, which would be lost; give another file")


def suffixes_for(source: Source) -> tuple[str, ...]:
    """Return how the name of a source's recording may end."""
    return VIDEO_SUFFIXES + (PICTURE_SUFFIXES if source.still and source.count == 1 else ())


def open_recording(file: Path, source: Source) -> "VideoRecording | PictureRecording":
    """Return a recording that fits a source, of the kind that the file's suffix asks for."""
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return PictureRecording(file)
    return VideoRecording(file, source.size, source.fps)


class VideoRecording:
    """Writes a video of one size and a constant frame rate that keeps to the frames' own times.

    A frame is shown until the next one's time has come, so a slow camera's video is neither too short nor too fast.
    Frames of another size are fitted into the first one's, with black borders.

    Args:
        file: The video to write; an existing one is replaced.
        size: Width and height, pixels; odd ones lose a pixel.
        fps: Frames per second.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: float):
        self._file, self._size, self._fps = file, size, fps
        self._check_space()
        self._count = 0
        self._shown_bgr: np.ndarray | None = None
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            raise InputError(f"--record {file} cannot be written as a video of {size[0]}x{size[1]} pixels; "
                             "check that the folder may be written to, or give another file")  # fmt: skip

    def write(self, result: Result, drawn_bgr: np.ndarray) -> None:
        """Add a frame at its time; before it, its predecessor as often as the time between them asks for.

        Raises:
            InputError: the disk is full.
        """
        self._check_space()
        due = round(result.frame.time * self._fps)
        while self._shown_bgr is not None and self._count < due:
            self._add(self._shown_bgr)
        self._shown_bgr = letterbox(drawn_bgr, self._size)
        if self._count <= due:
            self._add(self._shown_bgr)

    def _check_space(self) -> None:
        if shutil.disk_usage(self._file.parent).free < RESERVE:
            raise InputError(
                f"--record {self._file}: less than {RESERVE >> 20} MB are free on its disk; what was recorded is kept, "
                "make room or give another file"
            )

    def _add(self, image_bgr: np.ndarray) -> None:
        self._writer.write(image_bgr)
        self._count += 1

    def close(self) -> None:
        """Finish the file, so that it can be played."""
        self._writer.release()


class PictureRecording:
    """Writes the one frame of an image source as an image."""

    def __init__(self, file: Path):
        self._file = file

    def write(self, result: Result, drawn_bgr: np.ndarray) -> None:
        """Write the picture.

        Raises:
            InputError: the file cannot be written.
        """
        write_picture(self._file, drawn_bgr)

    def close(self) -> None:
        """Do nothing: the picture is written."""


class Log:
    """Writes a CSV with one row per face: what was seen, where, when. Each frame is on the disk before the next.

    Columns: `time` (seconds since the first frame), `frame` (its place in the source, from 0), `name` (what the frame
    was taken from), `face` (number within the frame, from 1), `box_left`, `box_top`, `box_width`, `box_height`
    (pixels), `label`, `probability`, and `p_<emotion>` for each emotion in class order.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, labels: Sequence[str]):
        self._name = f"--log {file}"
        with _told(self._name):
            self._file = file.open("w", newline="", encoding="utf-8")
        self._labels = labels
        self._rows = csv.writer(self._file, lineterminator="\n")
        box = ["box_left", "box_top", "box_width", "box_height"]
        probabilities = [f"p_{label}" for label in labels]
        self._rows.writerow(["time", "frame", "name", "face", *box, "label", "probability", *probabilities])

    def write(self, result: Result, drawn_bgr: np.ndarray) -> None:
        """Add a row for each face of a frame.

        Raises:
            InputError: the file cannot be written.
        """
        frame, rows = result.frame, []
        for number, recognition in enumerate(result.recognitions, start=1):
            face = recognition.face
            box = [round(value, 1) for value in (face.left, face.top, face.width, face.height)]
            by_label = [recognition.probabilities[label] for label in self._labels]
            probabilities = [f"{p:.5f}" for p in (recognition.probability, *by_label)]
            rows.append([f"{frame.time:.3f}", frame.index, frame.name, number, *box, recognition.label, *probabilities])
        with _told(self._name):
            self._rows.writerows(rows)
            self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: what was left to write cannot be written.
        """
        with _told(self._name):
            self._file.close()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell in one line that the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror}); give another file") from error


def letterbox(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image scaled to fit into width x height pixels, centred, with black borders."""
    height, width = image_bgr.shape[:2]
    if (width, height) == size:
        return image_bgr
    scale = min(size[0] / width, size[1] / height)
    fitted_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted_bgr = cv2.resize(image_bgr, fitted_size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas_bgr = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - fitted_size[0]) // 2, (size[1] - fitted_size[1]) // 2
    canvas_bgr[top : top + fitted_size[1], left : left + fitted_size[0]] = fitted_bgr
    return canvas_bgr


def write_picture(file: Path, image_bgr: np.ndarray) -> None:
    """Write an image in the format of its file's suffix.

    Raises:
        InputError: the file cannot be written.
    """
    with _told(str(file)), atomic_file(file) as temporary:
        temporary.write_bytes(cv2.imencode(file.suffix, image_bgr)[1].tobytes())  # cv2.imwrite fails without a word
