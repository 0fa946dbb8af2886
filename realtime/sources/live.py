"""Cameras and streams, read in a thread."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic

import cv2
import numpy as np

from configuration import WEBCAM
from realtime.sources.frames import POLL, Frame, frame_rate, next_frame, oriented

_RETRY_SECONDS = 0.5  # between two attempts to reopen a lost source
_JOIN_SECONDS = 1.0  # at most, for the reader thread on closing; a driver may hang
_STALL_SECONDS = 3.0  # without a frame, after which a stall is reported


class Live:
    """A camera or stream that a thread reads; iterating gives the newest frame.

    A frame's `index` also counts frames that were not taken. A source that disconnects, or whose driver raises an
    exception, is reopened for up to `wait` seconds. Loss, return and stalls are reported on standard error.

    Args:
        open_capture: Opens the source; called again after a loss.
        capture: The opened source.
        name: Name of the source, for messages.
        first_bgr: First image of the source.
        mirror: Flip frames horizontally.
        wait: Seconds after which a lost source is given up.
        stall: Seconds without a frame after which a stall is reported.

    Attributes:
        on_wait: Called every `POLL` seconds while no frame comes, in the waiting thread. Its argument is True while
            the source is lost or stalls. It returns whether to go on.
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
        wait: float = WEBCAM.reconnect_seconds,
        stall: float = _STALL_SECONDS,
    ):
        self.name, self.warning, self.fps = name, "", frame_rate(capture)
        self.size = (first_bgr.shape[1], first_bgr.shape[0])
        self._open, self._mirror, self._wait, self._stall = open_capture, mirror, wait, stall
        self._start = monotonic()
        self._newest: Frame | None = Frame(oriented(first_bgr, mirror), 0, 0.0, name, self._start)
        self._read_count = 1
        self._changed = threading.Condition()  # guards `_newest` and `_ended`
        self._ended = self._lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_all, args=(capture,), daemon=True, name=f"reader of {name}")
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        waiting_since, is_stalled = monotonic(), False
        while True:
            with self._changed:
                has_news = self._changed.wait_for(lambda: self._newest is not None or self._ended, POLL)
                frame, self._newest = self._newest, None
            if frame:
                yield frame
                waiting_since, is_stalled = monotonic(), False
            elif has_news:  # it has ended
                return
            else:
                if not (is_stalled or self._lost) and monotonic() - waiting_since >= self._stall:
                    is_stalled = True
                    print(f"{self.name} stalls: no frame for {self._stall:g} seconds; still waiting", file=sys.stderr)
                if self.on_wait and not self.on_wait(is_stalled or self._lost):
                    return

    def _read_all(self, capture: cv2.VideoCapture | None) -> None:
        """Read to the end. Only this thread uses the capture."""
        try:
            while capture and not self._stopped.is_set():
                more, reason = True, ""
                try:
                    more, image_bgr = next_frame(capture)
                    if image_bgr is not None:
                        self._publish(image_bgr)
                except Exception as error:  # drivers raise exceptions of all kinds; the source may come back
                    more, reason = False, self._reason(error)
                if not more:
                    _release(capture)
                    capture = self._reopen(reason)
            if capture:
                _release(capture)
        except BaseException as error:  # a thread's exception would be lost
            self.warning = f"{self.name} gives no more frames{self._reason(error)}"
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _reason(self, error: BaseException) -> str:
        """Return an exception as text; of streams only its type, as its message may hold the address and password."""
        text = " ".join(str(error).split())
        return f" ({type(error).__name__}{f': {text}' if text and '://' not in self.name else ''})"

    def _publish(self, image_bgr: np.ndarray) -> None:
        now = monotonic()
        frame = Frame(oriented(image_bgr, self._mirror), self._read_count, now - self._start, self.name, now)
        self._read_count += 1
        with self._changed:
            self._newest = frame
            self._changed.notify()

    def _reopen(self, reason: str) -> cv2.VideoCapture | None:
        """Return the reopened source, or None after `wait` seconds or `close`."""
        self._lost, lost_at = True, monotonic()
        if self._wait > 0 and not self._stopped.is_set():
            print(f"{self.name} is lost{reason}; waiting {self._wait:g} seconds for it to come back", file=sys.stderr)
        while not self._stopped.wait(min(_RETRY_SECONDS, self._wait)) and monotonic() - lost_at < self._wait:
            capture = None
            try:
                capture = self._open()
                more, image_bgr = next_frame(capture)
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
        """Stop the thread, which frees the camera or connection."""
        self._stopped.set()
        self._thread.join(_JOIN_SECONDS)


def _release(capture: cv2.VideoCapture) -> None:
    with suppress(Exception):
        capture.release()
