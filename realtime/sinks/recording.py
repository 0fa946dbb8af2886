"""Recordings of drawn frames: a video, a small animation, or one picture."""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import InputError
from common.files import atomic_file, check_utf8
from realtime.sinks.files import write_errors, write_picture
from realtime.sinks.options import ANIMATION_SUFFIXES, PICTURE_SUFFIXES

RESERVE = 16 << 20  # bytes that a video leaves free on the disk for its index, the log and the summary
ANIMATION_WIDTH = 400  # pixels, at most
ANIMATION_FPS = 8.0  # frames per second, at most
ANIMATION_SECONDS = 30.0  # at most: an animation stays in memory until it ends
_WEBP_QUALITY = 60  # 1-100
_TICK = Fraction(1, 30_000)  # seconds: unit of the time stamps of a video
_KEYFRAME = 1.0  # seconds between two keyframes, at most
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof+hybrid_fragmented", "frag_duration": "200000"}
_CONTAINER_OPTIONS = {  # hand encoded frames to the operating system within 0.2 s, so that a kill loses little
    ".mp4": _FRAGMENTS,  # microseconds
    ".mov": _FRAGMENTS,
    ".mkv": {"cluster_time_limit": "200"},  # milliseconds
    ".avi": {},
}


def open_recording(file: Path, size: tuple[int, int], fps: float) -> "Recording":
    """Return a recording of the kind that the file's suffix names.

    Raises:
        InputError: the file cannot be written.
    """
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return PictureRecording(file)
    if file.suffix.lower() in ANIMATION_SUFFIXES:
        return AnimationRecording(file)
    return VideoRecording(file, size, fps)


class VideoRecording:
    """Write a video whose frames keep their own times, so that it plays at the true speed.

    The frame rate is variable. An `.avi` has a constant frame rate, so its frames are repeated or left out. Time starts
    with the first frame. Frames of another size are fitted into the size of the first one, with black borders.

    The codec is H.264. An `.mp4` or `.mov` is fragmented while it is written and becomes a plain file when it is
    closed. A killed program leaves a playable video that lacks at most its last second.

    Args:
        file: Video to write; an existing one is replaced.
        size: Width and height, pixels; an odd side is padded by one row or column.
        fps: Frames per second: rate of an `.avi`, and duration of the last frame.

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
        suffix = file.suffix.lower()
        self._tick = 1 / rate if suffix == ".avi" else _TICK
        self._frame_ticks = max(1, round(1 / rate / self._tick))
        try:
            # The path is absolute because FFmpeg reads a protocol before a colon.
            container = _CONTAINER_OPTIONS[suffix] | {"flush_packets": "1"}
            self._container = av.open(str(file.absolute()), "w", options=container)
            options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.width, self._stream.height = (side + side % 2 for side in size)
            self._stream.pix_fmt = "yuv420p"
            codec = self._stream.codec_context
            codec.time_base = self._tick
            codec.colorspace, codec.color_range = Colorspace.SMPTE170M, ColorRange.MPEG  # OpenCV converts to BT.601
            self._container.start_encoding()
        except self._errors as error:
            raise InputError(
                f"--record {file} cannot be written as a video of {size[0]}x{size[1]} pixels ({error.strerror}); "
                "give another file, or another source"
            ) from error

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Add a frame that is shown from `time` on, in seconds. A frame that is not later than the last one is skipped.

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
            raise self._failed(f"cannot be written ({error.strerror})") from error

    def _check_space(self) -> None:
        if shutil.disk_usage(self._file.parent).free < RESERVE:
            raise self._failed(f"has less than {RESERVE >> 20} MB free on its disk")

    def _failed(self, reason: str) -> InputError:
        return InputError(
            f"--record {self._file} {reason}; the part recorded so far is kept, make room or give another file"
        )

    def close(self) -> None:
        """Finish the file.

        Raises:
            InputError: it cannot be finished; the part written so far is playable.
        """
        try:
            self._encode(None)  # flushes the encoder
        finally:
            try:
                self._container.close()
            except self._errors as error:
                raise self._failed(f"cannot be written ({error.strerror})") from error


def _import_av() -> Any:
    """Return PyAV. Import it late, because few runs record, and after OpenCV, whose windows freeze otherwise.

    Raises:
        InputError: it is not installed, or does not fit this machine.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"--record needs PyAV ({error}): python -m pip install -r requirements.txt") from error
    return av


class AnimationRecording:
    """Write a small animation, `.webp` or `.gif`, of the first `ANIMATION_SECONDS`. The file is written on `close`.

    Raises:
        InputError: The file's name is not UTF-8.
    """

    def __init__(self, file: Path):
        check_utf8(f"--record {file}", "give another one")
        self._file = file
        self._frames_bgr: list[np.ndarray] = []
        self._times: list[float] = []

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Add a frame, unless it follows the last one by less than the frame interval.

        Raises:
            InputError: the animation has reached its maximum length.
        """
        if self._times and time - self._times[0] > ANIMATION_SECONDS:
            raise InputError(
                f"--record {self._file} ends after {ANIMATION_SECONDS:.0f} seconds, the longest animation; "
                "the part recorded so far is kept, give an .mp4 to record more"
            )
        if self._times and time < self._times[-1] + 0.999 / ANIMATION_FPS:
            return
        height, width = (self._frames_bgr or [drawn_bgr])[0].shape[:2]
        scale = min(1.0, ANIMATION_WIDTH / width)
        small_bgr = letterbox(drawn_bgr, (max(1, round(width * scale)), max(1, round(height * scale))))
        self._frames_bgr.append(small_bgr.copy())
        self._times.append(time)

    def close(self) -> None:
        """Write the file.

        Raises:
            InputError: it cannot be written.
        """
        if not self._frames_bgr:
            return
        animation = cv2.Animation()
        animation.frames = self._frames_bgr
        animation.durations = [round(1000 * seconds) for seconds in (*np.diff(self._times), 1 / ANIMATION_FPS)]
        options = [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY] if self._file.suffix.lower() == ".webp" else []
        with write_errors(f"--record {self._file}"), atomic_file(self._file) as temporary:
            try:
                is_written = cv2.imwriteanimation(str(temporary), animation, options)
            except cv2.error:  # OpenCV 4.11 writes no .gif
                is_written = False
            if not is_written:
                raise InputError(f"--record {self._file} cannot be written; give an .mp4, or make room on the disk")


class PictureRecording:
    """Write the only frame of an image source."""

    def __init__(self, file: Path):
        self._file = file

    def write(self, time: float, drawn_bgr: np.ndarray) -> None:
        """Write the picture.

        Raises:
            InputError: the file cannot be written.
        """
        write_picture(self._file, drawn_bgr)

    def close(self) -> None:
        """Do nothing; `write` has written the picture."""


Recording = VideoRecording | AnimationRecording | PictureRecording


def letterbox(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image scaled to fit into (width, height) pixels, centred, with black borders."""
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
