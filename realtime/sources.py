"""Where frames come from: a camera, a video file, an image, a folder of images, or a stream address."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configuration import WEBCAM
from preprocessing.errors import InputError
from preprocessing.faces import read_image_rgb

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ACCEPTED = "accepted are a camera number, a video, an image, a folder of images, or an rtsp:// or http:// address"


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_bgr: uint8, (height, width, 3), upright.
        index: Its place in the source, from 0.
        time: Seconds since the source's first frame.
        name: What it was taken from: a file's name, `camera 0`, or a stream's address.
    """

    image_bgr: np.ndarray
    index: int
    time: float
    name: str


class Pictures:
    """Image files, one frame each, in the order given. Files that cannot be read are skipped and told of.

    Attributes:
        name: What a person calls this source.
        fps: Frames per second, for those who make a video of it.
        count: Number of frames at most.
        size: Width and height of the first frame, pixels.
        live: False: these files wait for whoever reads them.
        still: True: each frame is to be looked at, not played.
        trouble: After the last frame, one line where not all went well; else empty.
    """

    live = False
    still = True

    def __init__(self, files: list[Path], name: str, fps: float = WEBCAM.fallback_fps):
        self.name, self.fps, self.count, self.trouble = name, fps, len(files), ""
        self._files = files
        first_bgr = next((image_bgr for file in files if (image_bgr := _read_bgr(file)) is not None), None)
        if first_bgr is None:
            raise InputError(f"--source {name} holds no readable picture; {_ACCEPTED}")
        self.size = (first_bgr.shape[1], first_bgr.shape[0])

    def __iter__(self) -> Iterator[Frame]:
        skipped = []
        for index, file in enumerate(self._files):
            image_bgr = _read_bgr(file)
            if image_bgr is None:
                skipped.append(file.name)
            else:
                yield Frame(image_bgr, index, index / self.fps, file.name)
        if skipped:
            self.trouble = f"{len(skipped)} of {self.count} pictures could not be read: {', '.join(skipped[:5])}"

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _read_bgr(file: Path) -> np.ndarray | None:
    """Return an image file's pixels, upright, or None where it cannot be decoded."""
    try:
        return cv2.cvtColor(read_image_rgb(file), cv2.COLOR_RGB2BGR)
    except InputError:
        return None


class Video:
    """A video file, a camera or a stream: all that `cv2.VideoCapture` reads. Attributes as those of `Pictures`."""

    still = False

    def __init__(self, capture: cv2.VideoCapture, name: str, live: bool, first_bgr: np.ndarray):
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.name, self.live, self.trouble = name, live, ""
        self.fps = fps if 1 <= fps <= 240 else WEBCAM.fallback_fps  # cameras tell 0, streams 90000
        self.count = int(count) if count > 0 and not live else None
        self.size = (first_bgr.shape[1], first_bgr.shape[0])
        self._capture, self._first_bgr = capture, first_bgr

    def __iter__(self) -> Iterator[Frame]:
        image_bgr, index, start = self._first_bgr, 0, time.monotonic()
        while image_bgr is not None:
            seconds = time.monotonic() - start if self.live else index / self.fps
            yield Frame(image_bgr, index, seconds, self.name)
            image_bgr, index = _next_frame(self._capture), index + 1
        if self.live:
            self.trouble = f"{self.name} gives no more frames (unplugged, or the connection is lost)"
        elif self.count and index < 0.9 * self.count - 1:  # containers promise a few frames more than they hold
            self.trouble = f"{self.name} ended after {index} of {self.count} frames; the file seems damaged"

    def close(self) -> None:
        """Free the camera, the connection or the file."""
        self._capture.release()


Source = Pictures | Video


def open_source(source: str) -> Source:
    """Open what a person named as the source and make sure that it gives a frame.

    Args:
        source: A camera number or `/dev/videoN`, a video or image file, a folder of images (taken in name order), or
            the address of a stream.

    Raises:
        InputError: there is no such thing, or it gives no frame.
    """
    if camera := re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source):
        return _open_camera(int(camera[1]))
    if "://" in source:
        return _open_stream(source)
    path = Path(source)
    if source and path.is_dir():  # an empty name, such as of an unset variable, would be the current folder
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        return Pictures(files, str(path))
    if not path.is_file():
        raise InputError(f"--source {source or repr(source)} does not exist; {_ACCEPTED}")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return Pictures([path], str(path))
    return _open_video(path)


def _open_camera(number: int) -> Video:
    capture = cv2.VideoCapture(number)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one that waited in the driver
    first_bgr = _next_frame(capture)
    if first_bgr is None:
        raise InputError(
            f"camera {number} gives no picture; plug one in, close other programs that use it, allow this program "
            "to use the camera, or give --source another number, a video, an image, a folder or a stream address"
        )
    return Video(capture, f"camera {number}", live=True, first_bgr=first_bgr)


def _open_stream(address: str) -> Video:
    milliseconds: list[Any] = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, milliseconds)
    name = re.sub(r"//[^/@]*@", "//", address)  # no password in messages and logs
    first_bgr = _next_frame(capture)
    if first_bgr is None:
        raise InputError(f"--source {name} gives no picture; check the address and the connection")
    return Video(capture, name, live=capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0, first_bgr=first_bgr)


def _open_video(file: Path) -> Video:
    capture = cv2.VideoCapture(str(file))
    is_text = int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"ansi")  # FFmpeg plays text files
    first_bgr = None if is_text else _next_frame(capture)
    if first_bgr is None:
        raise InputError(f"--source {file} is no video that OpenCV can read (empty, damaged or another kind of file)")
    return Video(capture, file.name, live=False, first_bgr=first_bgr)


def _next_frame(capture: cv2.VideoCapture) -> np.ndarray | None:
    grabbed, image_bgr = capture.read()
    return image_bgr if grabbed else None
