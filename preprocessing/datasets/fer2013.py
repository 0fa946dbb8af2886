"""Read FER2013's tables: `fer2013.csv` (or `icml_face_data.csv`), and FER+'s annotator votes."""

import csv
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.command_line import progress_bar
from common.csv_text import check_columns
from common.emotions import EMOTIONS, FER2013_CODES
from common.errors import InputError
from common.images import image_status, pixel_hash

SIDE = 48  # pixels
USAGES = ("Training", "PublicTest", "PrivateTest")
FERPLUS_VOTES = (*EMOTIONS, "unknown", "nf")  # "nf": no face
MAX_LINE = 1_000_000  # characters read at once: a file without line ends would fill the memory
MAX_VOTES_FILE = 100_000_000  # bytes; FER+'s own table has 2 MB


def write_images(csv_file: Path, images: Path) -> pd.DataFrame:
    """Write each row of a FER2013 table as an 8-bit gray PNG, `images/<Usage>/<row:05d>.png`.

    Args:
        csv_file: A table with the column `pixels` (2,304 numbers 0-255, row by row) and optionally `emotion` (a code
            0-6) and `Usage`. Upper or lower case and blanks around the names do not matter. Either all rows or none
            have a `Usage`.
        images: Folder to write to.

    Returns:
        The inventory's columns, one row per row of the table, in its order; `emotion` is empty where there is no code.

    Raises:
        InputError: A row is invalid; the message gives its number (from 0, without the header).
    """
    rows: list[dict[str, str]] = []

    def parsed() -> Iterator[tuple[Path, np.ndarray]]:
        for number, cells in enumerate(_read_rows(csv_file)):
            image = _image(cells["pixels"] or "", csv_file, number)
            emotion = _emotion(cells.get("emotion") or "", csv_file, number)
            usage = _usage(cells["usage"] or "", csv_file, number) if "usage" in cells else ""
            name = f"{usage}/{number:05d}.png".lstrip("/")
            rows.append(
                {
                    "path": f"images/{name}",
                    "emotion": emotion,
                    "label_source": "dataset" if emotion else "",
                    **dict.fromkeys(["subject", "sequence", "frame"], ""),
                    "usage": usage,
                    "pixel_hash": pixel_hash(image),
                    "status": image_status(image),
                }
            )
            yield images / name, image

    for usage in ("", *USAGES):
        (images / usage).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool, progress_bar() as progress:
        written = pool.map(lambda item: write_png(*item), parsed())
        for _ in progress.track(written, total=None, description="images"):
            pass
    for usage in set(USAGES) - {row["usage"] for row in rows}:
        (images / usage).rmdir()
    if not rows:
        raise InputError(f"{csv_file} contains no rows; download it again")
    return pd.DataFrame(rows)


def _read_rows(csv_file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table, by lower-case column names."""
    try:
        with csv_file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(iter(partial(stream.readline, MAX_LINE), ""))
            columns = [name.strip().lower() for name in rows.fieldnames or []]
            if "pixels" not in columns:
                raise InputError(
                    f"{csv_file} has no column 'pixels' (its columns: {', '.join(columns)[:200]}); "
                    "accepted are fer2013.csv and icml_face_data.csv"
                )
            rows.fieldnames = columns
            yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{csv_file} is not a readable CSV table ({error}); download it again") from error


def _place(csv_file: Path, row: int) -> str:
    return f"{csv_file.name}: row {row} (line {row + 2})"


def _emotion(code: str, csv_file: Path, row: int) -> str:
    code = code.strip()
    if code and code not in map(str, range(len(FER2013_CODES))):
        raise InputError(f"{_place(csv_file, row)} has emotion {code[:40]!r}; accepted are the codes 0-6, or none")
    return FER2013_CODES[int(code)] if code else ""


def _usage(usage: str, csv_file: Path, row: int) -> str:
    usage = usage.strip()
    if usage not in USAGES:
        has = f"Usage {usage[:40]!r}" if usage else "no Usage"
        raise InputError(
            f"{_place(csv_file, row)} has {has}; accepted are {', '.join(USAGES)} in every row, or no column Usage"
        )
    return usage


def _image(text: str, csv_file: Path, row: int) -> np.ndarray:
    """Return a row's image, uint8 (48, 48)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy warns where it stops at a non-number
            values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        wrong = next((word for word in text.split() if not word.isdecimal()), "")
        raise InputError(f"{_place(csv_file, row)} has the pixel {wrong[:40]!r}; pixels are numbers 0-255") from error
    if values.size != SIDE * SIDE:
        raise InputError(f"{_place(csv_file, row)} has {values.size:,} pixels, not {SIDE * SIDE:,}; download it again")
    if values.min() < 0 or values.max() > 255:
        wrong = values[(values < 0) | (values > 255)][0]
        raise InputError(f"{_place(csv_file, row)} has the pixel {wrong}; pixels are numbers 0-255")
    return values.astype(np.uint8).reshape(SIDE, SIDE)


def write_png(file: Path, image_gray: np.ndarray) -> None:
    """Write an 8-bit PNG, with little compression for speed."""
    file.write_bytes(cv2.imencode(".png", image_gray, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def read_votes(votes_file: Path, usages: pd.Series) -> pd.DataFrame:
    """Read FER+'s annotator votes, `fer2013new.csv`, which has the rows of `fer2013.csv` in the same order.

    Args:
        votes_file: The table, with the columns `Usage`, `Image name`, the eight emotions, `unknown` and `NF`.
        usages: The inventory's column `usage`, which must be equal.

    Returns:
        `votes_<emotion>`, `votes_unknown` and `votes_nf` (numbers of annotators), and `ferplus_name` (empty where FER+
        has no name: no face).

    Raises:
        InputError: It is no such table, or its rows do not match the images.
    """
    if votes_file.stat().st_size > MAX_VOTES_FILE:
        raise InputError(f"{votes_file} is too large for a table of votes; --votes accepts FER+'s fer2013new.csv")
    try:
        check_columns(votes_file)
        votes = pd.read_csv(votes_file, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        raise InputError(f"{votes_file} is not a readable CSV table ({error}); download it again") from error
    votes.columns = [str(name).strip().lower() for name in votes.columns]
    missing = [name for name in ("usage", "image name", *FERPLUS_VOTES) if name not in votes.columns]
    if missing:
        raise InputError(f"{votes_file} lacks the columns {', '.join(missing)}; --votes accepts FER+'s fer2013new.csv")
    if votes["usage"].str.strip().tolist() != usages.tolist():
        raise InputError(
            f"{votes_file} has {len(votes):,} rows, the images {len(usages):,}, or their column Usage differs; give "
            "two files of the same version of FER2013"
        )
    wrong = ~votes[list(FERPLUS_VOTES)].apply(lambda column: column.str.strip().str.isdecimal())
    if wrong.any(axis=None):
        raise InputError(f"{_place(votes_file, int(wrong.any(axis=1).argmax()))} has a vote that is not a whole number")
    table = votes[list(FERPLUS_VOTES)].astype(int).add_prefix("votes_")
    return table.assign(ferplus_name=votes["image name"].str.strip())
