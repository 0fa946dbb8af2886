"""Where frames come from: a camera, a video file, an image, a folder of images and videos, or a stream address.

Frames come out upright (EXIF, and the rotation that a video's header tells, which OpenCV applies), mirrored where that
was asked for, and BGR. Files give every frame; live sources the newest one, so that a slow reader does not fall behind.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar, cast

import cv2
import numpy as np

from common.errors import InputError
from common.logging import silence_opencv
from common.urls import redacted
from configuration import WEBCAM
from inference.crops import read_image_rgb

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What a folder is searched for. A file that is named itself may have any suffix.
VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_POLL = 0.05  # seconds between two looks at what else is to be done while no frame comes
_RETRY = 0.5  # seconds between two tries to open a source that was lost
_LEAVE = 1.0  # seconds: a reader that is told to end is waited for no longer
_LONGEST_STEP = 60.0  # seconds between two frames of a file: a greater one is a fault of its time stamps
_ACCEPTED = (
    "accepted are a camera number, a video, an image, a folder of images or videos, or an rtsp:// or http:// address"
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_bgr: uint8, (height, width, 3), upright.
        index: Its place in its video or camera, from 0; of a picture, its place among the files of the source.
        time: Seconds since the first frame of its video or camera; of pictures, since the first picture.
        name: What it was taken from: a file's name, its path below the source's folder, `camera 0`, or a stream's
            address.
        captured: Seconds of `time.monotonic` when it was read, to tell how late its result is.
        still: It is a picture, which has no past and no track.
        position: Which file of the source it comes from, from 1, and how many files there are.
        offset: Seconds by which the files before it delay it: `elapsed` goes on where `time` begins anew.
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


class Pictures:
    """Files, one after the other: a picture is one frame, a video gives every frame it has.

    A file that cannot be read is skipped, and one line on standard error names it.

    Args:
        files: The files, in the order in which they are taken.
        name: What a person calls this source.
        fps: Frames per second of the pictures; that of the first video counts instead, where there is one.
        mirror: Give frames as a mirror shows them.
        root: Folder below which a frame's name is a path; None: names are those of the files.

    Attributes:
        name: What a person calls this source.
        fps: Frames per second, for those who make a video of it.
        count: Number of frames at most; None where there are videos.
        size: Width and height of the first frame, pixels.
        live: False: these files wait for whoever reads them.
        still: True: there are pictures alone, and each is to be looked at, not played.
        has_pictures: There is at least one picture.
        warning: After the last frame, one line where not all went well; else empty.

    Raises:
        InputError: no file can be read.
    """

    live = False

    def __init__(
        self,
        files: list[Path],
        name: str,
        fps: float = WEBCAM.fallback_fps,
        mirror: bool = False,
        root: Path | None = None,
    ):
        self._files, self._mirror, self._root = files, mirror, root
        self._video: Video | None = None
        self.name, self.fps, self.warning = name, fps, ""
        self.still = all(map(_is_picture, files))
        self.has_pictures = any(map(_is_picture, files))
        self.count = len(files) if self.still else None
        self.size = (0, 0)
        self._look_ahead()
        if not any(self.size):
            tried = f" ({len(files)} files were tried)" if len(files) > 1 else ""
            raise InputError(f"--source {name} holds no readable picture or video{tried}; {_ACCEPTED}")

    def _look_ahead(self) -> None:
        """Take the size of the first file that can be read, and the frame rate of the first such video."""
        is_rate_known = self.still
        for file in self._files:
            with suppress(InputError):
                if not _is_picture(file) and not is_rate_known:
                    with closing(_open_video(file, False)) as video:
                        self.fps, is_rate_known = video.fps, True
                        self.size = self.size if any(self.size) else video.size
                elif not any(self.size):
                    height, width = read_image_rgb(file).shape[:2]
                    self.size = (width, height)
            if any(self.size) and is_rate_known:
                return

    def __iter__(self) -> Iterator[Frame]:
        elapsed, skipped = 0.0, list[str]()
        for place, file in enumerate(self._files):
            name = file.relative_to(self._root).as_posix() if self._root else file.name
            position = (place + 1, len(self._files))
            try:
                if _is_picture(file):
                    image_bgr, time = self._picture(file), place / self.fps
                    elapsed = max(elapsed, time)
                    yield Frame(image_bgr, place, time, name, still=True, position=position, offset=elapsed - time)
                    elapsed += 1 / self.fps
                    continue
                self._video = _open_video(file, self._mirror, name)
            except InputError as error:
                print("skipped:", *str(error).split(), file=sys.stderr)
                skipped.append(name)
                continue
            with closing(self._video) as video:
                last = 0.0
                for frame in video:
                    yield replace(frame, position=position, offset=elapsed)
                    last = frame.time
            elapsed += last + 1 / video.fps
            if video.warning:
                print(video.warning, file=sys.stderr)
        if skipped:
            kind = "pictures" if self.still else "files"
            shown = ", ".join(skipped[:5])
            self.warning = f"{len(skipped)} of {len(self._files)} {kind} could not be read: {shown}"

    def picture(self, number: int) -> np.ndarray:
        """Return a picture once more.

        Args:
            number: Which file it is, from 1, as in `Frame.position`.

        Returns:
            uint8 BGR, (height, width, 3), upright.

        Raises:
            InputError: it can no longer be read.
        """
        return self._picture(self._files[number - 1])

    def _picture(self, file: Path) -> np.ndarray:
        return _oriented(cv2.cvtColor(read_image_rgb(file), cv2.COLOR_RGB2BGR), self._mirror)

    def close(self) -> None:
        """Close the video that is being read."""
        if self._video:
            self._video.close()


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_SUFFIXES


def _oriented(image_bgr: np.ndarray, mirror: bool) -> np.ndarray:
    return cv2.flip(image_bgr, 1) if mirror else image_bgr


class Video:
    """A video file, every frame of it; the next one is decoded while one is worked on. Attributes as of `Pictures`.

    A frame's time is the one that the file tells of it, since phones and browsers write videos of a changing rate.
    Where that does not go on (raw streams have none, joined ones begin anew), the next frame comes at the frame rate.

    Attributes:
        on_wait: As of `Live`; a server may keep the file.
    """

    still = live = False
    on_wait: Callable[[bool], bool] | None = None

    def __init__(self, capture: cv2.VideoCapture, name: str, first_bgr: np.ndarray, mirror: bool = False):
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.name, self.warning, self.fps = name, "", _fps(capture)
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
            while True:
                try:
                    more, image_bgr, time, captured = ahead.result(_POLL)
                    break
                except TimeoutError:
                    if self.on_wait and not self.on_wait(False):
                        return
            if not more:
                break
            ahead = self._reader.submit(self._read)
            if image_bgr is None:
                damaged += 1
            else:
                yield Frame(image_bgr, index, time, self.name, captured)
            index += 1
        if self.count and index < 0.9 * self.count - 1:  # containers promise a few frames more than they hold
            self.warning = f"{self.name} ended after {index} of {self.count} frames; the file seems damaged"
        elif damaged:
            self.warning = f"{damaged} of {index} frames of {self.name} could not be decoded; the file seems damaged"

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

    A frame's `index` counts those that nobody took, too. A source that disappears, or whose driver raises an exception,
    is opened again and again for a while; that, its return, and a source that stalls are told of on standard error.

    Args:
        open_capture: Opens the source; called again after it was lost.
        capture: What it returned first.
        name: What a person calls it.
        first_bgr: The frame that was read already.
        mirror: Give frames as a mirror shows them.
        wait: Seconds after which a source that was lost is given up.
        stall: Seconds without a frame after which that is told.

    Attributes:
        on_wait: Called every `_POLL` seconds while no frame comes, in the thread that waits for one. It is given
            whether the source is lost or stalls, and returns whether to go on.
    """

    still, live, count = False, True, None
    on_wait: Callable[[bool], bool] | None = None

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
        self.name, self.warning, self.fps = name, "", _fps(capture)
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
        asked, is_stalled = monotonic(), False
        while True:
            with self._changed:
                has_news = self._changed.wait_for(self._has_news, _POLL)
                frame, self._newest = self._newest, None
            if frame:
                yield frame
                asked, is_stalled = monotonic(), False
            elif has_news:  # it has ended
                return
            else:
                if not (is_stalled or self._lost) and monotonic() - asked >= self._stall:
                    is_stalled = True
                    print(f"{self.name} stalls: no frame for {self._stall:g} seconds; still waiting", file=sys.stderr)
                if self.on_wait and not self.on_wait(is_stalled or self._lost):
                    return

    def _has_news(self) -> bool:
        return self._newest is not None or self._ended

    def _read_on(self, capture: cv2.VideoCapture | None) -> None:
        """Read to the end, in the thread that alone touches the capture."""
        try:
            while capture and not self._stopped.is_set():
                more, reason = True, ""
                try:
                    more, image_bgr = _next_frame(capture)
                    if image_bgr is not None:  # else it came damaged, or there is none
                        self._publish(image_bgr)
                except Exception as error:  # whatever a driver raises, the source may come back
                    more, reason = False, self._reason(error)
                if not more:
                    _release(capture)
                    capture = self._reopened(reason)
            if capture:
                _release(capture)
        except BaseException as error:  # nobody else would tell of it
            self.warning = f"{self.name} gives no more frames{self._reason(error)}"
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _reason(self, error: BaseException) -> str:
        """Return what an exception says, for a message; of a stream its kind alone, as it may hold the address."""
        text = " ".join(str(error).split())
        return f" ({type(error).__name__}{f': {text}' if text and '://' not in self.name else ''})"

    def _publish(self, image_bgr: np.ndarray) -> None:
        now = monotonic()
        frame = Frame(_oriented(image_bgr, self._mirror), self._read_count, now - self._start, self.name, now)
        self._read_count += 1
        with self._changed:
            self._newest = frame
            self._changed.notify()

    def _reopened(self, reason: str = "") -> cv2.VideoCapture | None:
        """Return the source again once it is back, or None: it is given up, or nobody waits for it any more."""
        self._lost, lost_at = True, monotonic()
        if self._wait > 0 and not self._stopped.is_set():
            print(f"{self.name} is lost{reason}; waiting {self._wait:g} seconds for it to come back", file=sys.stderr)
        while not self._stopped.wait(min(_RETRY, self._wait)) and monotonic() - lost_at < self._wait:
            capture = None
            try:
                capture = self._open()
                more, image_bgr = _next_frame(capture)
                if more and image_bgr is not None:
                    print(f"{self.name} is back", file=sys.stderr)
                    self._lost = False
                    self._publish(image_bgr)
                    return capture
            except Exception as error:
                reason, self._lost = self._reason(error), True
            if capture:
                _release(capture)
        if not self._stopped.is_set():
            self.warning = f"{self.name} gives no more frames{reason or ' (unplugged, or the connection is lost)'}"
        return None

    def close(self) -> None:
        """Let the thread free the camera or the connection; one that hangs in the driver is not waited for long."""
        self._stopped.set()
        self._thread.join(_LEAVE)


