"""What is kept of a run: an annotated video, animation or picture, and a log."""

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from common.csv_text import write_row
from common.errors import InputError
from common.files import atomic_file
from configuration import WEBCAM
from realtime.recognition import Recognition, Result
from realtime.sources import Frame, Source, media_files

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")
ANIMATION_SUFFIXES = (".webp", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LOG_SUFFIXES = (".csv", ".jsonl")
RESERVE = 16 << 20  # bytes that a video leaves free on the disk: its index, the log and the summary need room, too
_TICK = Fraction(1, 30_000)  # seconds: of a video's time stamps; MPEG-4 allows no less than 1/65,535
_KEYFRAME = 1.0  # seconds between two keyframes at most
_FRAGMENT = 0.2  # seconds of video that a killed program loses at most


class Recording(Protocol):
    """Where drawn frames go."""

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Take a drawn frame that belongs to a moment of the source, in seconds."""
        ...

    def close(self) -> None:
        """Finish what was written."""
        ...


def check_target(option: str, file: Path, source: str, overwrite: bool = False) -> None:
    """Refuse a file that cannot be written, that exists, or that is the source itself.

    Args:
        option: The command-line option that names the file.
        file: The file to write.
        source: What `--source` names.
        overwrite: An existing file may be replaced.

    Raises:
        InputError: naming the option, the reason and the remedy.
    """
    if not file.parent.is_dir():
        raise InputError(f"{option} {file}: the folder {file.parent} does not exist; make it, or give another file")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{option} {file} cannot be written; give a file where you may write")
    if file.exists() and any(each.exists() and file.samefile(each) for each in _files_read(source)):
        raise InputError(f"{option} {file} is the source itself, which would be lost; give another file")
    if not overwrite and _holds_data(file):
        raise _exists(option, file)


def _files_read(source: str) -> Iterable[Path]:
    origin = Path(source)
    return [origin, *media_files(origin)] if origin.is_dir() else [origin]


def _holds_data(file: Path) -> bool:
    """Return whether a file would be lost; a pipe or device has nothing to lose."""
    return file.is_file() or (file.is_symlink() and not file.exists())


def _exists(option: str, file: Path) -> InputError:
    return InputError(f"{option} {file} exists already; give another name, or --overwrite to replace it")


def check_suffix(option: str, file: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file whose suffix names no format that can be written.

    Raises:
        InputError: naming the option and the suffixes that are accepted.
    """
    if file.suffix.lower() not in suffixes:
        raise InputError(f"{option} {file} must end in {' or '.join(suffixes)} for this source")


def create(file: Path) -> bool:
    """Create an empty file, so that no other program takes its name, and return whether it is new."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def claim(option: str, file: Path, overwrite: bool = False) -> bool:
    """Create an output file, or accept an existing one that may be replaced; that one stays unchanged until then.

    Args:
        option: The command-line option that names the file.
        file: The file to write.
        overwrite: An existing file may be replaced.

    Returns:
        Whether the file is new.

    Raises:
        InputError: the file exists, or cannot be created.
    """
    with told(f"{option} {file}"):
        is_new = create(file)
    if not is_new and not overwrite and _holds_data(file):
        raise _exists(option, file)
    return is_new


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
    """Writes a video whose frames keep their own times, so that it plays at the true speed.

    The frame rate varies: a slow camera's frames last longer, and a pause stays a pause. An .avi knows a constant frame
    rate only: its frames are repeated or left out. Time begins with the first frame written. Frames of another size are
    fitted into the first one's, with black borders.

    The codec is H.264 where this build of PyAV has x264, else MPEG-4 Part 2. An .mp4 or .mov is fragmented while it
    is written, and becomes a plain one when it is closed. So a killed program leaves a video that can be played and
    lacks at most its last second, in each of the formats.

    Args:
        file: The video to write; an existing one is replaced.
        size: Width and height, pixels; an odd side gets one more row or column.
        fps: Frames per second: of an .avi, and how long the last frame lasts.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: float):
        self._file, self._size = file, size
        self._check_space()
        av = _import_av()
        from av.video.reformatter import ColorRange, Colorspace

        self._errors = (av.FFmpegError, OSError)
        self._new_frame, self._keyframe = av.VideoFrame.from_ndarray, av.video.frame.PictureType.I
        self._start: float | None = None  # time of the first frame
        self._last = self._last_keyframe = -1  # ticks
        rate = Fraction(fps).limit_denominator(1001)
        is_constant = file.suffix.lower() == ".avi"
        self._tick = 1 / rate if is_constant else _TICK
        self._frame_ticks = max(1, round(1 / rate / self._tick))
        try:
            # An absolute path: FFmpeg takes what stands before a colon for a protocol.
            self._container = av.open(str(file.absolute()), "w", options=_CRASH_SAFE[file.suffix.lower()])
            is_x264 = "libx264" in av.codecs_available
            options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"} if is_x264 else {"qscale": "4"}
            self._stream = self._container.add_stream("libx264" if is_x264 else "mpeg4", rate=rate, options=options)
            self._stream.width, self._stream.height = (side + side % 2 for side in size)
            self._stream.pix_fmt = "yuv420p"
            codec = self._stream.codec_context
            codec.time_base = self._tick
            codec.colorspace, codec.color_range = Colorspace.SMPTE170M, ColorRange.MPEG  # as OpenCV converts (BT.601)
            self._container.start_encoding()
        except self._errors as error:
            raise InputError(f"--record {file} cannot be written as a video of {size[0]}x{size[1]} pixels "
                             f"({error.strerror}); give another file, or another source") from error  # fmt: skip

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Add a frame that is shown from its time on; one that is no later than the frame before is left out.

        Raises:
            InputError: the disk is full, or the file cannot be written.
        """
        self._start = time if self._start is None else self._start
        ticks = round((time - self._start) / self._tick)
        if ticks <= self._last:
            return
        self._check_space()
        image_bgr = letterbox(drawn_bgr, self._size)
        height, width = image_bgr.shape[:2]
        if height % 2 or width % 2:
            image_bgr = cv2.copyMakeBorder(image_bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = self._new_frame(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2YUV_I420), format="yuv420p")
        frame.pts, frame.time_base, frame.duration = ticks, self._tick, self._frame_ticks
        if self._last < 0 or (ticks - self._last_keyframe) * self._tick >= _KEYFRAME:
            frame.pict_type, self._last_keyframe = self._keyframe, ticks
        self._last = ticks
        self._encode(frame)

    def _encode(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except self._errors as error:
            raise self._failed(error) from error

    def _check_space(self) -> None:
        if shutil.disk_usage(self._file.parent).free < RESERVE:
            raise InputError(
                f"--record {self._file}: less than {RESERVE >> 20} MB are free on its disk; what was recorded is kept, "
                "make room or give another file"
            )

    def _failed(self, error: Any) -> InputError:
        return InputError(
            f"--record {self._file} cannot be written ({error.strerror}); what was recorded is kept, "
            "make room or give another file"
        )

    def close(self) -> None:
        """Finish the file.

        Raises:
            InputError: it cannot be written; it can be played up to what was written.
        """
        try:
            self._encode(None)  # what the encoder still holds
        finally:
            try:
                self._container.close()
            except self._errors as error:
                raise self._failed(error) from error


_FRAGMENTS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+hybrid_fragmented",
    "frag_duration": str(round(1e6 * _FRAGMENT)),  # microseconds
    "flush_packets": "1",
}
_CRASH_SAFE = {  # options that bring what was encoded to the operating system soon, by suffix
    ".mp4": _FRAGMENTS,
    ".mov": _FRAGMENTS,
    ".mkv": {"cluster_time_limit": str(round(1e3 * _FRAGMENT)), "flush_packets": "1"},  # milliseconds
    ".avi": {"flush_packets": "1"},
}


def _import_av() -> Any:
    """Return PyAV. It is imported late, as few runs record, and after OpenCV, whose windows freeze otherwise.

    Raises:
        InputError: it is not installed, or does not fit this machine.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"--record needs PyAV ({error}): python -m pip install -r requirements.txt") from error
    return av


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


