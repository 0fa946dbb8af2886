"""Reading image files, and what is known of an image by its pixels alone: readable, constant, a copy of another."""

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif", ".jp2", ".avif")
LARGEST_FILE = 1 << 28  # bytes, 268 MB: an uncompressed image of 90 megapixels; a larger file is no picture of a face
ACCEPTED_IMAGES = f"accepted are 8-bit and 16-bit images in files of at most {LARGEST_FILE / 1e6:.0f} MB"


def read_image(file: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Return a file's pixels, or None where no network could be shown them. Every stage reads image files with it.

    OpenCV's 8-bit modes define what can be read: 16 bits per channel are reduced to 8, transparency is dropped, CMYK
    becomes BGR, an animation or a TIFF of several pages gives its first image, and the EXIF orientation is applied.
    Images of 32-bit or 64-bit numbers cannot be read: nothing says which of their values is white.

    Args:
        file: The image file.
        flags: OpenCV's `IMREAD_COLOR`, `IMREAD_COLOR_RGB` or `IMREAD_GRAYSCALE`.

    Returns:
        uint8 (height, width, 3) BGR or RGB, or (height, width) gray; None where the file is no such image, or larger
        than `LARGEST_FILE`.

    Raises:
        OSError: the file cannot be opened.
    """
    with file.open("rb") as stream:  # cv2.imread cannot open every path on Windows
        if os.fstat(stream.fileno()).st_size > LARGEST_FILE:
            return None
        data = np.frombuffer(stream.read(), dtype=np.uint8)
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except (cv2.error, MemoryError):  # a header that promises more pixels than OpenCV accepts, or than memory holds
        return None


def read_gray_or_bgr(file: Path) -> np.ndarray | None:
    """Return what `read_image` reads, uint8 (height, width) where all channels are equal, else (height, width, 3) BGR.

    So a gray image is the same image however its file stores it.
    """
    image_bgr = read_image(file)
    if image_bgr is None:
        return None
    blue, green, red = cv2.split(image_bgr)
    return blue if np.array_equal(blue, green) and np.array_equal(blue, red) else image_bgr


def pixel_hash(image: np.ndarray) -> str:
    """Return a hash of an image's shape and pixels (16 hex digits), which exact copies share.

    Args:
        image: As `read_gray_or_bgr` returns it.
    """
    head = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


def image_status(image: np.ndarray) -> str:
    """Return `constant` where all pixels of an image are equal, else `ok`."""
    return "constant" if (image == image[0, 0]).all() else "ok"


def image_files(files: dict[str, Path]) -> dict[str, Path]:
    """Return the files whose names end like images, by name."""
    return {name: file for name, file in files.items() if name.lower().endswith(IMAGE_SUFFIXES)}