def _release(capture: cv2.VideoCapture) -> None:
    with suppress(Exception):  # there is nothing else to do with it
        capture.release()


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
        source: A camera number or `/dev/videoN`, a video or image file, the address of a stream, or a folder of images
            and videos. Those in its subfolders are taken too, all in the natural order of their paths.
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
    try:  # an empty name, such as of an unset variable, would be the current folder
        is_folder, is_file = bool(source) and path.is_dir(), path.is_file()
    except OSError as error:
        raise InputError(f"--source {redacted(source)} cannot be read ({error.strerror}); {_ACCEPTED}") from error
    if is_folder:
        files = media_files(path)
        if len(files) == 1 and not _is_picture(files[0]):
            return _open_video(files[0], bool(mirror), files[0].relative_to(path).as_posix())
        return Pictures(files, str(path), mirror=bool(mirror), root=path)
    if not is_file:
        raise InputError(f"--source {redacted(source) or repr(source)} does not exist; {_ACCEPTED}")
    if _is_picture(path):
        return Pictures([path], str(path), mirror=bool(mirror))
    return _open_video(path, bool(mirror))


def media_files(folder: Path) -> list[Path]:
    """Return the pictures and videos in a folder and its subfolders, in the natural order of their paths.

    In natural order `2.png` comes before `10.png`. Hidden files and folders are skipped. Links to folders are followed,
    but each folder is read once, and no link leads out to a folder around this one.
    """
    found: list[Path] = []
    top, seen = Path(os.path.realpath(folder)), set()
    for parent, folders, names in os.walk(folder, onerror=_tell_skipped, followlinks=True):
        real = Path(os.path.realpath(parent))
        if real in seen or (real != top and top.is_relative_to(real)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found += filter(_is_media, files)
    return sorted(found, key=lambda file: _natural(file.relative_to(folder)))


def holds_pictures(source: Source) -> bool:
    """Return whether a source shows pictures, alone or among videos."""
    return source.still or (isinstance(source, Pictures) and source.has_pictures)


def _is_media(file: Path) -> bool:
    if file.suffix.lower() not in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES):
        return False
    try:  # a pipe would block whoever opens it; a link that leads nowhere is skipped later, with a line that says so
        return file.is_file() or not file.exists()
    except OSError:
        return True


