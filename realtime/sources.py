"""Where frames come from: a camera, a video file, an image, a folder of images, or a stream address.

Frames come out upright (EXIF, and the rotation that a video's header tells, which OpenCV applies), mirrored where that
was asked for, and BGR. Files give every frame; live sources the newest one, so that a slow reader does not fall behind.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np

from configuration import WEBCAM
from preprocessing.errors import InputError
from preprocessing.faces import read_image_rgb
from preprocessing.quiet import silence_opencv

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_RETRY = 0.5  # seconds between two tries to open a source that was lost
_LEAVE = 1.0  # seconds: a reader that is told to end is waited for no longer
_LONGEST_STEP = 60.0  # seconds between two frames of a file: a greater one is a fault of its time stamps
_ACCEPTED = "accepted are a camera number, a video, an image, a folder of images, or an rtsp:// or http:// address"


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_bgr: uint8, (height, width, 3), upright.
        index: Its place in the source, from 0.
        time: Seconds since the source's first frame.
        name: What it was taken from: a file's name, `camera 0`, or a stream's address.
        captured: Seconds of `time.monotonic` when it was read, to tell how late its result is.
    """

    image_bgr: np.ndarray
    index: int
    time: float
    name: str
    captured: float = field(default_factory=monotonic, compare=False)


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

    def __init__(self, files: list[Path], name: str, fps: float = WEBCAM.fallback_fps, mirror: bool = False):
        self.name, self.fps, self.count, self.trouble = name, fps, len(files), ""
        self._files, self._mirror = files, mirror
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
                yield Frame(_oriented(image_bgr, self._mirror), index, index / self.fps, file.name)
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


def _oriented(image_bgr: np.ndarray, mirror: bool) -> np.ndarray:
    return cv2.flip(image_bgr, 1) if mirror else image_bgr


class Video:
    """A video file, every frame of it; the next one is decoded while one is worked on. Attributes as of `Pictures`.

    A frame's time is the one that the file tells of it, since phones and browsers write videos of a changing rate.
    Where that does not go on (raw streams have none, joined ones begin anew), the next frame comes at the frame rate.
    """

    still = live = False

    def __init__(self, capture: cv2.VideoCapture, name: str, first_bgr: np.ndarray, mirror: bool = False):
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.name, self.trouble, self.fps = name, "", _fps(capture)
        self.count = int(count) if count > 0 else None
        self.size = (first_bgr.shape[1], first_bgr.shape[0])
        self._capture, self._first_bgr, self._mirror = capture, first_bgr, mirror
        self._stamp, self._time = (
            _stamp(capture),
            0.0,
        )  # seconds: of the frame read last, in the file and since the first
        self._reader = ThreadPoolExecutor(1)

    def __iter__(self) -> Iterator[Frame]:
        ahead = self._reader.submit(lambda: (True, _oriented(self._first_bgr, self._mirror), 0.0, monotonic()))
        index = damaged = 0
        while True:
            more, image_bgr, time, captured = ahead.result()
            if not more:
                break
            ahead = self._reader.submit(self._read)
            if image_bgr is None:
                damaged += 1
            else:
                yield Frame(image_bgr, index, time, self.name, captured)
            index += 1
        if self.count and index < 0.9 * self.count - 1:  # containers promise a few frames more than they hold
            self.trouble = f"{self.name} ended after {index} of {self.count} frames; the file seems damaged"
        elif damaged:
            self.trouble = f"{damaged} of {index} frames of {self.name} could not be decoded; the file seems damaged"

    def _read(self) -> tuple[bool, np.ndarray | None, float, float]:
        """Return whether there is another frame, its picture unless that is damaged, its time, and when it was read."""
        more, image_bgr = _next_frame(self._capture)
        stamp = _stamp(self._capture)
        step = stamp - self._stamp
        self._stamp, self._time = stamp, self._time + (step if 0 < step <= _LONGEST_STEP else 1 / self.fps)
        return more, None if image_bgr is None else _oriented(image_bgr, self._mirror), self._time, monotonic()

    def close(self) -> None:
        """Close the file, once what is being read of it is read."""
        self._reader.shutdown()
        self._capture.release()


