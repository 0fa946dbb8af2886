"""A frame, and what all sources need to read one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import cv2
import numpy as np

FALLBACK_FPS = 25.0  # frames per second of a source without a plausible frame rate
POLL = 0.05  # seconds between two calls of `on_wait` while no frame comes


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        image_bgr: uint8, (height, width, 3), upright.
        index: Index in its video or camera, from 0; of an image, its index among the files of the source.
        time: Seconds since the first frame of its video or camera; of images, since the first image.
        name: File name, path below the source's folder, `camera 0`, or address of a stream.
        captured: `time.monotonic` when the frame was read, in seconds; used to measure latency.
        still: The frame is an image, which is not tracked.
        position: Place of its file in the source, from 1, and number of files.
        offset: Seconds of all files before this one. Added to `time`, it gives `elapsed`.
    """

    image_bgr: np.ndarray
    index: int
    time: float
    name: str
    captured: float = field(default_factory=monotonic, compare=False)
    still: bool = False
    position: tuple[int, int] = (1, 1)
    offset: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the first frame of the whole source."""
        return self.time + self.offset


def oriented(image_bgr: np.ndarray, mirror: bool) -> np.ndarray:
    """Return the image, flipped horizontally where `mirror` is set."""
    return cv2.flip(image_bgr, 1) if mirror else image_bgr


def next_frame(capture: cv2.VideoCapture) -> tuple[bool, np.ndarray | None]:
    """Return whether there is another frame, and its image unless it cannot be decoded."""
    if not capture.grab():
        return False, None
    decoded, image_bgr = capture.retrieve()
    return True, image_bgr if decoded else None


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Return the frames per second of a capture."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else FALLBACK_FPS  # cameras report 0, streams 90000


def open_capture(open_: Callable[[], cv2.VideoCapture]) -> tuple[cv2.VideoCapture, np.ndarray] | None:
    """Return an opened capture and its first image, or None where either fails."""
    try:
        capture = open_()
        image_bgr = next_frame(capture)[1]
    except Exception:  # drivers raise exceptions of all kinds
        return None
    return None if image_bgr is None else (capture, image_bgr)
