"""Recognising and reading raw data sets that are trees of images: CK+ sequences, and folders named by emotion.

A raw table has one row per image: `file` (where the image is now), and the inventory's columns but for those that need
its pixels.
"""

import math
import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from preprocessing.archives import is_archive, unpack_all
from preprocessing.command_line import progress_bar
from preprocessing.emotions import CKPLUS_CODES, EMOTIONS, find
from preprocessing.errors import InputError
from preprocessing.image_tables import OFFICIAL_SPLITS
from preprocessing.label_store import UNSURE
from preprocessing.raw_images import image_status, pixel_hash, read_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif", ".jp2", ".avif")
ACCEPTED = (
    "accepted are fer2013.csv, icml_face_data.csv, folders named by emotion (also below train/ and test/), "
    "CK+ (cohn-kanade-images with Emotion) and CK+48, each also in a .zip or .tar.gz"
)

_CKPLUS_IMAGE = re.compile(r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)\.\w+")
_CKPLUS_EMOTION = re.compile(
    r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)_emotion\.txt"
)
_CKPLUS48_IMAGE = re.compile(r"(?P<subject>S\d+)_(?P<take>\d+)_(?P<frame>\d+)")
_FER2013_IMAGE = re.compile(r"(?P<usage>Training|PublicTest|PrivateTest)_\d+")  # as Kaggle's image folders name them


class Kind(StrEnum):
    """What a download turned out to be; the text is shown to the user."""

    FER2013 = "FER2013 table"
    CKPLUS = "CK+ sequences"
    FOLDERS = "folders named by emotion"


def recognise(files: dict[str, Path]) -> Kind | None:
    """Return what a download's files are; None where it does not show before the archives among them are unpacked."""
    if find_fer2013_csv(files):
        return Kind.FER2013
    images = _images(files)
    if any(_CKPLUS_IMAGE.fullmatch(name) for name in images):
        labels_may_be_packed = any(map(is_archive, files)) and not any(map(_CKPLUS_EMOTION.fullmatch, files))
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


def _images(files: dict[str, Path]) -> dict[str, Path]:
    return {name: file for name, file in files.items() if name.lower().endswith(IMAGE_SUFFIXES)}


def read_folders(files: dict[str, Path]) -> pd.DataFrame:
    """Read images that lie in folders named by emotion.

    The data set's own split is the folder above (`train/angry/1.jpg`), or stands in the file's name where Kaggle's
    FER2013 folders put it (`test/angry/PrivateTest_88305.jpg`). Subject and sequence are known where the files are
    named as in CK+48 (`S010_004_00000017.png`).

    Raises:
        InputError: an image lies in a folder that names no emotion.
    """
    rows = []
    for name, file in _images(files).items():
        path = PurePosixPath(name)
        emotion = find(path.parent.name)
        if emotion is None:
            where = f"folder {path.parent.name!r} names no emotion" if path.parent.name else "it lies in no folder"
            raise InputError(f"image {name}: {where}; accepted folders are {', '.join(EMOTIONS)} and common spellings")
        sequence = _CKPLUS48_IMAGE.fullmatch(path.stem)
        in_name, above = _FER2013_IMAGE.fullmatch(path.stem), path.parent.parent.name
        usage = in_name["usage"] if in_name else above if above.lower() in OFFICIAL_SPLITS else ""
        rows.append(
            {"file": file, "path": f"images/{name}", "emotion": emotion, "label_source": "dataset", "usage": usage}
            | _sequence_columns(sequence)
        )
    return pd.DataFrame(rows)


def _sequence_columns(match: re.Match | None) -> dict[str, str]:
    if match is None:
        return dict.fromkeys(["subject", "sequence", "frame"], "")
    subject, take, frame = match["subject"], match["take"], match["frame"]
    return {"subject": subject, "sequence": f"{subject}/{take}", "frame": str(int(frame))}


