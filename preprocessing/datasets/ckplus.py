"""Read CK+ downloads: image sequences with one emotion code per labelled sequence."""

import math
import re
from pathlib import Path

import pandas as pd

from common.emotions import CKPLUS_CODES
from common.errors import InputError
from common.images import image_files

CKPLUS_IMAGE = re.compile(r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)\.\w+")
CKPLUS_EMOTION = re.compile(
    r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)_emotion\.txt"
)
CKPLUS48_IMAGE = re.compile(r"(?P<subject>S\d+)_(?P<take>\d+)_(?P<frame>\d+)")
_LONGEST_CODE = 1000  # bytes of a CK+ emotion file


def sequence_columns(match: re.Match | None) -> dict[str, str]:
    """Return the columns `subject`, `sequence` and `frame` of a file name; empty strings without a match."""
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
        match = CKPLUS_EMOTION.fullmatch(name)
        if match:
            sequence, emotion = f"{match['subject']}/{match['take']}", _read_code(file, name)
            if labels.setdefault(sequence, emotion) != emotion:
                raise InputError(f"{name} says {emotion}, another file of this sequence {labels[sequence]}; keep one")
    rows = []
    for name, file in image_files(files).items():
        match = CKPLUS_IMAGE.fullmatch(name)
        if match:
            columns = sequence_columns(match)
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
    for match in filter(None, map(CKPLUS_EMOTION.fullmatch, files)):
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


def select_frames(table: pd.DataFrame, frames: str, neutral_first: bool) -> pd.DataFrame:
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
