"""The log: one row per face and frame, as CSV or JSON lines."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.csv_text import write_row
from realtime.recognition import Recognition, Result
from realtime.sinks.files import RowFile


class FaceLog:
    """Sink that writes one row per face and frame. A killed program loses no frame that was written.

    A `.csv` has a header; a `.jsonl` has one object per line with the same names and true JSON types.

    | column | content |
    |---|---|
    | `time` | seconds since the first frame of the video |
    | `frame` | index of the frame in its video, or of the picture among the files; from 0 |
    | `name` | file, camera or stream |
    | `track_id` | from 1, kept while the face is tracked; 0 while `tentative`; empty (null) for images |
    | `box_left`, `box_top`, `box_width`, `box_height` | pixels |
    | `label` | the label shown: an emotion, or `unsure` |
    | `probability` | of the most probable label shown, 0-1 |
    | `unsure` | 1: that probability is below the abstention threshold |
    | `tentative` | 1: only one detection has found the face, so it may be a false detection |
    | `p_<emotion>` | probability of each emotion, in class order; smoothed over time except with `--raw` |

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, labels: Sequence[str]):
        self._is_json = file.suffix.lower() == ".jsonl"
        self._labels, self._columns = labels, log_columns(labels)
        self._rows = RowFile(f"--log {file}", file)
        if not self._is_json:
            self._rows.write(csv_text([self._columns]))

    def write(self, result: Result) -> None:
        """Add a row for each face of a frame.

        Raises:
            InputError: the file cannot be written.
        """
        rows = log_rows(result, self._labels)
        if self._is_json:
            text = "".join(json.dumps(dict(zip(self._columns, row, strict=True))) + "\n" for row in rows)
        else:
            text = csv_text(rows)
        self._rows.write(text)

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: the system could not write all rows.
        """
        self._rows.close()


def log_columns(labels: Sequence[str]) -> list[str]:
    """Return the column names of a log."""
    box = ["box_left", "box_top", "box_width", "box_height"]
    shown = ["label", "probability", "unsure", "tentative"]
    return ["time", "frame", "name", "track_id", *box, *shown, *(f"p_{label}" for label in labels)]


def log_rows(result: Result, labels: Sequence[str]) -> list[list[Any]]:
    """Return the rows of a frame's faces, with the columns of `log_columns`."""
    return [_row(result, each, labels) for each in result.recognitions]


def _row(result: Result, recognition: Recognition, labels: Sequence[str]) -> list[Any]:
    frame, face = result.frame, recognition.face
    track_id = 0 if recognition.tentative else recognition.track_id or None
    box = [round(float(value), 1) for value in (face.left, face.top, face.width, face.height)]
    shown = [recognition.shown, round(recognition.probability, 5), recognition.unsure, recognition.tentative]
    probabilities = [round(recognition.probabilities[label], 5) for label in labels]
    return [round(frame.time, 3), frame.index, frame.name, track_id, *box, *shown, *probabilities]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as lines of CSV: true is 1, and text that a spreadsheet would run as a formula is escaped."""
    text = io.StringIO()
    for row in rows:
        write_row(text, [int(cell) if isinstance(cell, bool) else cell for cell in row])
    return text.getvalue()