def _tell_skipped(error: OSError) -> None:
    print(f"skipped: {error.filename} cannot be read ({error.strerror})", file=sys.stderr)


def _natural(path: Path) -> tuple[list[list[str | int]], Path]:
    """Return what a path is sorted by: numbers in names by their value, letters without their case."""
    parts = (re.split(r"(\d+)", part.casefold()) for part in path.parts)
    return [[int(text) if index % 2 else text for index, text in enumerate(part)] for part in parts], path


def _open_camera(number: int, mirror: bool) -> Live:
    def open_capture() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(number)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one that waited in the driver
        return capture

    capture, first_bgr = _opened(open_capture)
    if capture is None or first_bgr is None:
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

    name = redacted(address)
    capture, first_bgr = _interruptible(lambda: _opened(open_capture))
    if capture is None or first_bgr is None:
        raise InputError(f"--source {name} gives no picture; check the address and the connection")
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:  # a file that a server keeps
        return Video(capture, name, first_bgr, mirror)
    return Live(open_capture, capture, name, first_bgr, mirror)


def _interruptible(work: Callable[[], _T]) -> _T:
    """Return what a call into a library gives, and let Ctrl-C break off the wait for it, which the library would not.

    Raises:
        Exception: what the call raises.
    """
    done: SimpleQueue[tuple[_T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        with suppress(Empty):
            result, error = done.get(timeout=_POLL)
            break
    if error:
        raise error
    return cast(_T, result)


def _opened(open_capture: Callable[[], cv2.VideoCapture]) -> tuple[cv2.VideoCapture | None, np.ndarray | None]:
    """Return a source and its first frame, or None for what it does not give."""
    try:
        capture = open_capture()
        return capture, _next_frame(capture)[1]
    except Exception:  # whatever a driver raises, there is no frame
        return None, None


def _open_video(file: Path, mirror: bool, name: str = "") -> Video:
    capture, first_bgr = _opened(lambda: cv2.VideoCapture(str(file)))
    # FFmpeg plays text files.
    is_text = capture and int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"ansi")
    if capture is None or first_bgr is None or is_text:
        raise InputError(f"--source {file} is no video that OpenCV can read (empty, damaged or another kind of file)")
    return Video(capture, name or file.name, first_bgr, mirror)


def _next_frame(capture: cv2.VideoCapture) -> tuple[bool, np.ndarray | None]:
    """Return whether there is another frame, and its picture unless that cannot be decoded."""
    if not capture.grab():
        return False, None
    decoded, image_bgr = capture.retrieve()
    return True, image_bgr if decoded else None
