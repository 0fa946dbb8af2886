"""Streams and videos at an address."""

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import cv2
import numpy as np

from common.errors import InputError
from common.urls import redacted
from realtime.sources.frames import POLL, open_capture
from realtime.sources.live import Live
from realtime.sources.video import Video

_TIMEOUT = 10_000  # milliseconds, to open a stream and to read from it


def open_stream(address: str, mirror: bool) -> Video | Live:
    """Open a stream, or a video file on a server.

    Raises:
        InputError: The stream has no image.
    """
    timeouts: list[Any] = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT]

    def open_() -> cv2.VideoCapture:
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)

    name = redacted(address)
    done: SimpleQueue[tuple[cv2.VideoCapture, np.ndarray] | None] = SimpleQueue()
    # In a thread, so that Ctrl-C interrupts the wait.
    threading.Thread(target=lambda: done.put(open_capture(open_)), daemon=True).start()
    while True:
        with suppress(Empty):
            opened = done.get(timeout=POLL)
            break
    if opened is None:
        raise InputError(f"--source {name} gives no picture; check the address and the connection")
    capture, first_bgr = opened
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return Video(capture, name, first_bgr, mirror)
    return Live(open_, capture, name, first_bgr, mirror)
