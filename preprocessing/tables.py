"""The CSV tables between the stages: columns, validated reading, atomic writing, provenance.

A table is UTF-8 with one header and one row per image. Paths are relative to `data/NAME/`, with `/`. Unknown columns
are carried through. Rows are never dropped: a row that a stage cannot use keeps a status with the reason. Text that a
spreadsheet would run as a formula is escaped in the file (see `common.csv_text`), so read tables with `read_table`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from common.command_line import step_command
from common.csv_text import check_columns, escape, quoting, unescape
from common.emotions import EMOTIONS, in_class_order
from common.errors import InputError
from common.files import atomic_file, write_file
from configuration import FACES, SAMPLE_NAME

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
# A data set's name of its own split, in lower case -> our name.
OFFICIAL_SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["dev", "val", "valid", "validation", "publictest"], "dev"),
    **dict.fromkeys(["test", "testing", "privatetest"], "test"),
}
_ALLOWED = {"emotion": ("", *EMOTIONS), "status": STATUSES, "face_status": FACE_STATUSES, "split": ("", *SPLITS)}

# file name -> (required columns, step that writes it)
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
        The table. Text columns hold strings (empty where unknown), `NUMERIC_COLUMNS` and vote counts floats.

    Raises:
        InputError: The table does not exist (the message names the step that writes it), or is invalid.
    """
    required = _FILES[file_name][0]
    file = folder / file_name
    command = make_command(folder, file_name)
    if not file.is_file():
        raise InputError(f"{file} does not exist; run first: {command}")
    try:
        check_columns(file)
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        raise InputError(f"{file} is not a readable CSV table ({error}); write it again: {command}") from error
    table = unescaped(table)
    if missing := [column for column in required if column not in table.columns]:
        raise InputError(f"{file} lacks the columns {', '.join(missing)}; write it again: {command}")
    _check_values(table, file)
    return _with_numbers(table, file)


def _check_values(table: pd.DataFrame, file: Path) -> None:
    for column, allowed in _ALLOWED.items():
        unknown = set(table[column]) - set(allowed) if column in table.columns else set()
        if unknown:
            raise InputError(f"{file}: {column} {min(unknown)!r} is not one of {', '.join(filter(None, allowed))}")
    if (repeated := table["path"].duplicated()).any():
        raise InputError(f"{file}: path {table.loc[repeated, 'path'].iloc[0]!r} is listed twice; keep one row of it")
    for column in {"path", "face_path"}.intersection(table.columns):
        for path in table[column]:
            check_relative(path, file)


