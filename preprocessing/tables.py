"""The CSV contract between the stages: columns, validated reading, atomic writing.

A table is UTF-8 with one header and one row per image. Paths are relative to `data/NAME/`, with `/`. Columns that are
not named here are carried through untouched. Rows are never dropped: what a stage cannot use keeps its row, with a
status that says why. Text that a spreadsheet would run as a formula has an apostrophe in front (see `csv_text`), in the
file alone: `read_table` gives the original text, so read the tables with it rather than with `pandas.read_csv`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from common.csv_text import escape, quoting, unescape
from common.emotions import EMOTIONS, in_class_order
from common.errors import InputError
from common.files import atomic_file

INVENTORY_COLUMNS = [
    "path", "emotion", "label_source", "subject", "sequence", "frame", "usage", "pixel_hash", "status",
]  # fmt: skip
BOX_COLUMNS = ["box_left", "box_top", "box_width", "box_height"]
# Left and right as the viewer sees them; pixels of the original image.
LANDMARKS = ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"]
LANDMARK_COLUMNS = [f"{point}_{axis}" for point in LANDMARKS for axis in "xy"]
FACE_COLUMNS = ["face_path", "face_status", "face_count", "face_confidence", *BOX_COLUMNS, *LANDMARK_COLUMNS]
NUMERIC_COLUMNS = ["face_confidence", *BOX_COLUMNS, *LANDMARK_COLUMNS]  # floats; NaN where there is none

STATUSES = ("ok", "constant", "unreadable")
FACE_STATUSES = ("found", "whole_image", "not_found")
SPLITS = ("train", "dev", "test")
# What data sets call their own splits, in small letters -> the split.
OFFICIAL_SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["dev", "val", "valid", "validation", "publictest"], "dev"),
    **dict.fromkeys(["test", "testing", "privatetest"], "test"),
}
_ALLOWED = {"emotion": ("", *EMOTIONS), "status": STATUSES, "face_status": FACE_STATUSES, "split": ("", *SPLITS)}

# file name -> (columns it must have, step that writes it)
_FILES = {
    "inventory.csv": (INVENTORY_COLUMNS, "preprocessing.step1_inventory"),
    "faces.csv": ([*INVENTORY_COLUMNS, *FACE_COLUMNS], "preprocessing.step2_face_crops"),
    "split.csv": ([*INVENTORY_COLUMNS, *FACE_COLUMNS, "split"], "preprocessing.step3_split"),
}


def read_table(folder: Path, file_name: str) -> pd.DataFrame:
    """Read and validate one of a data set's tables.

    Args:
        folder: The data set's folder, `data/NAME`.
        file_name: `inventory.csv`, `faces.csv` or `split.csv`.

    Returns:
        The table; text columns hold strings (empty where nothing is known), `NUMERIC_COLUMNS` and vote counts floats.

    Raises:
        InputError: there is no such table (the message names the step that writes it), or it breaks the contract.
    """
    needed, step = _FILES[file_name]
    file = folder / file_name
    if not file.is_file():
        raise InputError(f"{file} does not exist; run first: python -m {step} --dataset {folder.name}")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable CSV table ({_one_line(error)}); write it again: {step}") from error
    table = unescaped(table)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise InputError(f"{file} lacks the columns {', '.join(missing)}; write it again: python -m {step}")
    for column, allowed in _ALLOWED.items():
        wrong = set(table[column]) - set(allowed) if column in table.columns else set()
        if wrong:
            raise InputError(f"{file}: {column} {min(wrong)!r} is not one of {', '.join(filter(None, allowed))}")
    for column in ("path", "face_path"):
        if column in table.columns:
            for path in table[column]:
                check_relative(path, file)
    for column in table.columns:
        if column in NUMERIC_COLUMNS or column.startswith("votes_"):
            try:
                table[column] = pd.to_numeric(table[column].where(table[column] != ""))
            except ValueError as error:
                raise InputError(f"{file}: column {column} holds a value that is no number ({error})") from error
    return table


def is_up_to_date(folder: Path, file_name: str, origin: str) -> bool:
    """Return whether one of a data set's tables is there, valid, and made from what `origin` says.

    An invalid table counts as none: its reader tells the user to run the step again, which must then write it.
    """
    record = _record(folder, file_name)
    if not record.is_file() or record.read_text("utf-8", errors="replace").strip() != origin:
        return False
    try:
        read_table(folder, file_name)
    except InputError:
        return False
    return True


def write_provenance(folder: Path, file_name: str, origin: str) -> None:
    """Note what a table was made from, one line of JSON, for `is_up_to_date`; call it when the table is complete."""
    with atomic_file(_record(folder, file_name)) as temporary:
        temporary.write_text(origin + "\n", encoding="utf-8")


def read_provenance(folder: Path, file_name: str) -> dict[str, Any]:
    """Return what a table was made from, as `write_provenance` noted it; empty where there is no note.

    Raises:
        InputError: the note is damaged; the message names the step that writes it.
    """
    note = _record(folder, file_name)
    try:
        origin = json.loads(note.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (IsADirectoryError, ValueError, RecursionError):
        origin = None
    if not isinstance(origin, dict):
        step = _FILES[file_name][1]
        raise InputError(f"{note} is damaged: it holds no JSON object; remove it and run: python -m {step}")
    return origin


def crop_options(folder: Path) -> dict[str, Any]:
    """Return how step 2 made a data set's crops: `size`, `channels`, `align`, and the other crop options.

    Raises:
        InputError: `faces.json`, which step 2 writes, is missing or damaged.
    """
    try:
        options = read_provenance(folder, "faces.csv").get("options")
    except InputError:
        options = None
    kinds = {"size": int, "channels": int, "align": str}
    if not isinstance(options, dict) or not all(isinstance(options.get(name), kind) for name, kind in kinds.items()):
        raise InputError(
            f"{folder / 'faces.json'}, which says how the crops were made, is missing or damaged; run first: "
            f"python -m preprocessing.step2_face_crops --dataset {folder.name}"
        )
    return options


def _record(folder: Path, file_name: str) -> Path:
    return (folder / file_name).with_suffix(".json")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_relative(path: str, file: Path) -> None:
    """Refuse a path that is absolute or climbs out of the data set's folder.

    Raises:
        InputError: with the path and the table it stands in.
    """
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or "\\" in path or ".." in path.split("/"):
        raise InputError(f"{file}: path {path!r} leaves the data folder; paths must be relative to it, with '/'")


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a table so that a reader sees all of it or none, and a spreadsheet runs none of its text as a formula."""
    safe = _with_text(table, escape)
    with atomic_file(file) as temporary:
        quotes = quoting({*safe.columns}.union(*(safe.iloc[:, number] for number in _text_columns(safe))))
        safe.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", quoting=quotes)