class Live:
    """A camera or a stream: a thread reads it, and whoever asks gets the newest frame. Attributes as of `Pictures`.

    A frame's `index` counts those that nobody took, too. A source that disappears is opened again and again for a
    while; that, its return, and a source that stalls are told of on standard error.

    Args:
        open_capture: Opens the source; called again after it was lost.
        capture: What it returned first.
        name: What a person calls it.
        first_bgr: The frame that was read already.
        mirror: Give frames as a mirror shows them.
        wait: Seconds after which a source that was lost is given up.
        stall: Seconds without a frame after which that is told.
    """

    still, live, count = False, True, None

    def __init__(
        self,
        open_capture: Callable[[], cv2.VideoCapture],
        capture: cv2.VideoCapture,
        name: str,
        first_bgr: np.ndarray,
        mirror: bool = False,
        wait: float = WEBCAM.wait,
        stall: float = WEBCAM.stall,
    ):
        self.name, self.trouble, self.fps = name, "", _fps(capture)
        self.size = (first_bgr.shape[1], first_bgr.shape[0])
        self._open, self._mirror, self._wait, self._stall = open_capture, mirror, wait, stall
        self._start = monotonic()
        self._newest: Frame | None = Frame(_oriented(first_bgr, mirror), 0, 0.0, name, self._start)
        self._read_count = 1
        self._changed = threading.Condition()  # guards `_newest` and `_ended`
        self._ended = self._lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_on, args=(capture,), daemon=True, name=f"reader of {name}")
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                stalled = not self._changed.wait_for(self._has_news, self._stall)
            if stalled and not self._lost:
                print(f"{self.name} stalls: no frame for {self._stall:g} seconds; still waiting", file=sys.stderr)
            with self._changed:
                self._changed.wait_for(self._has_news)
                frame, self._newest = self._newest, None
            if frame is None:
                return
            yield frame

    def _has_news(self) -> bool:
        return self._newest is not None or self._ended

    def _read_on(self, capture: cv2.VideoCapture | None) -> None:
        """Read to the end, in the thread that alone touches the capture."""
        while capture and not self._stopped.is_set():
            more, image_bgr = _next_frame(capture)
            if not more:
                capture.release()
                capture = self._reopened()
            elif image_bgr is not None:  # else it came damaged
                self._publish(image_bgr)
        if capture:
            capture.release()
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _publish(self, image_bgr: np.ndarray) -> None:
        now = monotonic()
        frame = Frame(_oriented(image_bgr, self._mirror), self._read_count, now - self._start, self.name, now)
        self._read_count += 1
        with self._changed:
            self._newest = frame
            self._changed.notify()

    def _reopened(self) -> cv2.VideoCapture | None:
        """Return the source again once it is back, or None: it is given up, or nobody waits for it any more."""
        self._lost, lost_at = True, monotonic()
        if self._wait > 0 and not self._stopped.is_set():
            print(f"{self.name} is lost; waiting {self._wait:g} seconds for it to come back", file=sys.stderr)
        while not self._stopped.wait(min(_RETRY, self._wait)) and monotonic() - lost_at < self._wait:
            capture = self._open()
            more, image_bgr = _next_frame(capture)
            if more and image_bgr is not None:
                print(f"{self.name} is back", file=sys.stderr)
                self._lost = False
                self._publish(image_bgr)
                return capture
            capture.release()
        self.trouble = f"{self.name} gives no more frames (unplugged, or the connection is lost)"
        return None

    def close(self) -> None:
        """Let the thread free the camera or the connection; one that hangs in the driver is not waited for long."""
        self._stopped.set()
        self._thread.join(_LEAVE)


def _stamp(capture: cv2.VideoCapture) -> float:
    """Return the time, in seconds, that a file tells of the frame that was read last."""
    return capture.get(cv2.CAP_PROP_POS_MSEC) / 1000


