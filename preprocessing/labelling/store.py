"""Annotators' labels: read them, append to them, and measure how well two annotators agree.

The labelling page keeps one file per annotator, `data/NAME/labels/ANNOTATOR.csv`, with the columns `sequence`,
`emotion`, `annotator` and `time` (UTC). It is an append-only log: a later line replaces an earlier one about the same
sequence, and `undo` removes the sequence's latest label. A kill can only cut the last line, which the page has not yet
confirmed. To add another annotator's labels, copy the file into the folder.
"""

import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import pandas as pd

from common.csv_text import check_columns
from common.emotions import EMOTIONS, canonical
from common.errors import InputError
from common.processes import exclusive_lock

UNSURE = "unsure"  # a choice: the annotator cannot decide
UNDO = "undo"  # in a log: the sequence's latest label is removed
LOG_COLUMNS = ["sequence", "emotion", "annotator", "time"]
_TABLE_COLUMNS = ["file", "key", "name", "annotator", "emotion", "first"]
_HEADER = ",".join(LOG_COLUMNS).encode()
_MAX_SIZE = 100_000_000  # bytes: more than a million labels; files are read as a whole
_WHOLE_LINE = re.compile(rb"[^,]+,\w+,[^,]+,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\r?")

# One annotator's (sequence, emotion or UNSURE) in the order of choosing, without what was undone.
Choices = list[tuple[str, str]]


def label_files(place: Path) -> dict[str, Path]:
    """Return the label files of `--labels` by name: a single file, or the CSV files of a folder.

    Raises:
        InputError: There is no such file.
    """
    if place.is_file():
        return {place.name: place}
    if not place.is_dir():
        raise InputError(f"--labels {place} does not exist; give a CSV file, or a folder of CSV files")
    files = {file.name: file for file in sorted(place.glob("*.csv")) if not file.name.startswith(".")}
    if not files:
        raise InputError(f"--labels {place} contains no .csv file; preprocessing.label_peaks writes them")
    return files


def read_labels(files: Iterable[Path]) -> pd.DataFrame:
    """Read the labels of all annotators.

    Args:
        files: The labelling page's logs, or hand-made CSV files with the columns `sequence` (such as `S005/001`) or
            `path` (as in inventory.csv), `emotion` (or `unsure`), and optionally `annotator`.

    Returns:
        One row per annotator and image or sequence: `file`, `key` (`sequence` or `path`), its `name`, `annotator`
        (empty if unknown), `emotion` (canonical or `unsure`) and `first`, the annotator's first choice.

    Raises:
        InputError: A file is not such a table or contradicts itself, or two files have the same annotator.
    """
    tables, owners = [pd.DataFrame(columns=_TABLE_COLUMNS, dtype=str)], {}
    for file in files:
        table = _read_file(file)
        for annotator in sorted(set(table["annotator"])):
            other = owners.setdefault(annotator.casefold(), file)
            if other != file:
                raise InputError(
                    f"{other} and {file} both contain labels by annotator {annotator!r}; rename one annotator (in its "
                    "column, too), or move a copy elsewhere"
                )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _read_file(file: Path) -> pd.DataFrame:
    key, is_log, lines = _read_lines(file)
    rows = []
    for annotator in dict.fromkeys(by for _, _, by in lines):
        choices = _without_undone([(name, emotion) for name, emotion, by in lines if by == annotator])
        first, last = dict(reversed(choices)), dict(choices)
        if not is_log and (disputed := [name for name in last if first[name] != last[name]]):
            raise InputError(f"{file}: {key} {disputed[0]!r} has two labels; keep one")
        rows += [(str(file), key, name, annotator, emotion, first[name]) for name, emotion in last.items()]
    return pd.DataFrame(rows, columns=_TABLE_COLUMNS, dtype=str)


