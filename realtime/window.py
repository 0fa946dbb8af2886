"""The window that shows the annotated frames."""

import math
import os
import sys
import time

import cv2
import numpy as np

from realtime.recognition import Result

_TITLE = "Expressions - q quits"
_QUIT_KEYS = {ord("q"), ord("Q"), 27}  # 27: Esc
_LARGEST = (1280, 720)  # pixels: a larger picture opens in a window of this size, which can be dragged larger
_LOOK = 50  # milliseconds between looks at the keyboard and at the window's close button


def has_display() -> bool:
    """Return whether a window can be shown; on Linux OpenCV's windows need X, which Wayland desktops offer too."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))


class Window:
    """Shows frames no sooner than their time; `q`, Esc or its close button end it.

    Args:
        size: Width and height of the frames, pixels.
        still: A frame stays until a key is pressed.

    Attributes:
        closed: The person has had enough.
    """

    def __init__(self, size: tuple[int, int], still: bool):
        self.closed = False
        self._still = still
        self._start = -math.inf  # seconds: when the first frame was shown
        scale = min(1.0, _LARGEST[0] / size[0], _LARGEST[1] / size[1])
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(_TITLE, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))

    def write(self, result: Result, drawn_bgr: np.ndarray) -> None:
        """Show a frame and wait: for a key where pictures are still, else until its time has come."""
        self._start = max(self._start, time.monotonic() - result.frame.time)  # what came late delays what follows
        due = math.inf if self._still else self._start + result.frame.time
        cv2.imshow(_TITLE, drawn_bgr)
        while True:
            remaining = min(_LOOK, 1000 * (due - time.monotonic()))
            key = cv2.waitKey(max(1, round(remaining)))
            if key & 0xFF in _QUIT_KEYS or not _is_visible():
                self.closed = True
                return
            if time.monotonic() >= due or (self._still and key != -1):
                return

    def close(self) -> None:
        """Take the window away."""
        cv2.destroyAllWindows()


def _is_visible() -> bool:
    try:
        return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt, once its last window is closed
        return False
