"""Images and videos of a folder."""

import os
import re
import sys
from pathlib import Path

from common.images import IMAGE_SUFFIXES

# Only for folders. A file given by name may have any suffix. An animation is a video.
PICTURE_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".gif")
VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)


def is_picture(file: Path) -> bool:
    """Return whether a file name has the suffix of an image."""
    return file.suffix.lower() in PICTURE_SUFFIXES


def media_files(folder: Path) -> list[Path]:
    """Return the images and videos in a folder and its subfolders, in natural order of their paths.

    In natural order `2.png` comes before `10.png`. Hidden files and folders are skipped. Links to folders are followed,
    but each folder is read once, and links to a parent of `folder` are skipped.
    """
    found: list[Path] = []
    top, seen = Path(os.path.realpath(folder)), set()
    for parent, folders, names in os.walk(folder, onerror=_report_skipped, followlinks=True):
        real = Path(os.path.realpath(parent))
        if real in seen or (real != top and top.is_relative_to(real)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found += filter(_is_media, files)
    return sorted(found, key=lambda file: _natural_order(file.relative_to(folder)))


def _is_media(file: Path) -> bool:
    if file.suffix.lower() not in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES):
        return False
    try:  # opening a pipe would block; a broken link is reported when it is read
        return file.is_file() or not file.exists()
    except OSError:
        return True


def _report_skipped(error: OSError) -> None:
    print(f"skipped: {error.filename} cannot be read ({error.strerror})", file=sys.stderr)


def _natural_order(path: Path) -> tuple[list[list[str | int]], Path]:
    """Return a sort key: numbers in names by value, letters without case."""
    parts = (re.split(r"(\d+)", part.casefold()) for part in path.parts)
    return [[int(text) if index % 2 else text for index, text in enumerate(part)] for part in parts], path
