"""What is kept of a run: an annotated video, animation or picture, and a log."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from configuration import WEBCAM
from preprocessing.errors import InputError
from preprocessing.files import atomic_file
from realtime.recognition import Result
from realtime.sources import Source

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")
ANIMATION_SUFFIXES = (".webp", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LOG_SUFFIXES = (".csv", ".jsonl")
RESERVE = 16 << 20  # bytes left free on the disk: OpenCV does not tell of a full one, and a video ends with its index


class Recording(Protocol):
    """Where drawn frames go."""

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Take a drawn frame that belongs to a moment of the source, in seconds."""
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
    return VIDEO_SUFFIXES + (PICTURE_SUFFIXES if source.still and source.count == 1 else ANIMATION_SUFFIXES)


def open_recording(file: Path, size: tuple[int, int], fps: float) -> Recording:
    """Return a recording of the kind that the file's suffix asks for.

    Raises:
        InputError: the file cannot be written.
    """
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return PictureRecording(file)
    if file.suffix.lower() in ANIMATION_SUFFIXES:
        return AnimationRecording(file)
    return VideoRecording(file, size, fps)


class VideoRecording:
    """Writes a video of one size and a constant frame rate that keeps to the frames' own times.

    A frame is shown until the next one's time has come, so a slow camera's video is neither too short nor too fast,
    and a pause stays a pause. Time begins with the first frame written, which need not be the source's first.
    Frames of another size are fitted into the first one's, with black borders. A killed program leaves an .mkv or .avi
    that can be played; an .mp4 or .mov is complete only once it is closed.

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
        self._start: float | None = None  # time of the first frame
        self._shown_bgr: np.ndarray | None = None
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            raise InputError(f"--record {file} cannot be written as a video of {size[0]}x{size[1]} pixels; "
                             "check that the folder may be written to, or give another file")  # fmt: skip

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Add a frame at its time; before it, its predecessor as often as the time between them asks for.

        Raises:
            InputError: the disk is full.
        """
        self._start = time if self._start is None else self._start
        due = round((time - self._start) * self._fps)
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
        self._check_space()
        self._writer.write(image_bgr)
        self._count += 1

    def close(self) -> None:
        """Finish the file, so that it can be played."""
        self._writer.release()


class AnimationRecording:
    """Writes a small picture that moves by itself, for a README or a message: `.webp`, or the larger `.gif`.

    It has at most `WEBCAM.animation_fps` frames per second and shows the first `WEBCAM.animation_seconds`, scaled down
    to `WEBCAM.animation_width`. The file is written when it is closed.
    """

    def __init__(self, file: Path):
        self._file = file
        self._frames_bgr: list[np.ndarray] = []
        self._times: list[float] = []
        self._last = 0.0
        self._is_full = False

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Keep a frame where its time has come.

        Raises:
            InputError: the animation is as long as it may be.
        """
        if self._times and time - self._times[0] > WEBCAM.animation_seconds:
            if not self._is_full:
                self._is_full = True
                raise InputError(
                    f"--record {self._file}: an animation ends after {WEBCAM.animation_seconds:.0f} seconds; what was "
                    "recorded is kept, record an .mp4 to have more"
                )
            return
        self._last = time
        if self._times and time < self._times[-1] + 0.999 / WEBCAM.animation_fps:
            return
        height, width = drawn_bgr.shape[:2]
        scale = min(1.0, WEBCAM.animation_width / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if self._frames_bgr:
            size = (self._frames_bgr[0].shape[1], self._frames_bgr[0].shape[0])
        small_bgr = letterbox(drawn_bgr, size)
        self._frames_bgr.append(small_bgr.copy() if small_bgr is drawn_bgr else small_bgr)
        self._times.append(time)

    def close(self) -> None:
        """Write the file.

        Raises:
            InputError: it cannot be written.
        """
        if not self._frames_bgr:
            return
        last = max(self._last - self._times[-1], 1 / WEBCAM.animation_fps)
        animation = cv2.Animation()
        animation.frames = self._frames_bgr
        animation.durations = [round(1000 * seconds) for seconds in (*np.diff(self._times), last)]
        options = [cv2.IMWRITE_WEBP_QUALITY, WEBCAM.animation_quality] if self._file.suffix.lower() == ".webp" else []
        with told(f"--record {self._file}"), atomic_file(self._file) as temporary:
            try:
                is_written = cv2.imwriteanimation(str(temporary), animation, options)
            except cv2.error:  # OpenCV 4.11 writes no .gif
                is_written = False
            if not is_written:
                raise InputError(f"--record {self._file} could not be written; give an .mp4, or make room on the disk")
        self._frames_bgr = []


class PictureRecording:
    """Writes the one frame of an image source as an image."""

    def __init__(self, file: Path):
        self._file = file

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Write the picture.

        Raises:
            InputError: the file cannot be written.
        """
        write_picture(self._file, drawn_bgr)

    def close(self) -> None:
        """Do nothing: the picture is written."""


