"""Recognising and reading raw data sets that are trees of images: CK+ sequences, and folders named by emotion.

A raw table has one row per image: `file` (where the image is now), and the inventory's columns but for those that need
its pixels.
"""

import errno
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from preprocessing.archives import is_archive, unpack_all
from preprocessing.command_line import progress_bar
from preprocessing.emotions import CKPLUS_CODES, EMOTIONS, canonical, find
from preprocessing.errors import InputError
from preprocessing.image_tables import OFFICIAL_SPLITS
from preprocessing.label_store import UNSURE
from preprocessing.raw_images import LARGEST_FILE, image_status, pixel_hash, read_gray_or_bgr

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
_LONGEST_CODE = 1000  # bytes of a CK+ emotion file
UNLABELLED = "none"  # in `--map`: no emotion

# Folders above those named by emotion that name no person. A folder with one of the first words belongs to a split,
# whatever else its name says; one made of the second words and numbers alone describes images.
_SPLIT_WORD = re.compile(
    r"(train(ing|val)?|test(ing)?|valid(ation)?|eval(uation)?|devel(opment)?|(val|dev)(?=.)|holdout|(public|private)test|"
    r"[kx]?folds?|splits?|xval)(set|sets|data|dataset|images?|imgs?|pictures?|faces?)?"
)
_COMMON_WORDS = (
    "val dev set sets subset part parts batch chunk public private cv data dataset database db archive images image "
    "img imgs pictures picture pics photos photo faces face crops crop cropped aligned original originals raw "
    "processed augmented gray grey color colour rgb emotion emotions expression expressions labelled labeled all full"
)
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


def read_folders(files: dict[str, Path], mapping: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read images that lie in folders named by emotion.

    The data set's own split is the folder above (`train/angry/1.jpg`), or the next one where the first names a person
    (`train/ann/angry/1.jpg`), or stands in the file's name where Kaggle's FER2013 folders put it
    (`test/angry/PrivateTest_88305.jpg`). Subject and sequence are known where the files are named as in CK+48
    (`S010_004_00000017.png`). Otherwise the subject is the nearest folder above (`ann/angry/1.jpg`) that `_is_person`
    accepts; where that is the same folder for all images, it is the data set's and there are no subjects.

    Args:
        files: The download's.
        mapping: As `parse_mapping` returns it; it comes before the common spellings.

    Raises:
        InputError: an image lies in a folder that names no emotion and is not in the mapping, or the mapping names no
            such folder.
    """
    mapping = mapping or {}
    images = {name: PurePosixPath(name) for name in _images(files)}
    folders = {path.parent.name for path in images.values()}
    _check_folders(images.values(), mapping)
    emotion_of = {folder: mapping.get(folder.casefold(), find(folder)) for folder in folders}
    rows = []
    for name, path in images.items():
        emotion = emotion_of[path.parent.name]
        above = [folder.name for folder in path.parent.parents if folder.name]
        in_name = _FER2013_IMAGE.fullmatch(path.stem)
        nearest = above[: 2 if above and _is_person(above[0]) else 1]
        usages = [in_name["usage"]] if in_name else [folder for folder in nearest if folder.lower() in OFFICIAL_SPLITS]
        rows.append(
            {
                "file": files[name],
                "path": f"images/{name}",
                "emotion": emotion,
                "label_source": "dataset" if emotion else "",
                "usage": next(iter(usages), ""),
                **_sequence_columns(_CKPLUS48_IMAGE.fullmatch(path.stem)),
                "person": next(filter(_is_person, above), ""),
            }
        )
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    people = table["person"].where(table["subject"] == "", "")
    if len(set(people) - {""}) > 1:
        table["subject"] = table["subject"].where(people == "", people)
    return table.drop(columns="person")


def _check_folders(images: Iterable[PurePosixPath], mapping: Mapping[str, str]) -> None:
    """Refuse images in folders that name no emotion, and a mapping of folders that are not there."""
    first: dict[str, PurePosixPath] = {}  # an image of each folder
    for path in images:
        first.setdefault(path.parent.name, path)
    absent = mapping.keys() - {folder.casefold() for folder in first}
    if absent:
        raise InputError(
            f"--map {min(absent)!r}: no image lies in a folder of that name; the folders are "
            f"{', '.join(sorted(first)[:20])}"
        )
    unknown = sorted(folder for folder in first if find(folder) is None and folder.casefold() not in mapping)
    if not unknown:
        return
    accepted = f"accepted folders are {', '.join(EMOTIONS)} and common spellings"
    if not unknown[0]:
        raise InputError(f"image {first['']}: it lies in no folder; {accepted}")
    others = f" (nor do {', '.join(map(repr, unknown[1:10]))})" if unknown[1:] else ""
    raise InputError(
        f"image {first[unknown[0]]}: folder {unknown[0]!r} names no emotion{others}; {accepted}; rename it, or give "
        f"step 1 --map {unknown[0]}=EMOTION, or --map {unknown[0]}={UNLABELLED} to keep its images without a label"
    )


def parse_mapping(texts: Iterable[str]) -> dict[str, str]:
    """Return what `--map` says: the emotion, or an empty string for none, by the folder's name in small letters.

    Args:
        texts: Such as `calm=neutral` or `calm=none`.

    Raises:
        InputError: no such text, an unknown emotion, or two emotions for one folder.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        folder, sign, emotion = text.rpartition("=")
        if not (folder and sign):
            raise InputError(f"--map {text!r} is not FOLDER=EMOTION, such as calm=neutral or calm={UNLABELLED}")
        name = "" if emotion.strip().lower() == UNLABELLED else canonical(emotion)
        if mapping.setdefault(folder.casefold(), name) != name:
            raise InputError(f"--map gives {folder!r} twice, as two emotions; keep one")
    return mapping


def _is_person(folder: str) -> bool:
    """Return whether a folder above those named by emotion may name a person: a name, a code or a number.

    Folders of splits, such as `Training`, `test_images` or `fold_1`, never do; neither do those that describe images,
    such as `set1` or `cropped faces`.
    """
    parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder))
    words = {part.casefold() for part in parts}
    of_split = any(map(_SPLIT_WORD.fullmatch, words | {"".join(parts).casefold()}))
    return not of_split and (not words or not words <= {*_COMMON_WORDS.split()})


def describe_folders(table: pd.DataFrame) -> str:
    """Return in words which emotion each folder's images got, and which folders name subjects.

    Args:
        table: An inventory that was made from folders named by emotion.
    """
    folders = pd.Series([PurePosixPath(path).parent.name for path in table["path"]], index=table.index)
    lines = []
    for emotion in (*EMOTIONS, ""):
        counts = folders[table["emotion"] == emotion].value_counts().sort_index()
        if set(counts.index) - {emotion}:
            names = " + ".join(f"{name} ({count:,})" for name, count in counts.items())
            lines.append(f"{names} -> {emotion or 'no label'}")
    text = f"folders: {'; '.join(lines)}" if lines else ""
    subjects = sorted(set(table["subject"][table["sequence"] == ""]) - {""})
    if subjects:
        shown = ", ".join(subjects[:5]) + ", ..." * (len(subjects) > 5)
        text += f"\nsubjects: {len(subjects):,}, named by the folders above the emotions ({shown})"
    return text.strip()


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
    with file.open(encoding="ascii", errors="replace") as stream:
        text = stream.read(_LONGEST_CODE).strip()
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
