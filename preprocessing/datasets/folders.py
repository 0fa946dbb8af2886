"""Read image folders named by emotion."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from common.emotions import EMOTIONS, canonical, find
from common.errors import InputError
from common.images import image_files
from preprocessing.datasets.ckplus import CKPLUS48_IMAGE, sequence_columns
from preprocessing.tables import OFFICIAL_SPLITS

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
    images = {name: PurePosixPath(name) for name in image_files(files)}
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
                **sequence_columns(CKPLUS48_IMAGE.fullmatch(path.stem)),
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
