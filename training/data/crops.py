"""The pixel cache: one array per data set and crop format, decoded once and indexed by row."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pandas as pd

from common import images as raw_images
from common.command_line import progress_bar
from common.errors import InputError
from common.files import atomic_file
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import check_unchanged

CHANNELS = {"grayscale": 1, "rgb": 3}
MEMORY_LIMIT = 2 << 30  # bytes: larger caches are memory-mapped instead of loaded


def read_crops(classifier: EmotionClassifier, directory: Path, rows: pd.DataFrame) -> np.ndarray:
    """Return the crops of a table's rows in the input format of a network.

    Args:
        classifier: The network.
        directory: The data set's folder.
        rows: Rows of `split.csv` or `faces.csv`.

    Returns:
        uint8 (n, size, size, channels), 0-255, in the order of the rows.

    Raises:
        InputError: There are no rows, a crop is missing or has another size, or the images were replaced after the
            rows were read.
    """
    size, color_mode = classifier.input_size, "grayscale" if classifier.channels == 1 else "rgb"
    images, positions = cached_images(directory, list(rows["face_path"]), (size, size), color_mode)
    check_unchanged(rows, directory)
    return images[positions]


def cached_images(
    directory: Path, paths: Sequence[str], target_size: tuple[int, int], color_mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel array of a data set, and the position of each requested image in it.

    All crops of the data set's table share one file, `cache/crops-HxWxC.npy`. Each row also holds a hash of the path,
    size and modification time of its file, so a changed file is decoded again.

    Args:
        directory: The data set's folder.
        paths: Files of the requested images, relative to `directory`.
        target_size: (height, width) in pixels.
        color_mode: `grayscale` or `rgb`.

    Returns:
        Pixels, uint8 (m, height, width, channels), read-only, and positions, int64 (n,).

    Raises:
        InputError: No image is requested, a file is missing, unreadable, of another size, or changed meanwhile.
    """
    from filelock import FileLock

    if not len(paths):
        raise InputError(f"the table for {directory} has no rows to read; check its split and status columns")
    shape = (*target_size, CHANNELS[color_mode])
    file = directory / "cache" / f"crops-{'x'.join(map(str, shape))}.npy"
    keys = np.array([_file_key(directory, path) for path in paths], np.uint64)
    array = _open(file, shape)
    if array is None or not np.isin(keys, array["key"]).all():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            array = _open(file, shape)  # another process may have written it meanwhile
            if array is None or not np.isin(keys, array["key"]).all():
                _write(file, array, directory, paths, color_mode, shape)
                array = _open(file, shape)
        assert array is not None, f"{file} cannot be read back"
        if not np.isin([_file_key(directory, path) for path in paths], array["key"]).all():
            raise InputError(f"crops in {directory} changed while they were read; wait for step 2, then run again")
    order = np.argsort(array["key"], kind="stable")
    positions = order[np.searchsorted(array["key"], keys, sorter=order)]
    return array["pixels"], positions


def _file_key(directory: Path, path: str) -> int:
    """Return a 64-bit hash of a file's path, size and modification time."""
    try:
        state = (directory / path).stat()
    except OSError as error:
        raise InputError(f"{directory / path} is missing; make the crops again with step2_face_crops") from error
    text = f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _row_type(shape: tuple[int, ...]) -> np.dtype:
    return np.dtype([("key", "<u8"), ("pixels", np.uint8, shape)])


def _open(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the array of a cache file; None if it does not exist or is damaged."""
    try:
        state = file.stat()
    except FileNotFoundError:
        return None
    return _load(file, shape, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)  # the splits of a data set share one array
def _load(file: Path, shape: tuple[int, ...], _: int, size: int) -> np.ndarray | None:
    array = read_cache(file, (None,), _row_type(shape), memory_map=size > MEMORY_LIMIT)
    if array is not None:
        array.flags.writeable = False
    return array


def read_cache(
    file: Path, shape: tuple[int | None, ...], dtype: np.dtype | type, memory_map: bool = False
) -> np.ndarray | None:
    """Return the array of a cache file; None if it does not exist or is damaged, which is printed.

    Args:
        file: The `.npy` file.
        shape: Expected shape; None accepts any length.
        dtype: Expected type.
        memory_map: Read from disk on access.
    """
    try:
        array = np.load(file, mmap_mode="r" if memory_map else None)
        fits = all(expected in (None, length) for length, expected in zip(array.shape, shape, strict=True))
        if array.dtype != dtype or not fits:
            raise ValueError(f"it holds {array.dtype} {array.shape}")
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged file may raise almost anything
        print(f"{file} is damaged; it is made again", flush=True)
        file.unlink(missing_ok=True)
        return None
    return array


def _write(
    file: Path,
    known: np.ndarray | None,
    directory: Path,
    requested: Sequence[str],
    color_mode: str,
    shape: tuple[int, ...],
) -> None:
    """Write the cache of all crops of a data set, decoding those that `known` does not hold.

    A crop that cannot be read is left out, unless it is requested.
    """
    needed = set(requested)
    paths = list(dict.fromkeys([*requested, *_listed(directory)]))
    positions = {} if known is None else {int(key): row for row, key in enumerate(known["key"])}

    def row_of(path: str) -> bytes | None:
        try:
            key = _file_key(directory, path)
            if known is not None and key in positions:
                return known[positions[key]].tobytes()
            return key.to_bytes(8, "little") + read_image(directory / path, shape[:2], color_mode).tobytes()
        except InputError:
            if path in needed:
                raise
            return None

    count = 0
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        # Not into a memory map: on a full disk, writing to one kills the process.
        _write_header(stream, len(paths), shape)
        start = stream.tell()
        with ThreadPoolExecutor() as pool, progress_bar() as bar:
            for row in bar.track(pool.map(row_of, paths), total=len(paths), description="decoding"):
                if row is not None:
                    stream.write(row)
                    count += 1
        stream.seek(0)
        _write_header(stream, count, shape)
        assert stream.tell() == start  # NumPy pads the header for a growing first axis


def _write_header(stream: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(_row_type(shape)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)


def _listed(directory: Path) -> list[str]:
    """Return the crops that a data set's table lists; none if it has no table."""
    for name in ("split.csv", "faces.csv"):
        if (directory / name).is_file():
            table = pd.read_csv(directory / name, dtype=str, keep_default_na=False)
            return [path for path in table.get("face_path", []) if path]
    return []


def read_image(file: Path, target_size: tuple[int, ...], color_mode: str) -> np.ndarray:
    """Return one image.

    Args:
        file: The image.
        target_size: (height, width) in pixels that it must have.
        color_mode: `grayscale` or `rgb`.

    Returns:
        uint8 (height, width, channels), 0-255.

    Raises:
        InputError: The file is missing, cannot be decoded, or has another size.
    """
    flags = cv2.IMREAD_GRAYSCALE if color_mode == "grayscale" else cv2.IMREAD_COLOR_RGB
    try:
        image = raw_images.read_image(file, flags)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; make the crops again with step2_face_crops") from error
    if image is None:
        raise InputError(f"{file} is not a readable image; make the crops again with step2_face_crops")
    if image.shape[:2] != tuple(target_size):
        raise InputError(
            f"{file} is {image.shape[1]}x{image.shape[0]} pixels, not {target_size[1]}x{target_size[0]}; "
            "images are not resized: make the crops again with step2_face_crops --size"
        )
    return image.reshape(*target_size, CHANNELS[color_mode])
