"""The window that shows the drawn frames and takes the keys."""

import math
import os
import re
import socket
import sys
import time
from contextlib import closing

import cv2
import numpy as np

_TITLE = "Expressions - h helps, q quits"
_LARGEST = (1280, 720)  # pixels: a larger picture opens in a window of this size, which can be dragged larger
_LOOK = 50  # milliseconds between looks at the keyboard and at the window's close button
ACTIONS = {
    **dict.fromkeys("q\x1b", "quit"),  # \x1b: Esc
    " ": "pause",
    "s": "snapshot",
    "r": "record",
    "b": "bars",
    "h": "help",
    **dict(zip("0123456789", "0123456789", strict=True)),  # a face's number; 0: all of them
}


def has_display() -> bool:
    """Return whether a window can be shown.

    On Linux OpenCV's windows need X, which Wayland desktops offer too; where a display is named but does not answer,
    Qt would end the whole program, so it is asked first. A build of OpenCV without windows has no display either.
    """
    if has_windows() and sys.platform.startswith("linux"):
        return _answers(os.environ.get("DISPLAY", ""))
    return has_windows()


def has_windows() -> bool:
    """Return whether this build of OpenCV can open windows; the headless one cannot."""
    return bool(cv2.currentUIFramework())


def _answers(display: str) -> bool:
    """Tell whether an X server, such as `:0` or `localhost:10.0`, takes connections."""
    match = re.fullmatch(r"(?:unix/?)?(?P<host>[^:]*):(?P<number>\d+)(\.\d+)?", display)
    if not match:
        return bool(display) and not display.startswith(":")  # a socket's path, such as macOS gives: nothing to ask
    host, number = match["host"], match["number"]
    addresses = [(socket.AF_INET, (host, 6000 + int(number)))] if host else []
    addresses = addresses or [(socket.AF_UNIX, f"{null}/tmp/.X11-unix/X{number}") for null in ("\0", "")]
    for family, address in addresses:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as connection:
            connection.settimeout(2.0)
            try:
                connection.connect(address)
            except OSError:
                continue
            return True
    return False


class Window:
    """Shows frames no sooner than their time, and tells what a person types meanwhile.

    Args:
        size: Width and height of the frames, pixels.
        still: A frame stays until a key is pressed.
        live: Frames are shown as they come: one that came late must not delay those that follow.
    """

    def __init__(self, size: tuple[int, int], still: bool, live: bool = False):
        self._still, self._live = still, live
        self._start = -math.inf  # seconds: when the first frame was shown, later by all delays since
        scale = min(1.0, _LARGEST[0] / size[0], _LARGEST[1] / size[1])
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(_TITLE, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))

    def show(self, image_bgr: np.ndarray) -> None:
        """Show a frame, or the same one drawn in another way."""
        cv2.imshow(_TITLE, image_bgr)

    def wait(self, frame_time: float, paused: bool = False) -> str:
        """Wait until a shown frame's time is over or a key is pressed.

        Args:
            frame_time: Seconds since the source's first frame.
            paused: Wait for a key only.

        Returns:
            What the key asks for (a value of `ACTIONS`; closing the window is `quit`); empty to go on.
        """
        now = time.monotonic()
        self._start = max(self._start, now - frame_time)  # what came late, or a pause, delays what follows
        due = now if self._live else self._start + frame_time
        if paused or self._still:
            due = math.inf
        while True:
            remaining = min(_LOOK, 1000 * (due - time.monotonic()))
            key = cv2.waitKey(max(1, round(remaining)))
            if not _is_visible():
                return "quit"
            action = ACTIONS.get(chr(key & 0xFF).lower(), "") if key != -1 else ""
            if self._still and (action == "pause" or (key != -1 and not action)):
                return ""  # any other key goes to the next picture
            if action or time.monotonic() >= due:
                return action

    def close(self) -> None:
        """Take the window away."""
        cv2.destroyAllWindows()


def _is_visible() -> bool:
    try:
        return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt, once its last window is closed
        return False