def _with_numbers(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    for column in table.columns:
        if column in NUMERIC_COLUMNS or column.startswith("votes_"):
            try:
                table[column] = pd.to_numeric(table[column].where(table[column] != ""))
            except ValueError as error:
                raise InputError(f"{file}: column {column} contains a value that is not a number ({error})") from error
    return table


def is_up_to_date(folder: Path, file_name: str, provenance: str) -> bool:
    """Return whether a table exists, is valid, and was made from this provenance (see `write_provenance`)."""
    record = _record(folder, file_name)
    if not record.is_file() or record.read_text("utf-8", errors="replace").strip() != provenance:
        return False
    try:
        read_table(folder, file_name)
    except InputError:
        return False
    return True


def write_provenance(folder: Path, file_name: str, provenance: str) -> None:
    """Record what a table was made from, as one line of JSON; call this after the table is written."""
    write_file(_record(folder, file_name), f"{provenance}\n".encode())


def read_provenance(folder: Path, file_name: str) -> dict[str, Any]:
    """Return what a table was made from; empty where there is no record.

    Raises:
        InputError: The record is damaged; the message names the step that writes it.
    """
    provenance = _read_record(folder, file_name)
    if provenance is None:
        command = make_command(folder, file_name)
        raise InputError(
            f"{_record(folder, file_name)} is damaged: it contains no JSON object; remove it and run: {command}"
        )
    return provenance


def _read_record(folder: Path, file_name: str) -> dict[str, Any] | None:
    """Return a provenance record; empty where there is none, None where it is damaged."""
    try:
        provenance = json.loads(_record(folder, file_name).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (IsADirectoryError, ValueError, RecursionError):
        return None
    return provenance if isinstance(provenance, dict) else None


def make_command(folder: Path, file_name: str, **options: object) -> str:
    """Return the command that writes a table again, for messages.

    Args:
        folder: The data set's folder.
        file_name: As for `read_table`.
        **options: Options of step 1 that take precedence over those in its record: `source`, `labels`, `frames`,
            `neutral_first`, `mapping`.
    """
    if file_name != "inventory.csv":
        return step_command(_FILES[file_name][1], folder, *(_crop_words(folder) if file_name == "faces.csv" else []))
    record = _read_record(folder, file_name) or {}
    source = options.get("source") or record.get("place") or ("FILE_OR_FOLDER" if folder.name != SAMPLE_NAME else "")
    if str(source) == str(folder.resolve() / "raw"):  # the embedded sample
        source = ""
    words: list[object] = ["--source", source] if source else []
    record |= options
    labels, votes = options.get("labels") or record.get("labels_place"), record.get("votes_place")
    words += ["--labels", labels] if labels else []
    words += ["--votes", votes] if votes else []
    words += ["--neutral-first"] if record.get("neutral_first") else []
    words += ["--frames", record["frames"]] if record.get("frames", "peak") != "peak" else []
    mapping = record.get("mapping")
    for name, emotion in (mapping if isinstance(mapping, dict) else {}).items():
        words += ["--map", f"{name}={emotion or 'none'}"]
    return step_command(_FILES[file_name][1], folder, *words)


def _crop_words(folder: Path) -> list[object]:
    """Return the options of step 2 that its record has and that differ from the defaults."""
    options = (_read_record(folder, "faces.csv") or {}).get("options")
    options = options if isinstance(options, dict) else {}
    words: list[object] = []
    for name in ("size", "channels", "align"):
        default = getattr(FACES, name)
        if isinstance(value := options.get(name), type(default)) and value != default:
            words += [f"--{name}", value]
    if isinstance(options.get("detect"), bool):
        words.append("--detect" if options["detect"] else "--no-detect")
    return words


def crop_options(folder: Path) -> dict[str, Any]:
    """Return the options of a data set's crops: `size`, `channels`, `align`, and the others of `FaceConfig`.

    Raises:
        InputError: `faces.json`, which step 2 writes, is missing or damaged.
    """
    try:
        options = read_provenance(folder, "faces.csv").get("options", {})
    except InputError:
        options = {}
    options = options if isinstance(options, dict) else {}
    types = {"size": int, "channels": int, "align": str}
    if not all(isinstance(options.get(name), types[name]) for name in types):
        raise InputError(
            f"{folder / 'faces.json'}, the record of the crop options, is missing or damaged; run first: "
            f"{make_command(folder, 'faces.csv')}"
        )
    return options


def _record(folder: Path, file_name: str) -> Path:
    return (folder / file_name).with_suffix(".json")


def check_relative(path: str, file: Path) -> None:
    """Refuse a path that is absolute or leads out of the data set's folder.

    Args:
        path: The path.
        file: The table that contains it, for the message.

    Raises:
        InputError: The path leads out of the folder.
    """
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or "\\" in path or ".." in path.split("/"):
        raise InputError(f"{file}: path {path!r} leaves the data folder; paths must be relative to it, with '/'")
    if "\0" in path:
        raise InputError(f"{file}: path {path!r} is no file name; write the table again")


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a table atomically. Text that a spreadsheet would run as a formula is escaped."""
    safe = _with_text(table, escape)
    with atomic_file(file) as temporary:
        quotes = quoting({*safe.columns}.union(*(safe.iloc[:, number] for number in _text_columns(safe))))
        safe.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", quoting=quotes)


def unescaped(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table read by pandas with the original text of its cells, which `write_table` escaped."""
    return _with_text(table, unescape)


def _text_columns(table: pd.DataFrame) -> list[int]:
    return [number for number, dtype in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(dtype)]


def _with_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return the table with `change` applied to the text of its cells and column names."""
    table = table.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for number in _text_columns(table):
        column = table.iloc[:, number]
        changed = {text: new for text in {*column} if isinstance(text, str) and (new := change(text)) != text}
        if changed:
            table.isetitem(number, [changed.get(text, text) for text in column])
    return table


def usable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a readable image, a label and, in a table of crops, a face.

    The rows are valid for Keras's `ImageDataGenerator.flow_from_dataframe(rows, directory=folder,
    x_col="path" | "face_path", y_col="emotion")`.
    """
    return table.loc[is_usable(table)].reset_index(drop=True)


def is_usable(table: pd.DataFrame) -> pd.Series:
    """Return a mask of the rows that `usable` keeps."""
    return has_image(table) & (table["emotion"] != "")


def has_image(table: pd.DataFrame) -> pd.Series:
    """Return a mask of the rows with a readable image and, in a table of crops, a face."""
    mask = table["status"] == "ok"
    if "face_status" in table.columns:
        mask &= table["face_status"].isin(["found", "whole_image"])
    return mask


def labels_of(table: pd.DataFrame) -> list[str]:
    """Return the table's emotions in class order."""
    return in_class_order(set(table["emotion"]) - {""})


def check_unchanged(rows: pd.DataFrame, folder: Path) -> None:
    """Refuse rows that the data set no longer contains. Call this after reading their crops.

    Steps 1 to 3 may replace images after a table was read. New images can have the old names, and would then get the
    old labels.

    Args:
        rows: Rows of `split.csv` or `faces.csv`, read before the crops.
        folder: The data set's folder.

    Raises:
        InputError: An image has changed, or step 2 is writing the crops.
    """
    columns = ["path", "face_path", "pixel_hash"]
    name = "split.csv" if (folder / "split.csv").is_file() else "faces.csv"
    current = read_table(folder, name)[columns] if (folder / name).is_file() else pd.DataFrame(columns=columns)
    if not set(current.itertuples(index=False, name=None)).issuperset(rows[columns].itertuples(index=False, name=None)):
        raise InputError(f"the crops of {folder} changed while they were read; wait for steps 1 to 3, then run again")


def content_hash(table: pd.DataFrame) -> str:
    """Return a hash of a table's content (SHA-256, 16 hex digits), for caches, cards and provenance records."""
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()[:16]


def split_hash(table: pd.DataFrame) -> str:
    """Return a hash of a data set's training and dev images, which a model card records."""
    rows = usable(table)
    return content_hash(rows.loc[rows["split"].isin(["train", "dev"]), ["path", "pixel_hash", "emotion", "split"]])


def fold_numbers(table: pd.DataFrame, column: str = "fold") -> list[int]:
    """Return the numbers of a split table's folds, `0` ... `K-1`.

    Args:
        table: `split.csv`, made with the strategy `folds`.
        column: `fold`, or `subject_dependent_fold` (subjects may be in several folds).

    Raises:
        InputError: The table has no such folds, or their numbers have gaps.
    """
    names = set(table[column]) - {""} if column in table.columns else set()
    make = "preprocessing.step3_split with --strategy folds"
    if not names and column != "fold" and "fold" in table.columns and (table["subject"] == "").any():
        raise InputError(f"not every image has a subject: the column fold ignores subjects, so there is no {column}")
    if not names:
        raise InputError(f"the split has no {column.replace('_', ' ')}s; make them: {make}")
    if names != set(map(str, range(len(names)))):
        raise InputError(f"the split's column {column} does not contain all numbers from 0; make it again: {make}")
    return list(range(len(names)))


def split_by_fold(table: pd.DataFrame, fold: int, column: str = "fold") -> pd.DataFrame:
    """Return a table whose column `split` makes one fold the test split, the next one dev and the others train.

    Rows without a fold have an empty `split`.

    Raises:
        InputError: The table has no folds.
    """
    folds = fold_numbers(table, column)
    parts = {"": "", str(fold): "test", str((fold + 1) % len(folds)): "dev"}
    return table.assign(split=table[column].map(parts).fillna("train"))