class Log:
    """Writes one row per face: what was seen, where, when. Each frame is on the disk before the next.

    A `.csv` has a header; a `.jsonl` has an object per line with the same names, its numbers as numbers, `unsure` and
    `tentative` as true or false. Columns: `time` (seconds since the first frame), `frame` (its place in the source,
    from 0), `name` (what the frame was taken from), `face` (its number, from 1, kept while it stays; 0 while it is
    tentative; where faces are not followed, as in pictures, its place within the frame), `box_left`, `box_top`,
    `box_width`, `box_height` (pixels), `label` (the emotion shown, or what it would be), `probability` (the label's),
    `unsure` (1: no emotion was probable enough to be shown, else 0), `tentative` (1: only one search has found the
    face, so it may be a false detection; else 0), and `p_<emotion>` for each emotion in class order.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, labels: Sequence[str]):
        self._name = f"--log {file}"
        self._is_json = file.suffix.lower() == ".jsonl"
        self._labels = labels
        with told(self._name):
            self._file = file.open("w", newline="", encoding="utf-8")
            if not self._is_json:
                csv.writer(self._file, lineterminator="\n").writerow(log_columns(labels))
                self._file.flush()

    def write(self, result: Result) -> None:
        """Add a row for each face of a frame.

        Raises:
            InputError: the file cannot be written.
        """
        rows = [self._row(result, place) for place in range(len(result.recognitions))]
        with told(self._name):
            if self._is_json:
                names = log_columns(self._labels)
                self._file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
            else:
                csv.writer(self._file, lineterminator="\n").writerows(
                    [int(value) if isinstance(value, bool) else value for value in row] for row in rows
                )
            self._file.flush()

    def _row(self, result: Result, place: int) -> list[Any]:
        frame, recognition = result.frame, result.recognitions[place]
        face = recognition.face
        box = [round(float(value), 1) for value in (face.left, face.top, face.width, face.height)]
        by_label = [round(recognition.probabilities[label], 5) for label in self._labels]
        shown = [recognition.label, round(recognition.probability, 5), recognition.unsure, recognition.tentative]
        number = 0 if recognition.tentative else recognition.number or place + 1
        return [round(frame.time, 3), frame.index, frame.name, number, *box, *shown, *by_label]

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: what was left to write cannot be written.
        """
        with told(self._name):
            self._file.close()


def log_columns(labels: Sequence[str]) -> list[str]:
    """Return the names of a log's columns."""
    box = ["box_left", "box_top", "box_width", "box_height"]
    shown = ["label", "probability", "unsure", "tentative"]
    return ["time", "frame", "name", "face", *box, *shown, *(f"p_{label}" for label in labels)]


@contextmanager
def told(what: str) -> Iterator[None]:
    """Raise an `InputError` that names `what` where the system refuses to write."""
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
    with told(str(file)), atomic_file(file) as temporary:
        temporary.write_bytes(cv2.imencode(file.suffix, image_bgr)[1].tobytes())  # cv2.imwrite fails without a word
