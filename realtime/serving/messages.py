"""Messages between the page and the server.

A page sends one message at a time and waits for its reply. Camera frames and pictures are binary: one byte (0: camera
frame, 1: picture), the time in seconds (float64, little-endian), then a JPEG. Commands are JSON objects with a `type`.
A reply is a JSON object; where its `picture` is true, a binary message with a JPEG follows.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from configuration import WEB
from realtime.recognition import Result

_HEAD = struct.Struct("<Bd")
_QUALITY = 85  # of JPEGs, 0-100
_COMMANDS = {"log": {"on": bool}, "next": {"picture": bool}, "discard": {}}
# JPEG markers that are followed by the size of the picture: all SOFn but DHT (C4), JPG (C8) and DAC (CC).
_FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class MessageError(Exception):
    """A message that the page does not send. It closes the connection; the text is the reason."""


@dataclass(frozen=True)
class Picture:
    """A camera frame or a picture.

    Attributes:
        jpeg: The compressed image.
        time: Seconds, on the clock of the page.
        still: A picture, which is not tracked.
    """

    jpeg: bytes
    time: float
    still: bool


def parse_picture(data: bytes) -> Picture:
    """Return the content of a binary message.

    Raises:
        MessageError: It is not a JPEG of an accepted size with a head.
    """
    if len(data) <= _HEAD.size:
        raise MessageError("a frame needs a head of 9 bytes and a JPEG")
    kind, time = _HEAD.unpack_from(data)
    if kind not in (0, 1) or not math.isfinite(time):
        raise MessageError("the head of a frame is 0 or 1 and a finite time")
    jpeg = data[_HEAD.size :]
    width, height = jpeg_size(jpeg)
    if not 1 <= width * height <= WEB.pixels:
        raise MessageError(f"a frame is a JPEG of at most {WEB.pixels:,} pixels")
    return Picture(jpeg, time, bool(kind))


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a JPEG declares, without decoding it; (0, 0) if it is none."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker in _FRAME_HEADERS:
            return int.from_bytes(data[place + 7 : place + 9]), int.from_bytes(data[place + 5 : place + 7])
        place += 1 if marker == 0xFF else 2 + length
    return 0, 0


def parse_command(text: str) -> dict[str, Any]:
    """Return a command.

    Raises:
        MessageError: It is not a known command with its fields.
    """
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("a command is a JSON object") from None
    fields = _COMMANDS.get(str(command.get("type"))) if isinstance(command, dict) else None
    if fields is None or set(command) != {"type", *fields}:
        raise MessageError(f"a command is one of {', '.join(_COMMANDS)}, with its fields")
    if not all(type(command[name]) is kind for name, kind in fields.items()):
        raise MessageError(f"the fields of {command['type']} have another type")
    return command


def decode(jpeg: bytes) -> np.ndarray:
    """Return the pixels of a JPEG, uint8 BGR.

    Raises:
        MessageError: It is damaged.
    """
    try:
        image_bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image_bgr = None
    if image_bgr is None:
        raise MessageError("a frame is a JPEG that can be decoded")
    return image_bgr


def encode(image_bgr: np.ndarray) -> bytes:
    """Return an image as JPEG."""
    return cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def described(result: Result) -> dict[str, Any]:
    """Return a result as JSON: the frame, and box, label and probabilities of each face."""
    height, width = result.frame.image_bgr.shape[:2]
    faces = [
        {
            "id": each.track_id,
            "box": [round(side, 1) for side in (each.face.left, each.face.top, each.face.width, each.face.height)],
            "label": each.shown,
            "probability": round(each.probability, 4),
            "unsure": each.unsure,
            "tentative": each.tentative,
            "probabilities": [round(value, 4) for value in each.probabilities.values()],
        }
        for each in result.recognitions
    ]
    frame = {"time": round(result.frame.time, 4), "index": result.frame.index, "size": [width, height]}
    return {"type": "result", **frame, "faces": faces}