def _read_lines(file: Path) -> tuple[str, bool, list[tuple[str, str, str]]]:
    """Return a file's key (`sequence` or `path`), whether it is a log, and its lines: name, choice, annotator."""
    if file.stat().st_size > _MAX_SIZE:
        raise InputError(f"{file} is larger than {_MAX_SIZE / 1e6:.0f} MB; give a table of labels")
    try:
        check_columns(file)
        content = _without_cut_line(file.read_bytes()).decode("utf-8-sig")
        table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False, skipinitialspace=True).fillna("")
    except ValueError as error:
        raise InputError(f"{file} is not a readable CSV table ({error})") from error
    keys = [key for key in ("sequence", "path") if key in table.columns]
    if len(keys) != 1 or "emotion" not in table.columns:
        raise InputError(
            f"{file} has the columns {', '.join(table.columns)}; needed are emotion, and either sequence (such as "
            "S005/001) or path"
        )
    is_log = set(LOG_COLUMNS) <= set(table.columns)
    try:
        emotions = [_parse_choice(text, is_log) for text in table["emotion"]]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    annotators = table["annotator"] if "annotator" in table.columns else [""] * len(table)
    return keys[0], is_log, list(zip(table[keys[0]], emotions, annotators, strict=True))


def _without_cut_line(content: bytes) -> bytes:
    """Return a file's content; for a log, without a last line that was cut while it was written."""
    before, newline, last = content.rpartition(b"\n")
    if not newline:
        return _HEADER if _HEADER.startswith(content) else content
    is_log = content.removeprefix(b"\xef\xbb\xbf").startswith(_HEADER)
    return before + newline if is_log and not _WHOLE_LINE.fullmatch(last) else content


def _parse_choice(text: str, is_log: bool) -> str:
    word = text.strip().lower()
    return word if word == UNSURE or (is_log and word == UNDO) else canonical(text)


def _without_undone(lines: Choices) -> Choices:
    """Return one annotator's choices without those that a later line undoes."""
    choices: Choices = []
    for name, emotion in lines:
        if emotion != UNDO:
            choices.append((name, emotion))
        elif earlier := [index for index, choice in enumerate(choices) if choice[0] == name]:
            choices.pop(earlier[-1])
    return choices


@dataclass(frozen=True)
class Agreement:
    """Agreement of two annotators on what both gave an emotion; `unsure` is left out.

    Attributes:
        annotators: The two annotators.
        count, kappa: Number of compared sequences, and Cohen's kappa (-1 to 1) of the current labels.
        first_count, first_kappa: The same for the first choices, made independently of each other.
    """

    annotators: tuple[str, str]
    count: int
    kappa: float | None
    first_count: int
    first_kappa: float | None


def agreements(labels: pd.DataFrame) -> list[Agreement]:
    """Return the agreement of every two annotators of a table from `read_labels`.

    Kappa is None where both annotators used only one emotion.
    """
    found = []
    for one, other in combinations(sorted(set(labels["annotator"])), 2):
        values = []
        for column in ("emotion", "first"):
            labelled = labels[labels[column] != UNSURE].set_index(["key", "name"])
            both = [labelled.loc[labelled["annotator"] == annotator, column] for annotator in (one, other)]
            pairs = pd.concat(both, axis=1, join="inner", keys=["one", "other"])
            values += [len(pairs), _kappa(pairs["one"].tolist(), pairs["other"].tolist())]
        found.append(Agreement((one, other), *values))
    return found