class Rows:
    """A text file that grows by whole rows.

    The rows of one call reach the operating system together, so a killed program leaves no half row. Where they
    cannot be written, the file ends with the last whole row. A power failure may cost the last seconds.

    Args:
        name: What an error calls the file, such as `--log faces.csv`.
        file: The file to write; an existing one is replaced.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, name: str, file: Path):
        self._name = name
        with told(name):
            self._file = file.open("wb", buffering=0)

    def write(self, text: str) -> None:
        """Add rows, each with its line end.

        Raises:
            InputError: the file cannot be written.
        """
        rest = memoryview(text.encode())
        end = self._file.tell() if self._file.seekable() else None
        with told(self._name):
            try:
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                if end is not None:
                    with suppress(OSError):  # a device cannot be cut
                        self._file.seek(end)
                        self._file.truncate()
                raise

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: the system could not write what it took.
        """
        with told(self._name):
            self._file.close()


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as lines of a CSV, in which no text is a formula of a spreadsheet."""
    text = io.StringIO()
    for row in rows:
        write_row(text, row)
    return text.getvalue()


class Log:
    """Writes one row per face: what was seen, where, when. A killed program loses no frame that was written.

    A `.csv` has a header. A `.jsonl` has an object per line with the same names, numbers as numbers, `unsure` and
    `tentative` as true or false. Columns: `time` (seconds since its video's first frame), `frame` (index in the
    video, from 0; of an image, its index among the files), `name` (file or camera), `track_id` (from 1; 0 while the
    track is tentative; empty for images), `box_left`, `box_top`, `box_width`, `box_height` (pixels), `label` (an
    emotion, or `unsure`), `probability` (of the label; of `unsure` the highest of all), `unsure` (1: that probability
    is below the abstention threshold, else 0), `tentative` (1: only one detection so far, possibly a false one; else
    0), and `p_<emotion>` for each emotion in class order. Probabilities of tracks are smoothed over time, but for
    `--raw`. In a `.csv`, text that a spreadsheet would run as a formula has an apostrophe in front.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, labels: Sequence[str]):
        self._is_json = file.suffix.lower() == ".jsonl"
        self._labels = labels
        self._rows = Rows(f"--log {file}", file)
        if not self._is_json:
            self._rows.write(csv_text([log_columns(labels)]))

    def write(self, result: Result) -> None:
        """Add a row for each face of a frame.

        Raises:
            InputError: the file cannot be written.
        """
        rows = [self._row(result.frame, recognition) for recognition in result.recognitions]
        if self._is_json:
            names = log_columns(self._labels)
            self._rows.write("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
        else:
            self._rows.write(
                csv_text([int(value) if isinstance(value, bool) else value for value in row] for row in rows)
            )

    def _row(self, frame: Frame, recognition: Recognition) -> list[Any]:
        face = recognition.face
        box = [round(float(value), 1) for value in (face.left, face.top, face.width, face.height)]
        by_label = [round(recognition.probabilities[label], 5) for label in self._labels]
        shown = [recognition.shown, round(recognition.probability, 5), recognition.unsure, recognition.tentative]
        track_id = 0 if recognition.tentative else recognition.track_id or None
        return [round(frame.time, 3), frame.index, frame.name, track_id, *box, *shown, *by_label]

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: what was left to write cannot be written.
        """
        self._rows.close()


def log_columns(labels: Sequence[str]) -> list[str]:
    """Return the names of a log's columns."""
    box = ["box_left", "box_top", "box_width", "box_height"]
    shown = ["label", "probability", "unsure", "tentative"]
    return ["time", "frame", "name", "track_id", *box, *shown, *(f"p_{label}" for label in labels)]


@contextmanager
def told(what: str) -> Iterator[None]:
    """Raise an `InputError` that names `what` where the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror}); make room or give another file") from error


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