def unescaped(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that was read from a CSV file, with the text that `write_table` was given."""
    return _with_text(table, unescape)


def _text_columns(table: pd.DataFrame) -> list[int]:
    return [number for number, dtype in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(dtype)]


def _with_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return the table with `change` applied to the text of its cells and to the names of its columns."""
    table = table.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for number in _text_columns(table):
        column = table.iloc[:, number]
        changed = {text: new for text in {*column} if isinstance(text, str) and (new := change(text)) != text}
        if changed:
            table.isetitem(number, [changed.get(text, text) for text in column])
    return table


def usable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a readable image, a label and, in a table of crops, a face.

    What it gives is valid for Keras's `ImageDataGenerator.flow_from_dataframe(rows, directory=folder,
    x_col="path" | "face_path", y_col="emotion")`.
    """
    return table.loc[is_usable(table)].reset_index(drop=True)


def is_usable(table: pd.DataFrame) -> pd.Series:
    """Return, for each row of a table, whether `usable` keeps it."""
    return has_image(table) & (table["emotion"] != "")


def has_image(table: pd.DataFrame) -> pd.Series:
    """Return, for each row of a table, whether its image can be read and, in a table of crops, has a face."""
    seen = table["status"] == "ok"
    if "face_status" in table.columns:
        seen &= table["face_status"].isin(["found", "whole_image"])
    return seen


def labels_of(table: pd.DataFrame) -> list[str]:
    """Return the table's emotions in class order."""
    return in_class_order(set(table["emotion"]) - {""})


def check_unchanged(rows: pd.DataFrame, folder: Path) -> None:
    """Refuse rows that the data set no longer holds; call this after their crops were read.

    Steps 1 to 3 may replace the images between the reading of a table and that of its crops. The new images can have
    the old names, and would be taken with the old labels.

    Args:
        rows: Rows of `split.csv` or `faces.csv`, as they were read before the crops.
        folder: The data set's folder.

    Raises:
        InputError: a row's image is another one now, or step 2 is making the crops anew.
    """
    columns = ["path", "face_path", "pixel_hash"]
    name = "split.csv" if (folder / "split.csv").is_file() else "faces.csv"
    current = read_table(folder, name)[columns] if (folder / name).is_file() else pd.DataFrame(columns=columns)
    if not set(current.itertuples(index=False, name=None)).issuperset(rows[columns].itertuples(index=False, name=None)):
        raise InputError(f"the crops of {folder} changed while they were read; wait for steps 1 to 3, then run again")


def content_hash(table: pd.DataFrame) -> str:
    """Return a hash of a table's content (SHA-256, 16 hex digits), for caches, cards and unchanged-input checks."""
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()[:16]


def split_hash(table: pd.DataFrame) -> str:
    """Return a hash of what a data set's training and dev images are, by which a card names them."""
    rows = usable(table)
    return content_hash(rows.loc[rows["split"].isin(["train", "dev"]), ["path", "pixel_hash", "emotion", "split"]])


def fold_numbers(table: pd.DataFrame, column: str = "fold") -> list[int]:
    """Return the numbers of a split table's folds, `0` ... `K-1`.

    Args:
        table: `split.csv`, made with a strategy that gives folds.
        column: `fold`, or `subject_dependent_fold`: folds that ignore who is in the pictures.

    Raises:
        InputError: it has no such folds, or they are not numbered like this.
    """
    names = set(table[column]) - {""} if column in table.columns else set()
    make = "python -m preprocessing.step3_split --dataset NAME --strategy folds"
    if not names and column != "fold" and "fold" in table.columns and (table["subject"] == "").any():
        raise InputError("not every image has a subject: the folds ignore who is in the pictures already, so there is "
                         f"no {column}")  # fmt: skip
    if not names:
        raise InputError(f"the split has no {column.replace('_', ' ')}s; make them: {make}")
    if names != set(map(str, range(len(names)))):
        raise InputError(
            f"the split's column {column} does not hold numbers from 0 without a gap; make it anew: {make}"
        )
    return list(range(len(names)))


def split_by_fold(table: pd.DataFrame, fold: int, column: str = "fold") -> pd.DataFrame:
    """Return a split table whose column `split` makes one fold the test split, the next one dev, the others training.

    Rows that belong to no fold have an empty `split`.

    Raises:
        InputError: the table has no folds.
    """
    folds = fold_numbers(table, column)
    parts = {"": "", str(fold): "test", str((fold + 1) % len(folds)): "dev"}
    return table.assign(split=table[column].map(parts).fillna("train"))