def _kappa(one: list[str], other: list[str]) -> float | None:
    if len({*one, *other}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # late: it takes a second to import

    return float(cohen_kappa_score(one, other))


def disagreements(labels: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the emotion by annotator for each image or sequence with different emotions; `unsure` is left out."""
    labelled = labels[labels["emotion"] != UNSURE]
    disputed = labelled[labelled.groupby(["key", "name"])["emotion"].transform("nunique") > 1]
    return {
        str(name): dict(zip(rows["annotator"], rows["emotion"], strict=True))
        for name, rows in disputed.groupby("name", sort=True)
    }


class ConflictError(Exception):
    """The choice was changed in another window meanwhile; nothing was written."""


class LabelStore:
    """One annotator's log, which only this process writes to; see `open_store`. Threads may share it."""

    def __init__(self, file: Path, annotator: str, log: BinaryIO, choices: Choices):
        self.file = file
        self.annotator = annotator
        self._log = log
        self._size = os.fstat(log.fileno()).st_size  # bytes, all of them on disk
        self._choices = choices
        self._lock = Lock()

    def choices(self) -> Choices:
        """Return the current choices in the order of choosing."""
        with self._lock:
            return list(self._choices)

    def choose(self, sequence: str, emotion: str, seen: str) -> None:
        """Write a choice. It is on disk when this returns.

        Args:
            sequence: Such as `S005/001`.
            emotion: A canonical emotion, or `unsure`.
            seen: The sequence's choice that the page showed before, empty for none.

        Raises:
            ConflictError: The sequence's choice is not `seen` any more.
            InputError: The emotion is unknown, or another program changed the file.
            OSError: The disk accepts no more data; the file is unchanged.
        """
        if emotion not in (*EMOTIONS, UNSURE):
            raise InputError(f"unknown emotion {emotion!r}; accepted are {', '.join(EMOTIONS)} and {UNSURE}")
        with self._lock:
            self._check_seen(sequence, seen)
            if emotion != seen:
                self._append(sequence, emotion)
                self._choices.append((sequence, emotion))

    def undo(self, sequence: str, seen: str) -> None:
        """Remove a sequence's latest choice, so that the previous one applies again; `seen` as in `choose`.

        Raises:
            ConflictError, InputError, OSError: As `choose`.
        """
        with self._lock:
            self._check_seen(sequence, seen)
            if not seen:
                raise InputError(f"{sequence} has no choice to undo")
            self._append(sequence, UNDO)
            self._choices = _without_undone([*self._choices, (sequence, UNDO)])

    def _check_seen(self, sequence: str, seen: str) -> None:
        now = dict(self._choices).get(sequence, "")
        if now != seen:
            raise ConflictError(f"{sequence} was changed to {now or 'no choice'} in another window; look again")

    def _append(self, sequence: str, emotion: str) -> None:
        """Write one line to disk as a whole, or leave the file as it was."""
        status = os.fstat(self._log.fileno())
        if not self.file.exists() or not os.path.samestat(self.file.stat(), status):
            raise InputError(f"{self.file} was moved or removed while the page is open; put it back, or start again")
        if status.st_size != self._size:
            raise InputError(f"{self.file} was changed by another program while the page is open; start again")
        line = ",".join([sequence, emotion, self.annotator, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"]) + "\n"
        try:
            if self._log.write(line.encode()) < len(line.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            os.fsync(self._log.fileno())
        except OSError:
            self._log.truncate(self._size)
            raise
        self._size += len(line.encode())


@contextmanager
def open_store(folder: Path, annotator: str) -> Iterator[LabelStore]:
    """Open an annotator's log for writing, or create it. A line that a kill cut is removed.

    Raises:
        InputError: The name cannot be a file name, differs from another annotator's only in case, or is in use by
            another process.
    """
    if not re.fullmatch(r"[^\W_][\w-]{0,39}", annotator):
        raise InputError(f"--annotator {annotator!r} is not a plain name: accepted are 1-40 letters, digits, - and _")
    for file in folder.glob("*.csv"):
        if file.stem != annotator and file.stem.casefold() == annotator.casefold():
            raise InputError(f"--annotator {annotator}: {file} exists already; give that name, or another one")
    file = folder / f"{annotator}.csv"
    with exclusive_lock(folder / f".{annotator}", "or give another --annotator"), file.open("ab+", buffering=0) as log:
        choices = _read_log(file, annotator)  # before anything is written: the file may not be a log
        _repair(log)
        yield LabelStore(file, annotator, log, choices)


def _repair(log: BinaryIO) -> None:
    """Complete a log's header, and remove a last line that was cut."""
    log.seek(0)
    content = log.read()
    whole = _without_cut_line(content)
    if len(whole) < len(content):
        log.truncate(len(whole))
    missing = whole[len(content) :] + (b"" if whole.endswith(b"\n") else b"\n")
    if missing:
        log.write(missing)
        os.fsync(log.fileno())


def _read_log(file: Path, annotator: str) -> Choices:
    _, is_log, lines = _read_lines(file)
    if not is_log:
        raise InputError(f"{file} was not written by the labelling page; keep your own labels in another folder")
    if others := sorted({by for _, _, by in lines} - {annotator}):
        raise InputError(f"{file} contains labels by {others[0]!r}, not {annotator!r}; rename it to {others[0]}.csv")
    return _without_undone([(name, emotion) for name, emotion, _ in lines])
