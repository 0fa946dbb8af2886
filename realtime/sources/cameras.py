"""Cameras: their numbers, opening them, and why one gives no image."""

import os
import re
import sys
from pathlib import Path

import cv2

from common.errors import InputError
from realtime.sources.frames import open_capture
from realtime.sources.live import Live


def open_camera(number: int, mirror: bool) -> Live:
    """Open a camera.

    Raises:
        InputError: it gives no image, with the reason and a remedy.
    """

    def open_() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(number)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not one that waited in the driver
        return capture

    opened = open_capture(open_)
    if opened is None:
        remedy = "or give --source another number, a video, an image, a folder or a stream address"
        raise InputError(f"camera {number} gives no picture: {camera_remedy(number)}, {remedy}")
    return Live(open_, opened[0], f"camera {number}", opened[1], mirror)


def camera_node(number: int) -> Path:
    """Return the device file of a camera on Linux."""
    return Path(f"/dev/video{number}")


def camera_numbers() -> list[int]:
    """Return the numbers of possible cameras."""
    if sys.platform.startswith("linux"):
        found = (re.fullmatch(r"video(\d+)", node.name) for node in Path("/dev").glob("video*"))
        return sorted(int(match[1]) for match in found if match)
    return list(range(4))  # other systems keep no list


def camera_remedy(number: int) -> str:
    """Return why a camera may give no image, if known, and the remedy."""
    node = camera_node(number)
    if not sys.platform.startswith("linux"):
        return "plug one in, close other programs that use it, allow this program to use the camera"
    if not node.exists():
        others = ", ".join(map(str, camera_numbers()))
        return f"there is no {node}{f', but there are the numbers {others}' if others else ''}; plug one in"
    if not os.access(node, os.R_OK | os.W_OK):
        return f"this user may not read {node}; sudo usermod -aG video $USER and log in again"
    return (
        f"{node} exists: another program may use it (fuser -v {node} names it) or it is a camera's second number, "
        "without pictures (--doctor lists those with); close that program"
    )
