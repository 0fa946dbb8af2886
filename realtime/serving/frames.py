"""Open an uploaded video, and read any of its frames again."""

import sys
from bisect import bisect_left, bisect_right
from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError
from configuration import WEB
from realtime.sources import Video
from realtime.sources.frames import next_frame
from realtime.sources.video import open_video, timestamp

_STEPS_BACK = (0, 15, 150)  # frames: how much earlier a search begins, where a seek ended too late
_NEAR = 60  # frames: a frame so near is reached by reading on
_UNKNOWN = sys.maxsize  # index of the next frame after a failed seek
_MAX_SHIFT = 0.002  # seconds: two time stamps of one frame differ by less
# The first bytes of video files. FFmpeg also opens play lists, which name other files and addresses.
_SIGNATURES = {
    0: (b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"\x00\x00\x01\xba", b"GIF8", b"G@"),
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
    8: (b"AVI ",),
}


def open_upload(file: Path, name: str) -> Video:
    """Open an uploaded video.

    Args:
        file: The video.
        name: Its name on the visitor's machine.

    Raises:
        InputError: It is no video that OpenCV can read, or its frames are too large.
    """
    with file.open("rb") as stream:
        head = stream.read(12)
    if not any(head[place:].startswith(kinds) for place, kinds in _SIGNATURES.items()):
        raise InputError(f"{name} is no video of a known kind; accepted are MP4, MOV, MKV, WebM, AVI, MPEG, OGG")
    capture = cv2.VideoCapture(str(file))
    width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    capture.release()
    if width * height > WEB.pixels:
        raise InputError(f"{name} has frames of {width:.0f}x{height:.0f} pixels; accepted are {WEB.pixels:,} pixels")
    try:
        return open_video(file, False, name)
    except InputError:
        raise InputError(f"{name} is no video that can be read; it is empty or damaged, or another kind") from None


class FrameReader:
    """Read frames of a video again, in any order.

    A seek may end some frames off, as many files have no exact index. So the time stamp tells which frame was reached.

    Args:
        file: The video.
    """

    def __init__(self, file: Path):
        self._file = file
        self._rewind()

    def read(self, place: int, stamps: list[float]) -> np.ndarray | None:
        """Return a frame, uint8 BGR; None if it can no longer be read.

        Args:
            place: Index of the frame in the video.
            stamps: Time stamp of each frame, seconds; empty if they are not in order: then every frame before is read.
        """
        for back in _STEPS_BACK:
            is_near = self._next <= place and (not stamps or place < self._next + _NEAR)
            if is_near or self._seek(place - 1 - back, place, stamps):
                return self._read_to(place)
        self._rewind()
        return self._read_to(place)

    def _rewind(self) -> None:
        self._capture = cv2.VideoCapture(str(self._file))
        self._next = 0  # index of the frame that comes next

    def _seek(self, target: int, place: int, stamps: list[float]) -> bool:
        """Seek to about `target`, and return whether the place reached is known and not behind `place`."""
        if target <= 0 or not stamps:
            self._rewind()
            return True
        self._next = _UNKNOWN
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, target)
        if not self._capture.grab():
            return False
        now = timestamp(self._capture)
        after = bisect_left(stamps, now)
        nearest = min(stamps[max(after - 1, 0) : after + 1], key=lambda stamp: abs(stamp - now))
        reached = bisect_left(stamps, nearest)
        is_unique = bisect_right(stamps, nearest) == reached + 1
        if not is_unique or reached >= place or abs(nearest - now) >= _MAX_SHIFT:
            return False
        self._next = reached + 1
        return True

    def _read_to(self, place: int) -> np.ndarray | None:
        while self._next < place and self._capture.grab():
            self._next += 1
        if self._next != place:
            return None
        self._next += 1
        return next_frame(self._capture)[1]

    def close(self) -> None:
        """Close the file."""
        self._capture.release()
