"""What is known of an image by its pixels alone: whether it can be read, is constant, is a copy of another."""

import hashlib
from pathlib import Path

import cv2
import numpy as np


def read_image(file: Path, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """Return a file's pixels, or None where they cannot be decoded.

    Args:
        file: The image file.
        flags: OpenCV's `IMREAD_...`; left out, pixels come as they are stored (gray, BGR or BGRA).

    Raises:
        OSError: the file cannot be opened.
    """
    data = np.fromfile(file, dtype=np.uint8)  # cv2.imread cannot open every path on Windows
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:  # a header that promises more pixels than OpenCV accepts
        return None


def pixel_hash(image: np.ndarray) -> str:
    """Return a hash of an image's shape and pixels, which exact duplicates share.

    A gray image that is stored in three equal channels, or with an opaque alpha channel, has its one-channel hash.

    Args:
        image: Gray (height, width), or colour (height, width, channels), of any integer type.

    Returns:
        16 hexadecimal digits.
    """
    if image.ndim == 3 and image.shape[2] == 4:
        opaque = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
        image = image[..., :3] if (image[..., 3] == opaque).all() else image
    if image.ndim == 3 and image.shape[2] in (1, 3) and (image == image[..., :1]).all():
        image = image[..., 0]
    head = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


def image_status(image: np.ndarray) -> str:
    """Return `constant` where all pixels of an image are equal, else `ok`."""
    return "constant" if (image == image[0, 0]).all() else "ok"