def read_ckplus(files: dict[str, Path]) -> pd.DataFrame:
    """Read every frame of CK+'s sequences, each with the label of its sequence (see `choose_frames`).

    Returns:
        The raw table, sorted by sequence and frame; the emotion is empty for sequences without a label.

    Raises:
        InputError: an emotion file holds no code 0-7, or contradicts another one, or its sequence has no images.
    """
    labels: dict[str, str] = {}
    for name, file in files.items():
        match = _CKPLUS_EMOTION.fullmatch(name)
        if match:
            sequence, emotion = f"{match['subject']}/{match['take']}", _read_code(file, name)
            if labels.setdefault(sequence, emotion) != emotion:
                raise InputError(f"{name} says {emotion}, another file of this sequence {labels[sequence]}; keep one")
    rows = []
    for name, file in _images(files).items():
        match = _CKPLUS_IMAGE.fullmatch(name)
        if match:
            columns = _sequence_columns(match)
            emotion = labels.get(columns["sequence"], "")
            path = f"images/{columns['sequence']}/{file.name}"
            source = "dataset" if emotion else ""
            rows.append({"file": file, "path": path, "emotion": emotion, "label_source": source, "usage": ""} | columns)
    table = pd.DataFrame(rows).drop_duplicates("path")  # given twice: unpacked, and in an archive beside it
    table = table.sort_values(["sequence", "frame"], key=_in_order, ignore_index=True)
    without_images = sorted(set(labels) - set(table["sequence"]))
    if without_images:
        raise InputError(
            f"sequence {without_images[0]} has an emotion file but no images ({len(without_images)} such sequences); "
            "unpack all of extended-cohn-kanade-images.zip"
        )
    return table


def print_missing_frames(files: dict[str, Path], table: pd.DataFrame) -> None:
    """Print of which CK+ sequences frames are missing, and what stands for a missing first or last one.

    A sequence's frames are numbered from 1 to that of its emotion file, or where it has none to its last picture.

    Args:
        files: The download's.
        table: As `read_ckplus` returns it.
    """
    labelled: dict[str, int] = {}
    for match in filter(None, map(_CKPLUS_EMOTION.fullmatch, files)):
        labelled[f"{match['subject']}/{match['take']}"] = int(match["frame"])
    missing, ends = {}, {}
    for name, numbers in table["frame"].astype(int).groupby(table["sequence"]):
        sequence, there = str(name), set(numbers)
        last = labelled.get(sequence, max(there))
        missing[sequence] = sorted(set(range(1, last + 1)) - there)
        ends[sequence] = [end for end in (1, last) if end not in there]
    lacking = [sequence for sequence, numbers in missing.items() if numbers]
    if not lacking:
        return
    first, count = lacking[0], sum(map(len, missing.values()))
    shown = ", ".join(map(str, missing[first][:5])) + (" ..." if len(missing[first]) > 5 else "")
    print(f"missing: {count:,} frames of {len(lacking):,} sequences ({first} lacks {shown}); what is there is kept")
    without = [sequence for sequence, numbers in ends.items() if numbers]
    if without:
        names = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
        print(
            f"  the first or the labelled last frame is among them in {len(without):,} ({names}): the nearest frame "
            "that is there stands for it, and shows less; unpack the images again"
        )


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


def _in_order(column: pd.Series) -> pd.Series:
    return column.astype(int) if column.name == "frame" else column


def _read_code(file: Path, name: str) -> str:
    """Return the emotion of a CK+ emotion file, which holds a code such as `   3.0000000e+00`."""
    text = file.read_text(encoding="ascii", errors="replace").strip()
    try:
        code = float(text)
    except ValueError:
        code = math.nan
    if code not in range(len(CKPLUS_CODES)):
        raise InputError(f"{name} holds {text[:40]!r}; accepted are the codes 0-7, such as 3.0000000e+00")
    return CKPLUS_CODES[int(code)]


def parse_frames(frames: str) -> int | None:
    """Return how many last frames of a sequence `peak` or `last:K` keeps; None for `all`.

    Raises:
        InputError: neither of them.
    """
    match = re.fullmatch(r"last:([1-9]\d*)", frames)
    if match is None and frames not in ("peak", "all"):
        raise InputError(f"--frames {frames!r} is not peak, all or last:K (K the number of frames, such as last:3)")
    return int(match[1]) if match else 1 if frames == "peak" else None


