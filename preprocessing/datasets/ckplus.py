"""Read CK+ downloads: image sequences with one emotion code per labelled sequence."""

import math
import re
from pathlib import Path

import pandas as pd

from common.command_line import shortened
from common.emotions import CKPLUS_CODES
from common.errors import InputError
from common.images import image_files

CKPLUS_IMAGE = re.compile(r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)\.\w+")
CKPLUS_EMOTION = re.compile(
    r"(?:.*/)?(?P<subject>S\d+)/(?P<take>\d+)/(?P=subject)_(?P=take)_(?P<frame>\d+)_emotion\.txt"
)
CKPLUS48_IMAGE = re.compile(r"(?P<subject>S\d+)_(?P<take>\d+)_(?P<frame>\d+)")
_MAX_CODE = 1000  # bytes read of an emotion file


def sequence_columns(match: re.Match | None) -> dict[str, str]:
    """Return the columns `subject`, `sequence` and `frame` of a file name; empty strings without a match."""
    if match is None:
        return dict.fromkeys(["subject", "sequence", "frame"], "")
    subject, take, frame = match["subject"], match["take"], match["frame"]
    return {"subject": subject, "sequence": f"{subject}/{take}", "frame": str(int(frame))}


def read_ckplus(files: dict[str, Path]) -> pd.DataFrame:
    """Read every frame of CK+'s sequences, each with the label of its sequence (see `select_frames`).

    Returns:
        The raw table, sorted by sequence and frame; the emotion is empty for unlabelled sequences.

    Raises:
        InputError: An emotion file has no code 0-7 or contradicts another one, or its sequence has no images.
    """
    labels = _read_labels(files)
    rows = []
    for name, file in image_files(files).items():
        if match := CKPLUS_IMAGE.fullmatch(name):
            columns = sequence_columns(match)
            emotion = labels.get(columns["sequence"], "")
            path = f"images/{columns['sequence']}/{file.name}"
            source = "dataset" if emotion else ""
            rows.append({"file": file, "path": path, "emotion": emotion, "label_source": source, "usage": ""} | columns)
    table = pd.DataFrame(rows).drop_duplicates("path")  # a folder and its archive may both be there
    table = table.assign(number=table["frame"].astype(int)).sort_values(["sequence", "number"], ignore_index=True)
    without_images = sorted(set(labels) - set(table["sequence"]))
    if without_images:
        raise InputError(
            f"sequence {without_images[0]} has an emotion file but no images ({len(without_images)} such sequences); "
            "unpack all of extended-cohn-kanade-images.zip"
        )
    return table.drop(columns="number")


def _read_labels(files: dict[str, Path]) -> dict[str, str]:
    """Return the emotion of each labelled sequence."""
    labels: dict[str, str] = {}
    for name, file in files.items():
        if match := CKPLUS_EMOTION.fullmatch(name):
            sequence, emotion = f"{match['subject']}/{match['take']}", _read_code(file, name)
            if labels.setdefault(sequence, emotion) != emotion:
                raise InputError(f"{name} says {emotion}, another file of this sequence {labels[sequence]}; keep one")
    return labels


def _read_code(file: Path, name: str) -> str:
    """Return the emotion of a CK+ emotion file, which contains a code such as `   3.0000000e+00`."""
    with file.open(encoding="ascii", errors="replace") as stream:
        text = stream.read(_MAX_CODE).strip()
    try:
        code = float(text)
    except ValueError:
        code = math.nan
    if code not in range(len(CKPLUS_CODES)):
        raise InputError(f"{name} contains {text[:40]!r}; accepted are the codes 0-7, such as 3.0000000e+00")
    return CKPLUS_CODES[int(code)]


def print_missing_frames(files: dict[str, Path], table: pd.DataFrame) -> None:
    """Print which CK+ sequences lack frames, from 1 to the number in the emotion file or, without one, the last image.

    Args:
        files: The download's files.
        table: As `read_ckplus` returns it.
    """
    matches = filter(None, map(CKPLUS_EMOTION.fullmatch, files))
    labelled = {f"{match['subject']}/{match['take']}": int(match["frame"]) for match in matches}
    missing: dict[str, set[int]] = {}
    for name, numbers in table["frame"].astype(int).groupby(table["sequence"]):
        last = labelled.get(str(name), numbers.max())
        missing[str(name)] = set(range(1, last + 1)) - set(numbers)
    incomplete = [name for name, numbers in missing.items() if numbers]
    without_peak = [name for name in incomplete if labelled.get(name) in missing[name]]
    if incomplete:
        count = sum(map(len, missing.values()))
        print(f"missing: {count:,} frames of {len(incomplete):,} sequences ({shortened(incomplete)})")
    if without_peak:
        print(f"missing: the labelled peak of {shortened(without_peak)}; the frame before it is used")


def parse_frames(frames: str) -> int | None:
    """Return how many last frames of a sequence `peak` or `last:K` keeps; None for `all`.

    Raises:
        InputError: `frames` is none of these.
    """
    match = re.fullmatch(r"last:([1-9]\d*)", frames)
    if match is None and frames not in ("peak", "all"):
        raise InputError(f"--frames {frames!r} is not peak, all or last:K (K the number of frames, such as last:3)")
    return int(match[1]) if match else 1 if frames == "peak" else None


def select_frames(table: pd.DataFrame, frames: str, neutral_first: bool) -> pd.DataFrame:
    """Select the frames of each sequence, which runs from neutral to the peak of its expression.

    `peak` keeps the last frame and `last:K` the last K; they get the sequence's label. `all` keeps every frame, with
    the label on the last one only, because the onset of the expression is not annotated.

    Args:
        table: Every frame, sorted, each with its sequence's label.
        frames: `peak`, `last:K` or `all`.
        neutral_first: Also keep the first frame of each labelled sequence of two frames or more, labelled neutral.

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
