"""Window that shows the drawn frames and reads the keys."""

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
_LARGEST = (1280, 720)  # pixels: largest size in which a window opens
_POLL = 50  # milliseconds between two checks of the keyboard and the close button
ACTIONS = {
    **dict.fromkeys("q\x1b", "quit"),  # \x1b: Esc
    **dict.fromkeys(["n", "right"], "next"),
    **dict.fromkeys(["p", "\b", "left"], "previous"),
    " ": "paused",
    "s": "snapshot",
    "r": "record",
    "b": "bars",
    "h": "help",
    **dict(zip("0123456789", "0123456789", strict=True)),  # a track ID; 0: all faces
}

# Codes of `cv2.waitKeyEx` for keys without a character. X and Wayland (Qt, GTK): keysyms. Windows: virtual keys << 16.
# macOS: characters of its private range. The page keys do the same as the arrow keys, also on the keypad.
_KEY_NAMES = {
    **dict.fromkeys([0xFF51, 0xFF55, 0xFF96, 0xFF9A, 0x250000, 0x210000, 0xF702, 0xF72C], "left"),
    **dict.fromkeys([0xFF53, 0xFF56, 0xFF98, 0xFF9B, 0x270000, 0x220000, 0xF703, 0xF72D], "right"),
    **dict.fromkeys([0xFF0D, 0xFF8D], "\r"),
    **dict.fromkeys([0xFF80], " "),
    **dict.fromkeys([0xFF08, 0x7F], "\b"),  # backspace of a Mac: 0x7F
    **dict.fromkeys([0xFF1B], "\x1b"),
    **{0xFFB0 + digit: str(digit) for digit in range(10)},  # keypad
}
_NO_KEYSYM = 0x10000000 | 0x01000000  # bits of media keys, and of characters beyond the keysyms


def key_name(code: int) -> str:
    """Return the key that a code of `cv2.waitKeyEx` means on every platform.

    The low byte alone, which `cv2.waitKey` returns, would confuse the left arrow (0xFF51) with `Q`.

    Args:
        code: The code; -1: no key.

    Returns:
        Its character, letters in lower case; `left` or `right`, also for the page keys; empty for all other keys,
        such as Shift, dead keys, F1 or media keys.
    """
    if -128 <= code < -1:  # Qt gives characters from 128 on as negative numbers
        code &= 0xFF
    if code < 0:
        return ""
    if code & 0xFFFF and not code & _NO_KEYSYM:
        code &= 0xFFFF  # GTK puts Shift, Caps Lock and Num Lock in the upper half
    if code in _KEY_NAMES:
        return _KEY_NAMES[code]
    character = chr(code & 0xFF) if not code & 0xFF00 and code & 0xFF else ""
    return character.lower() if character.isprintable() or character in "\b\r\n\x1b" else ""


def has_display() -> bool:
    """Return whether a window can be shown.

    On Linux OpenCV's windows need X. Qt would abort the program where the X server does not respond, so the connection
    is tried first.
    """
    if has_windows() and sys.platform.startswith("linux"):
        return _accepts_connections(os.environ.get("DISPLAY", ""))
    return has_windows()


def has_windows() -> bool:
    """Return whether this build of OpenCV can open windows; the headless build cannot."""
    return bool(cv2.currentUIFramework())


def _accepts_connections(display: str) -> bool:
    """Return whether an X server, such as `:0` or `localhost:10.0`, accepts connections."""
    match = re.fullmatch(r"(?:unix/?)?(?P<host>[^:]*):(?P<number>\d+)(\.\d+)?", display)
    if not match:
        return False
    host, number = match["host"], match["number"]
    addresses = [(socket.AF_UNIX, f"{prefix}/tmp/.X11-unix/X{number}") for prefix in ("\0", "")]
    addresses = [(socket.AF_INET, (host, 6000 + int(number)))] if host else addresses
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
    """Show frames no earlier than their time, and read the keys meanwhile.

    Args:
        size: Width and height of the frames, pixels.
        live: Show frames at once. A late frame then does not delay the next ones.
    """

    def __init__(self, size: tuple[int, int], live: bool = False):
        self._live = live
        self._start = -math.inf  # seconds: when the first frame was shown, plus all delays since
        scale = min(1.0, _LARGEST[0] / size[0], _LARGEST[1] / size[1])
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(_TITLE, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))

    def show(self, image_bgr: np.ndarray) -> None:
        """Show a frame, uint8 (h, w, 3)."""
        cv2.imshow(_TITLE, image_bgr)

    def wait(self, frame_time: float, paused: bool = False, still: bool = False) -> str:
        """Wait until the time of a shown frame is over or a key is pressed.

        Args:
            frame_time: Seconds since the first frame of the source.
            paused: Wait for a key only.
            still: The frame is an image: it stays until a key is pressed. Space, Enter and characters without an
                action continue.

        Returns:
            Action of the key (a value of `ACTIONS`); `quit` where the window is closed; empty to continue.
        """
        now = time.monotonic()
        self._start = max(self._start, now - frame_time)  # a late frame or a pause delays the next frames
        due = now if self._live else self._start + frame_time
        if paused or still:
            due = math.inf
        while True:
            remaining = min(_POLL, 1000 * (due - time.monotonic()))
            key = key_name(cv2.waitKeyEx(max(1, round(remaining))))
            if not _is_visible():
                return "quit"
            action = ACTIONS.get(key, "")
            if still and (action == "paused" or (key and not action)):
                return ""
            if action or time.monotonic() >= due:
                return action

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def _is_visible() -> bool:
    try:
        return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt, once its last window is closed
        return False