def _fps(capture: cv2.VideoCapture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else WEBCAM.fallback_fps  # cameras tell 0, streams 90000


Source = Pictures | Video | Live


def open_source(source: str, mirror: bool | None = None) -> Source:
    """Open what a person named as the source and make sure that it gives a frame.

    Args:
        source: A camera number or `/dev/videoN`, a video or image file, a folder of images (taken in name order), or
            the address of a stream.
        mirror: Give frames as a mirror shows them; None: those of cameras alone.

    Raises:
        InputError: there is no such thing, or it gives no frame.
    """
    silence_opencv()
    if camera := re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source):
        return _open_camera(int(camera[1]), mirror is not False)
    if "://" in source:
        return _open_stream(source, bool(mirror))
    path = Path(source)
    if source and path.is_dir():  # an empty name, such as of an unset variable, would be the current folder
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        return Pictures(files, str(path), mirror=bool(mirror))
    if not path.is_file():
        raise InputError(f"--source {source or repr(source)} does not exist; {_ACCEPTED}")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return Pictures([path], str(path), mirror=bool(mirror))
    return _open_video(path, bool(mirror))


def _open_camera(number: int, mirror: bool) -> Live:
    def open_capture() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(number)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one that waited in the driver
        return capture

    capture = open_capture()
    _, first_bgr = _next_frame(capture)
    if first_bgr is None:
        remedy = "or give --source another number, a video, an image, a folder or a stream address"
        raise InputError(f"camera {number} gives no picture{_why_no_picture(number)}, {remedy}")
    return Live(open_capture, capture, f"camera {number}", first_bgr, mirror)


def camera_node(number: int) -> Path:
    """Return what Linux calls a camera."""
    return Path(f"/dev/video{number}")


def camera_numbers() -> list[int]:
    """Return the numbers under which there may be cameras."""
    if sys.platform.startswith("linux"):
        found = (re.fullmatch(r"video(\d+)", node.name) for node in Path("/dev").glob("video*"))
        return sorted(int(match[1]) for match in found if match)
    return list(range(4))  # elsewhere the system keeps no list that we could read


def _why_no_picture(number: int) -> str:
    """Return how far the system can tell why a camera gives no picture, and the remedy."""
    node = camera_node(number)
    if not sys.platform.startswith("linux"):
        return "; plug one in, close other programs that use it, allow this program to use the camera"
    if not node.exists():
        others = ", ".join(map(str, camera_numbers()))
        return f": there is no {node}{f', but there are the numbers {others}' if others else ''}; plug one in"
    if not os.access(node, os.R_OK | os.W_OK):
        return f": this user may not read {node}; sudo usermod -aG video $USER and log in again"
    return (
        f" although there is a {node}: another program may hold it (fuser -v {node} names it) or it is a camera's "
        "second number, without pictures (--doctor lists those with); close that program"
    )


def _open_stream(address: str, mirror: bool) -> Video | Live:
    milliseconds: list[Any] = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]

    def open_capture() -> cv2.VideoCapture:
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, milliseconds)

    capture = open_capture()
    name = re.sub(r"//[^/@]*@", "//", address)  # no password in messages and logs
    _, first_bgr = _next_frame(capture)
    if first_bgr is None:
        raise InputError(f"--source {name} gives no picture; check the address and the connection")
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:  # a file that a server keeps
        return Video(capture, name, first_bgr, mirror)
    return Live(open_capture, capture, name, first_bgr, mirror)


def _open_video(file: Path, mirror: bool) -> Video:
    capture = cv2.VideoCapture(str(file))
    is_text = int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"ansi")  # FFmpeg plays text files
    first_bgr = None if is_text else _next_frame(capture)[1]
    if first_bgr is None:
        raise InputError(f"--source {file} is no video that OpenCV can read (empty, damaged or another kind of file)")
    return Video(capture, file.name, first_bgr, mirror)


def _next_frame(capture: cv2.VideoCapture) -> tuple[bool, np.ndarray | None]:
    """Return whether there is another frame, and its picture unless that cannot be decoded."""
    if not capture.grab():
        return False, None
    decoded, image_bgr = capture.retrieve()
    return True, image_bgr if decoded else None