def choose_frames(table: pd.DataFrame, frames: str, neutral_first: bool) -> pd.DataFrame:
    """Choose the frames of each sequence, which runs from neutral to the peak of its expression.

    `peak` keeps the last frame, `last:K` the last K; they carry the sequence's label. `all` keeps every frame, with the
    label on the last one only, because nobody has said where between neutral and peak the expression begins.

    Args:
        table: Every frame, sorted, each with its sequence's label.
        frames: `peak`, `last:K` or `all`.
        neutral_first: Whether the first frame of each labelled sequence is kept too, labelled neutral; a sequence of a
            single frame has none.

    Raises:
        InputError: `frames` is none of these.
    """
    last = parse_frames(frames)
    groups = table.groupby("sequence")
    from_end = groups.cumcount(ascending=False)
    first = (groups.cumcount() == 0) & (from_end > 0) & (table["emotion"] != "") & neutral_first
    keep = (from_end < (last or len(table))) | first
    table = table.copy()
    table.loc[from_end >= (last or 1), ["emotion", "label_source"]] = ""
    table.loc[first, ["emotion", "label_source"]] = ["neutral", "first_frame"]
    return table[keep].reset_index(drop=True)


def add_labels(table: pd.DataFrame, labels: pd.DataFrame, key: Literal["sequence", "path"]) -> pd.DataFrame:
    """Give people's labels to images that have none, and print how many.

    What several people labelled gets a label where all who are sure say the same.

    Args:
        table: A raw table.
        labels: As `label_store.read_labels` returns them.
        key: Which of the labels are wanted. A sequence's label is given before its frames are chosen (they say which of
            them show it), an image's afterwards.

    Returns:
        The table; labels that are new have the `label_source` `manual`, or `manual:ANNOTATOR`, or `manual:ANN+BOB`.

    Raises:
        InputError: a label names what is not there, or contradicts the data set.
    """
    labels = labels[labels["key"] == key]
    if labels.empty:
        return table
    absent = labels[~labels["name"].isin(set(table[key]) - {""})]
    if len(absent):
        row, hint = absent.iloc[0], ", or --frames leaves it out" if key == "path" else ""
        raise InputError(f"{row['file']}: {key} {row['name']!r} is not in the data set{hint}; remove its lines")
    sure = labels[labels["emotion"] != UNSURE]
    labelled = table[table["emotion"] != ""].drop_duplicates(key).set_index(key)
    sure = sure.assign(already=sure["name"].map(labelled["emotion"]).fillna(""))
    conflict = sure[(sure["already"] != "") & (sure["already"] != sure["emotion"])]
    if len(conflict):
        row = conflict.iloc[0]
        raise InputError(
            f"{row['file']}: {key} {row['name']} is {row['already']} in the data set already, not {row['emotion']}; "
            "remove that line"
        )
    new = (
        sure[sure["already"] == ""]
        .groupby("name")
        .agg(emotion=("emotion", "first"), opinions=("emotion", "nunique"), source=("annotator", _label_source))
    )
    disputed = new.index[new["opinions"] > 1]
    new = new.drop(index=disputed)
    unsure = set(labels["name"]) - set(sure["name"])
    print(f"labelled by hand: {len(new):,} ({key}); left without a label: nobody is sure of {len(unsure):,}")
    if len(disputed):
        named = ", ".join(disputed[:5]) + ", ..." * (len(disputed) > 5)
        print(f"left without a label: annotators disagree about {len(disputed):,} ({named}); settle them on the page")
    added = table[key].isin(new.index)
    table = table.copy()
    table.loc[added, "emotion"] = table.loc[added, key].map(new["emotion"])
    table.loc[added, "label_source"] = table.loc[added, key].map(new["source"])
    return table


def _label_source(annotators: pd.Series) -> str:
    names = "+".join(sorted(set(annotators) - {""}))
    return f"manual:{names}" if names else "manual"


def link_images(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Hard-link a raw table's images, or copy them where links cannot be made, and look at their pixels.

    Args:
        table: A raw table.
        folder: What the column `path` is relative to.

    Returns:
        The table without `file`, with `pixel_hash` (empty for an unreadable file) and `status`.
    """

    def link(row: tuple[Path, str]) -> tuple[str, str]:
        file, path = row
        _link_or_copy(file, folder / path)
        image = read_image(file)
        return ("", "unreadable") if image is None else (pixel_hash(image), image_status(image))

    for parent in {(folder / path).parent for path in table["path"]}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool, progress_bar() as progress:
        rows = pool.map(link, zip(table["file"], table["path"], strict=True))
        looked_at = list(progress.track(rows, total=len(table), description="images"))
    hashes, statuses = zip(*looked_at, strict=True)
    return table.drop(columns="file").assign(pixel_hash=hashes, status=statuses)


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(file, target)
