"""Read images in folders named by emotion."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from common.command_line import shortened
from common.emotions import EMOTIONS, canonical, find
from common.errors import InputError
from common.images import image_files
from preprocessing.datasets.ckplus import CKPLUS48_IMAGE, sequence_columns
from preprocessing.tables import OFFICIAL_SPLITS

UNLABELLED = "none"  # in `--map`: no emotion
# Words in the names of folders that are no person's. A folder with a split word belongs to a split. A folder of common
# words and numbers only describes images.
_SPLIT_WORD = re.compile(
    r"(train(ing|val)?|test(ing)?|valid(ation)?|eval(uation)?|devel(opment)?|(val|dev)(?=.)|holdout|(public|private)test|"
    r"[kx]?folds?|splits?|xval)(set|sets|data|dataset|images?|imgs?|pictures?|faces?)?"
)
_COMMON_WORDS = (
    "val dev set sets subset part parts batch chunk public private cv data dataset database db archive images image "
    "img imgs pictures picture pics photos photo faces face crops crop cropped aligned original originals raw "
    "processed augmented gray grey color colour rgb emotion emotions expression expressions labelled labeled all full"
)
_FER2013_IMAGE = re.compile(r"(?P<usage>Training|PublicTest|PrivateTest)_\d+")  # in Kaggle's image folders


def read_folders(files: dict[str, Path], mapping: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read images in folders named by emotion.

    The data set's own split is the folder above (`train/angry/1.jpg`), or the next one above a subject's folder
    (`train/ann/angry/1.jpg`), or part of the file name in Kaggle's FER2013 folders
    (`test/angry/PrivateTest_88305.jpg`). Subject and sequence come from file names as in CK+48
    (`S010_004_00000017.png`). Otherwise the subject is the nearest folder above (`ann/angry/1.jpg`) that `_is_person`
    accepts, unless that is one folder for all images.

    Args:
        files: The download's files.
        mapping: Emotions of folder names, as `parse_mapping` returns them; they override the common spellings.

    Raises:
        InputError: A folder's name is no emotion and is not mapped, or a mapped folder does not exist.
    """
    mapping = mapping or {}
    images = {name: PurePosixPath(name) for name in image_files(files)}
    _check_folders(images.values(), mapping)
    if not images:
        return pd.DataFrame()
    table = pd.DataFrame([_row(name, path, mapping) | {"file": files[name]} for name, path in images.items()])
    people = table["person"].where(table["subject"] == "", "")
    if len(set(people) - {""}) > 1:
        table["subject"] = table["subject"].where(people == "", people)
    return table.drop(columns="person")


def _row(name: str, path: PurePosixPath, mapping: Mapping[str, str]) -> dict[str, str | None]:
    folder = path.parent.name
    emotion = mapping.get(folder.casefold(), find(folder))
    above = [parent.name for parent in path.parent.parents if parent.name]
    in_name = _FER2013_IMAGE.fullmatch(path.stem)
    nearest = above[: 2 if above and _is_person(above[0]) else 1]
    usages = [in_name["usage"]] if in_name else [parent for parent in nearest if parent.lower() in OFFICIAL_SPLITS]
    return {
        "path": f"images/{name}",
        "emotion": emotion,
        "label_source": "dataset" if emotion else "",
        "usage": next(iter(usages), ""),
        **sequence_columns(CKPLUS48_IMAGE.fullmatch(path.stem)),
        "person": next(filter(_is_person, above), ""),
    }


def _check_folders(images: Iterable[PurePosixPath], mapping: Mapping[str, str]) -> None:
    """Refuse images in folders without an emotion, and mappings of absent folders."""
    first: dict[str, PurePosixPath] = {}  # an image of each folder
    for path in images:
        first.setdefault(path.parent.name, path)
    absent = mapping.keys() - {folder.casefold() for folder in first}
    if absent:
        raise InputError(
            f"--map {min(absent)!r}: no image is in a folder of that name; the folders are "
            f"{', '.join(sorted(first)[:20])}"
        )
    unknown = sorted(folder for folder in first if find(folder) is None and folder.casefold() not in mapping)
    if not unknown:
        return
    accepted = f"accepted folders are {', '.join(EMOTIONS)} and common spellings"
    if not unknown[0]:
        raise InputError(f"image {first['']} is in no folder; {accepted}")
    others = f" (as are {', '.join(map(repr, unknown[1:10]))})" if unknown[1:] else ""
    raise InputError(
        f"image {first[unknown[0]]}: folder {unknown[0]!r} is no emotion{others}; {accepted}; rename it, or give "
        f"step 1 --map {unknown[0]}=EMOTION, or --map {unknown[0]}={UNLABELLED} to keep its images without a label"
    )


def parse_mapping(texts: Iterable[str]) -> dict[str, str]:
    """Return the emotion (empty for none) of each folder name, in lower case, of `--map`.

    Args:
        texts: Such as `calm=neutral` or `calm=none`.

    Raises:
        InputError: A text has another form, an emotion is unknown, or a folder has two emotions.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        folder, sign, emotion = text.rpartition("=")
        if not (folder and sign):
            raise InputError(f"--map {text!r} is not FOLDER=EMOTION, such as calm=neutral or calm={UNLABELLED}")
        name = "" if emotion.strip().lower() == UNLABELLED else canonical(emotion)
        if mapping.setdefault(folder.casefold(), name) != name:
            raise InputError(f"--map gives {folder!r} two emotions; keep one")
    return mapping


def _is_person(folder: str) -> bool:
    """Return whether a folder above the emotions can be a person's: a name, a code or a number.

    Folders of splits, such as `Training`, `test_images` or `fold_1`, are not; nor are descriptions of images, such as
    `set1` or `cropped faces`.
    """
    parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder))
    words = {part.casefold() for part in parts}
    is_split = any(map(_SPLIT_WORD.fullmatch, words | {"".join(parts).casefold()}))
    return not is_split and (not words or not words <= {*_COMMON_WORDS.split()})


def describe_folders(table: pd.DataFrame) -> str:
    """Return the emotion of each folder whose name is not canonical, and the subjects that folders name, as text.

    Args:
        table: An inventory of folders named by emotion.
    """
    folders = pd.Series([PurePosixPath(path).parent.name for path in table["path"]], index=table.index)
    renamed = []
    for emotion in (*EMOTIONS, ""):
        counts = folders[table["emotion"] == emotion].value_counts().sort_index()
        if set(counts.index) - {emotion}:
            names = " + ".join(f"{name} ({count:,})" for name, count in counts.items())
            renamed.append(f"{names} -> {emotion or 'no label'}")
    lines = [f"folders: {'; '.join(renamed)}"] if renamed else []
    subjects = sorted(set(table["subject"][table["sequence"] == ""]) - {""})
    if subjects:
        lines.append(f"subjects: {len(subjects):,}, from the folders above the emotions ({shortened(subjects)})")
    return "\n".join(lines)
