"""Image files: read them, hash their pixels, and find constant images."""

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np

from common import LARGEST_IMAGE

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".gif", ".jp2", ".avif"),
)
LARGEST_SIDE = 32766  # pixels: OpenCV's limit for the sides of a warped image
LARGEST_FILE = 1 << 28  # bytes, 268 MB: an uncompressed image of 90 megapixels; larger files are refused
ACCEPTED_IMAGES = (
    f"accepted are 8-bit and 16-bit images of at most {LARGEST_IMAGE / 1e6:.0f} megapixels, with sides of at most "
    f"{LARGEST_SIDE:,} pixels, in files of at most {LARGEST_FILE / 1e6:.0f} MB"
)


def read_image(file: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Read an image file in one of OpenCV's 8-bit modes. Every stage reads image files with this function.

    16 bits per channel are reduced to 8, transparency is dropped, CMYK becomes BGR, animations and TIFF files of
    several pages give their first image, and the EXIF orientation is applied. Images of 32-bit or 64-bit numbers are
    not readable, as their white value is unknown.

    Args:
        file: The image file.
        flags: OpenCV's `IMREAD_COLOR`, `IMREAD_COLOR_RGB` or `IMREAD_GRAYSCALE`.

    Returns:
        uint8 (height, width, 3) BGR or RGB, or (height, width) gray; None if the file is not readable, or larger than
        `LARGEST_FILE`, `LARGEST_IMAGE` or `LARGEST_SIDE`.

    Raises:
        OSError: The file cannot be opened.
    """
    with file.open("rb") as stream:  # cv2.imread cannot open every path on Windows
        if os.fstat(stream.fileno()).st_size > LARGEST_FILE:
            return None
        data = np.frombuffer(stream.read(), dtype=np.uint8)
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except (cv2.error, MemoryError):  # the header declares more than `LARGEST_IMAGE` pixels, or than fit in memory
        return None
    return None if image is None or max(image.shape[:2]) > LARGEST_SIDE else image


def read_gray_or_bgr(file: Path) -> np.ndarray | None:
    """Read an image file as gray if all its channels are equal, so that a gray image has one representation.

    Returns:
        uint8 (height, width) gray, or (height, width, 3) BGR; None as in `read_image`.
    """
    image_bgr = read_image(file)
    if image_bgr is None:
        return None
    blue, green, red = cv2.split(image_bgr)
    return blue if np.array_equal(blue, green) and np.array_equal(blue, red) else image_bgr


def pixel_hash(image: np.ndarray) -> str:
    """Return a hash of the shape and pixels of an image (16 hex digits).

    Args:
        image: As `read_gray_or_bgr` returns it.
    """
    head = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


def image_status(image: np.ndarray) -> str:
    """Return `constant` if all pixels of an image are equal, else `ok`."""
    return "constant" if (image == image[0, 0]).all() else "ok"


def image_files(files: dict[str, Path]) -> dict[str, Path]:
    """Return the files with the suffix of an image format."""
    return {name: file for name, file in files.items() if name.lower().endswith(IMAGE_SUFFIXES)}
