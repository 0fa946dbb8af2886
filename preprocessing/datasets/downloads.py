"""Recognising and reading raw data sets that are trees of images: CK+ sequences, and folders named by emotion.

A raw table has one row per image: `file` (where the image is now), and the inventory's columns but for those that need
its pixels.
"""

import errno
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
    """What a download turned out to be; the text is shown to the user."""

    FER2013 = "FER2013 table"
    CKPLUS = "CK+ sequences"
    FOLDERS = "folders named by emotion"


def recognise(files: dict[str, Path]) -> Kind | None:
    """Return what a download's files are; None where it does not show before the archives among them are unpacked."""
    if find_fer2013_csv(files):
        return Kind.FER2013
    images = image_files(files)
    if any(CKPLUS_IMAGE.fullmatch(name) for name in images):
        labels_may_be_packed = any(map(is_archive, files)) and not any(map(CKPLUS_EMOTION.fullmatch, files))
        return None if labels_may_be_packed else Kind.CKPLUS
    return Kind.FOLDERS if images else None


def open_download(files: dict[str, Path], scratch: Path, source: Path) -> tuple[dict[str, Path], Kind]:
    """Return a download's files and what they are; archives among them are unpacked where it does not show before.

    Args:
        files: As `archives.list_files` returns them.
        scratch: An empty folder, or none yet, to unpack into.
        source: The download, for messages.

    Raises:
        InputError: an archive cannot be unpacked, or the files are no known data set.
    """
    kind = recognise(files)
    if kind is None:
        files = unpack_all(files, scratch)
        kind = recognise(files)
    if kind is None:
        raise InputError(f"--source {source}: no known data set; {ACCEPTED}")
    return files, kind


def find_fer2013_csv(files: dict[str, Path]) -> Path | None:
    """Return the FER2013 table among a download's files, which may be the only file under any name."""
    by_name = {PurePosixPath(name).name.lower(): file for name, file in files.items()}
    only = list(files.values()) if len(files) == 1 and next(iter(by_name)).endswith(".csv") else [None]
    return by_name.get("fer2013.csv") or by_name.get("icml_face_data.csv") or only[0]


def print_unused(files: dict[str, Path], table: pd.DataFrame) -> None:
    """Print how many of a download's files do not enter its table; text files go without saying.

    An archive beside unpacked images is one of them: it may hold the same images, or others.
    """
    used = set(table["file"])
    unused = [PurePosixPath(name).suffix.lower() for name, file in files.items() if file not in used]
    kinds = Counter(suffix or "no ending" for suffix in unused if suffix != ".txt")
    if kinds:
        counts = ", ".join(f"{kinds[kind]:,} {kind}" for kind in sorted(kinds))
        print(f"not used: {kinds.total():,} of the source's files ({counts})")


def link_images(table: pd.DataFrame, folder: Path, *, link: bool = False) -> pd.DataFrame:
    """Bring a raw table's images into the data set's folder, and look at their pixels.

    The user's files are copied: an edit to one then changes no data set, and the other way round. A file system that
    can share blocks, such as Btrfs or XFS, stores both once. Files that came out of an archive are linked, since the
    unpacked ones are removed.

    Args:
        table: A raw table.
        folder: What the column `path` is relative to; archives are unpacked below it.
        link: Whether the user's files are hard-linked instead, where that can be done.

    Returns:
        The table without `file`, with `pixel_hash` (empty for an unreadable file) and `status`. A file larger than
        `LARGEST_FILE` is unreadable, and is not copied.

    Raises:
        InputError: the disk has no room for the copies.
    """

    def bring(row: tuple[Path, str]) -> tuple[str, str]:
        file, path = row
        if file.stat().st_size > LARGEST_FILE:
            return "", "unreadable"
        _link_or_copy(file, folder / path, link=link or file.is_relative_to(folder))
        image = read_gray_or_bgr(folder / path)
        return ("", "unreadable") if image is None else (pixel_hash(image), image_status(image))

    for parent in {(folder / path).parent for path in table["path"]}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool, progress_bar() as progress:
        rows = pool.map(bring, zip(table["file"], table["path"], strict=True))
        looked_at = list(progress.track(rows, total=len(table), description="images"))
    hashes, statuses = zip(*looked_at, strict=True)
    return table.drop(columns="file").assign(pixel_hash=hashes, status=statuses)


def _link_or_copy(file: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    try:
        _copy(file, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{target.parent}: {error.strerror}: no copy of {file.name} and the other images fits; free some space, or "
            "give --link"
        ) from error


def _copy(file: Path, target: Path) -> None:
    try:  # this system call shares the blocks where the file system can
        with file.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy:
            while os.copy_file_range(source.fileno(), copy.fileno(), 1 << 30):
                pass
            if os.fstat(copy.fileno()).st_size == os.fstat(source.fileno()).st_size:
                return
    except (AttributeError, OSError):  # not on Linux, or not between these two file systems
        pass
    shutil.copyfile(file, target)
