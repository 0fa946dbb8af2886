"""Video files."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import monotonic

import cv2
import numpy as np

from common.errors import InputError
from common.files import check_utf8
from realtime.sources.frames import POLL, Frame, frame_rate, next_frame, open_capture, oriented

_MAX_STEP = 60.0  # seconds between two frames; a larger step is an error in the time stamps

_Read = tuple[np.ndarray | None, float, float]  # image (None: damaged), seconds in the video, seconds when it was read


class Video:
    """A video file, every frame of it; the next frame is decoded in the background.

    Frame times are the file's own, since phones and browsers record at a variable rate. Where these do not increase
    (raw streams, joined files), frames follow each other at the frame rate.

    Attributes:
        stamps: Time stamp of each frame read so far, seconds, as in the file.
        is_ordered: Whether no time stamp is smaller than the one before.
        on_wait: See `Live`; a video on a server may be slow.
    """

    still = live = False
    on_wait: Callable[[bool], bool] | None = None

    def __init__(self, capture: cv2.VideoCapture, name: str, first_bgr: np.ndarray, mirror: bool = False):
        count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        self.name, self.warning, self.fps = name, "", frame_rate(capture)
        self.count = int(count) if count > 0 else None
        self._duration = count / rate if rate > 0 else np.inf  # seconds
        self.size = (first_bgr.shape[1], first_bgr.shape[0])
        self._capture, self._first_bgr, self._mirror = capture, first_bgr, mirror
        self._time = 0.0  # of the last frame, since the first one
        self.stamps, self.is_ordered = [timestamp(capture)], True
        self._reader = ThreadPoolExecutor(1)

    def __iter__(self) -> Iterator[Frame]:
        ahead: Future[_Read | None] = self._reader.submit(
            lambda: (oriented(self._first_bgr, self._mirror), 0.0, monotonic())
        )
        index = damaged = 0
        time = 0.0
        while self._is_ready(ahead):
            read = ahead.result()
            if read is None:
                self._set_warning(index, damaged, time)
                return
            ahead = self._reader.submit(self._read)
            image_bgr, time, captured = read
            if image_bgr is None:
                damaged += 1
            else:
                yield Frame(image_bgr, index, time, self.name, captured)
            index += 1

    def _is_ready(self, ahead: Future[_Read | None]) -> bool:
        """Wait for a frame and return True, or return False where `on_wait` stops the run."""
        while not wait([ahead], POLL).done:
            if self.on_wait and not self.on_wait(False):
                return False
        return True

    def _set_warning(self, count: int, damaged: int, time: float) -> None:
        # Containers announce a few frames more than they hold. For MKV and AVI, OpenCV computes the number from the
        # duration and the frame rate. If this rate is variable, they hold far fewer, but end at the announced time. So
        # do damaged files whose end is intact.
        if self.count and count < 0.9 * self.count - 1 and time < 0.9 * self._duration * (1 - 1 / self.count):
            self.warning = f"{self.name} ended after {count} of {self.count} frames; the file seems damaged"
        elif damaged:
            self.warning = f"{damaged} of {count} frames of {self.name} could not be decoded; the file seems damaged"

    def _read(self) -> _Read | None:
        more, image_bgr = next_frame(self._capture)
        if not more:
            return None
        stamp = timestamp(self._capture)
        step = stamp - self.stamps[-1]
        self.stamps.append(stamp)
        self.is_ordered &= step >= 0
        self._time += step if 0 < step <= _MAX_STEP else 1 / self.fps
        return None if image_bgr is None else oriented(image_bgr, self._mirror), self._time, monotonic()

    def close(self) -> None:
        """Close the file."""
        self._reader.shutdown()
        self._capture.release()


def open_video(file: Path, mirror: bool, name: str = "") -> Video:
    """Open a video file.

    Raises:
        InputError: it has no readable frame.
    """
    place = str(file.absolute())
    check_utf8(place, "rename it")
    opened = open_capture(lambda: cv2.VideoCapture(place))  # FFmpeg reads "a:b.mp4" as a protocol
    # FFmpeg reads text files as videos.
    if opened is None or int(opened[0].get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"ansi"):
        raise InputError(f"{file} is no video that OpenCV can read (empty, damaged or another kind of file)")
    return Video(opened[0], name or file.name, opened[1], mirror)


def timestamp(capture: cv2.VideoCapture) -> float:
    """Return the time stamp of the last frame, in seconds."""
    return capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
