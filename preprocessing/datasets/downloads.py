"""Recognise a download, and copy its images into the data set's folder.

A raw table has one row per image: `file` (the image's present location) and the inventory's columns, except those that
are computed from pixels.
"""

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path, PurePosixPath

import pandas as pd

from common.command_line import progress_bar
from common.errors import InputError
from common.images import LARGEST_FILE, image_files, image_status, pixel_hash, read_gray_or_bgr
from preprocessing.datasets.archives import is_archive, unpack_all
from preprocessing.datasets.ckplus import CKPLUS_EMOTION, CKPLUS_IMAGE

ACCEPTED = (
    "accepted are fer2013.csv, icml_face_data.csv, folders named by emotion (also below train/ and test/), "
    "CK+ (cohn-kanade-images with Emotion) and CK+48, each also in a .zip or .tar.gz"
)


class Kind(StrEnum):
    """The kind of a download, as shown to the user."""

    FER2013 = "FER2013"
    CKPLUS = "CK+ sequences"
    FOLDERS = "folders named by emotion"


def recognise(files: dict[str, Path]) -> Kind | None:
    """Return the kind of a download; None where archives must be unpacked first."""
    if find_fer2013_csv(files):
        return Kind.FER2013
    images = image_files(files)
    if any(CKPLUS_IMAGE.fullmatch(name) for name in images):
        labels_may_be_packed = any(map(is_archive, files)) and not any(map(CKPLUS_EMOTION.fullmatch, files))
        return None if labels_may_be_packed else Kind.CKPLUS
    return Kind.FOLDERS if images else None


def open_download(files: dict[str, Path], scratch: Path, source: Path) -> tuple[dict[str, Path], Kind]:
    """Return a download's files and kind; archives are unpacked only where that is necessary.

    Args:
        files: As `archives.list_files` returns them.
        scratch: Folder to unpack into; empty or absent.
        source: The download, for messages.

    Raises:
        InputError: An archive cannot be unpacked, or the files are no known data set.
    """
    kind = recognise(files)
    if kind is None:
        files = unpack_all(files, scratch)
        kind = recognise(files)
    if kind is None:
        raise InputError(f"--source {source}: no known data set; {ACCEPTED}")
    return files, kind


def find_fer2013_csv(files: dict[str, Path]) -> Path | None:
    """Return the FER2013 table of a download; a download of a single .csv file may have any name."""
    by_name = {PurePosixPath(name).name.lower(): file for name, file in files.items()}
    only = list(files.values()) if len(files) == 1 and next(iter(by_name)).endswith(".csv") else [None]
    return by_name.get("fer2013.csv") or by_name.get("icml_face_data.csv") or only[0]


def print_unused(files: dict[str, Path], table: pd.DataFrame) -> None:
    """Print how many of a download's files are not in its table. Text files are not counted."""
    used = set(table["file"])
    unused = [PurePosixPath(name).suffix.lower() for name, file in files.items() if file not in used]
    kinds = Counter(suffix or "no ending" for suffix in unused if suffix != ".txt")
    if kinds:
        counts = ", ".join(f"{kinds[kind]:,} {kind}" for kind in sorted(kinds))
        print(f"not used: {kinds.total():,} of the source's files ({counts})")


def copy_images(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Copy a raw table's images into the data set's folder, and hash their pixels.

    File systems that share blocks, such as Btrfs or XFS, store original and copy once. Files unpacked from an archive
    are hard-linked, because the unpacked files are removed afterwards.

    Args:
        table: A raw table.
        folder: The column `path` is relative to it; archives are unpacked below it.

    Returns:
        The table without `file`, with `pixel_hash` (empty for an unreadable file) and `status`. A file larger than
        `LARGEST_FILE` is `unreadable` and is not copied.
    """

    def copy_image(row: tuple[Path, str]) -> tuple[str, str]:
        file, path = row
        if file.stat().st_size > LARGEST_FILE:
            return "", "unreadable"
        place = folder / path
        if file.is_relative_to(folder):
            with suppress(OSError):  # some disks have no hard links
                os.link(file.resolve(), place)
        if not place.exists():
            _copy(file, place)
        image = read_gray_or_bgr(place)
        return ("", "unreadable") if image is None else (pixel_hash(image), image_status(image))

    for parent in {(folder / path).parent for path in table["path"]}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool, progress_bar() as progress:
        rows = pool.map(copy_image, zip(table["file"], table["path"], strict=True))
        hashes, statuses = zip(*progress.track(rows, total=len(table), description="images"), strict=True)
    return table.drop(columns="file").assign(pixel_hash=hashes, status=statuses)


def _copy(file: Path, target: Path) -> None:
    """Copy a file, by a system call that shares blocks where the file system can."""
    with suppress(AttributeError, OSError):  # not on Linux, or not between these two file systems
        with file.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy:
            while os.copy_file_range(source.fileno(), copy.fileno(), 1 << 30):
                pass
            if os.fstat(copy.fileno()).st_size == os.fstat(source.fileno()).st_size:
                return
    shutil.copyfile(file, target)
