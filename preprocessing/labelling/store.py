"""The labels that people give: reading them, appending to them, and how far two people agree.

The labelling page keeps one file per annotator in a folder, `data/NAME/labels/ANNOTATOR.csv`, with the columns
`sequence`, `emotion`, `annotator` and `time` (UTC). It is a log that is only appended to: a later line about a sequence
replaces the earlier one, and `undo` takes the sequence's latest choice back. So nothing that was chosen is ever lost, a
kill can cut no more than a last line that the page has not confirmed, and a colleague's file is added by copying it.
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

from common.emotions import EMOTIONS, canonical
from common.errors import InputError

UNSURE = "unsure"  # a choice: this person cannot tell
UNDO = "undo"  # in a log: the sequence's latest choice is taken back
LOG_COLUMNS = ["sequence", "emotion", "annotator", "time"]
_TABLE_COLUMNS = ["file", "key", "name", "annotator", "emotion", "first"]
_HEADER = ",".join(LOG_COLUMNS).encode()
_LARGEST_FILE = 100_000_000  # bytes: more than a million labels; the file is read as a whole
_WHOLE_LINE = re.compile(rb"[^,]+,\w+,[^,]+,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\r?")

# Of one person: (sequence, emotion or UNSURE) in the order of choosing, without what was taken back.
Choices = list[tuple[str, str]]


def label_files(place: Path) -> dict[str, Path]:
    """Return the label files that `--labels` means, by name: the file itself, or the CSV files of a folder.

    Raises:
        InputError: there is none.
    """
    if place.is_file():
        return {place.name: place}
    if not place.is_dir():
        raise InputError(f"--labels {place} does not exist; give a CSV file, or a folder of them")
    files = {file.name: file for file in sorted(place.glob("*.csv")) if not file.name.startswith(".")}
    if not files:
        raise InputError(f"--labels {place} holds no .csv file; label with: python -m preprocessing.label_peaks")
    return files


def read_labels(files: Iterable[Path]) -> pd.DataFrame:
    """Read everybody's labels.

    Args:
        files: The labelling page's logs, or CSV files written by hand with the columns `sequence` (such as `S005/001`)
            or `path` (as in inventory.csv), `emotion` (or `unsure`), and optionally `annotator`.

    Returns:
        One row per image or sequence and annotator: `file`, `key` (`sequence` or `path`), `name` (of it), `annotator`
        (empty where not told), `emotion` (canonical, or `unsure`) and `first`, which was chosen before `emotion`
        replaced it.

    Raises:
        InputError: a file is no such table or contradicts itself, or two files are by annotators of one name.
    """
    tables, owners = [pd.DataFrame(columns=_TABLE_COLUMNS, dtype=str)], {}
    for file in files:
        table = _read_file(file)
        for annotator in sorted(set(table["annotator"])):
            other = owners.setdefault(annotator.casefold(), file)
            if other != file:
                raise InputError(
                    f"{other} and {file} both hold labels by annotator {annotator!r}; two people need two names "
                    "(change the column in one of the files), and a copy must go elsewhere"
                )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _read_file(file: Path) -> pd.DataFrame:
    key, is_log, lines = _read_lines(file)
    rows = []
    for annotator in dict.fromkeys(by for _, _, by in lines):
        choices = _standing([(name, emotion) for name, emotion, by in lines if by == annotator])
        first, last = dict(reversed(choices)), dict(choices)
        if not is_log and (disputed := [name for name in last if first[name] != last[name]]):
            raise InputError(f"{file}: {key} {disputed[0]!r} has two labels; keep one")
        rows += [(str(file), key, name, annotator, emotion, first[name]) for name, emotion in last.items()]
    return pd.DataFrame(rows, columns=_TABLE_COLUMNS, dtype=str)


def _read_lines(file: Path) -> tuple[str, bool, list[tuple[str, str, str]]]:
    """Return a file's key (sequence or path), whether it is a log, and its lines: name, choice, annotator."""
    if file.stat().st_size > _LARGEST_FILE:
        raise InputError(f"{file} is no table of labels: it has more than {_LARGEST_FILE / 1e6:.0f} MB; give another")
    try:
        content = _without_cut_line(file.read_bytes()).decode("utf-8-sig")
        table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False, skipinitialspace=True).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable CSV table ({error})") from error
    keys = [key for key in ("sequence", "path") if key in table.columns]
    if len(keys) != 1 or "emotion" not in table.columns:
        raise InputError(
            f"{file} has the columns {', '.join(table.columns)}; needed are emotion, and either sequence "
            "(such as S005/001) or path"
        )
    is_log = set(LOG_COLUMNS) <= set(table.columns)
    try:
        emotions = [_choice(text, is_log) for text in table["emotion"]]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    annotators = table["annotator"] if "annotator" in table.columns else [""] * len(table)
    return keys[0], is_log, list(zip(table[keys[0]], emotions, annotators, strict=True))


def _without_cut_line(content: bytes) -> bytes:
    """Return a file's content; of the page's logs without a last line that was cut while it was written."""
    before, newline, last = content.rpartition(b"\n")
    if not newline:
        return _HEADER if _HEADER.startswith(content) else content
    is_log = content.removeprefix(b"\xef\xbb\xbf").startswith(_HEADER)
    return before + newline if is_log and not _WHOLE_LINE.fullmatch(last) else content


def _choice(text: str, is_log: bool) -> str:
    word = text.strip().lower()
    return word if word == UNSURE or (is_log and word == UNDO) else canonical(text)


def _standing(lines: Choices) -> Choices:
    """Return one person's choices without those that a later line takes back."""
    choices: Choices = []
    for name, emotion in lines:
        if emotion != UNDO:
            choices.append((name, emotion))
        elif taken_back := [index for index, choice in enumerate(choices) if choice[0] == name]:
            choices.pop(taken_back[-1])
    return choices


@dataclass(frozen=True)
class Agreement:
    """How far two annotators agree, over what both gave an emotion; where either is unsure, nothing is compared.

    Attributes:
        annotators: The two.
        count, kappa: Sequences that both named, and Cohen's kappa (-1 to 1) of the labels as they stand.
        first_count, first_kappa: The same of what each chose first, before they spoke about it.
    """

    annotators: tuple[str, str]
    count: int
    kappa: float | None
    first_count: int
    first_kappa: float | None


def agreements(labels: pd.DataFrame) -> list[Agreement]:
    """Compare every two annotators of a table from `read_labels`; kappa is None where only one emotion was used."""
    found = []
    for one, other in combinations(sorted(set(labels["annotator"])), 2):
        figures = []
        for column in ("emotion", "first"):
            named = labels[labels[column] != UNSURE].set_index(["key", "name"])
            both = [named.loc[named["annotator"] == annotator, column] for annotator in (one, other)]
            pairs = pd.concat(both, axis=1, join="inner", keys=["one", "other"])
            figures += [len(pairs), _kappa(pairs["one"].tolist(), pairs["other"].tolist())]
        found.append(Agreement((one, other), *figures))
    return found


def _kappa(one: list[str], other: list[str]) -> float | None:
    if len({*one, *other}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # a second to load, and not needed before two have labelled

    return float(cohen_kappa_score(one, other))


def disagreements(labels: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return who says what of each image or sequence that annotators give different emotions; unsure does not count."""
    named = labels[labels["emotion"] != UNSURE]
    disputed = named[named.groupby(["key", "name"])["emotion"].transform("nunique") > 1]
    return {
        str(name): dict(zip(rows["annotator"], rows["emotion"], strict=True))
        for name, rows in disputed.groupby("name", sort=True)
    }


class ChangedElsewhereError(Exception):
    """A choice was made on the ground of what another window has changed meanwhile; nothing was written."""


class LabelStore:
    """One annotator's log, which this program alone writes to; see `open_store`. Threads may share it."""

    def __init__(self, file: Path, annotator: str, log: BinaryIO, choices: Choices):
        self.file = file
        self.annotator = annotator
        self._log = log
        self._size = os.fstat(log.fileno()).st_size  # bytes, all of them on disk
        self._choices = choices
        self._lock = Lock()

    def choices(self) -> Choices:
        """Return what stands, in the order of choosing."""
        with self._lock:
            return list(self._choices)

    def choose(self, sequence: str, emotion: str, seen: str) -> None:
        """Write a choice; when this returns, it is on disk.

        Args:
            sequence: Such as `S005/001`.
            emotion: A canonical name, or `unsure`.
            seen: The sequence's choice that the person saw when choosing, empty for none.

        Raises:
            ChangedElsewhereError: it is another one by now.
            InputError: no such emotion, or someone else changed the file.
            OSError: the disk does not take it; the file is as before.
        """
        if emotion not in (*EMOTIONS, UNSURE):
            raise InputError(f"unknown emotion {emotion!r}; accepted are {', '.join(EMOTIONS)} and {UNSURE}")
        with self._lock:
            self._check_seen(sequence, seen)
            if emotion != seen:
                self._append(sequence, emotion)
                self._choices.append((sequence, emotion))

    def undo(self, sequence: str, seen: str) -> None:
        """Take the sequence's latest choice back, so that the one before it stands, or none; `seen` as in `choose`.

        Raises:
            ChangedElsewhereError, InputError, OSError: as `choose`.
        """
        with self._lock:
            self._check_seen(sequence, seen)
            if not seen:
                raise InputError(f"{sequence} has no choice to take back")
            self._append(sequence, UNDO)
            self._choices = _standing([*self._choices, (sequence, UNDO)])

    def _check_seen(self, sequence: str, seen: str) -> None:
        now = dict(self._choices).get(sequence, "")
        if now != seen:
            raise ChangedElsewhereError(f"{sequence} was changed to {now or 'no choice'} in another window; look again")

    def _append(self, sequence: str, emotion: str) -> None:
        """Write one line; all of it is on disk, or none and the file as before."""
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
    """Open an annotator's log to write to, a new one where there is none; a line that a kill cut is removed.

    Raises:
        InputError: the name cannot be a file's, is another person's, or is in use by another run of the program.
    """
    if not re.fullmatch(r"[^\W_][\w-]{0,39}", annotator):
        raise InputError(f"--name {annotator!r} is not a plain name: up to 40 letters, digits, - and _, such as ann")
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.csv"):
        if file.stem != annotator and file.stem.casefold() == annotator.casefold():
            raise InputError(f"--name {annotator}: there is {file} already; give that name, or one of another person")
    file = folder / f"{annotator}.csv"
    with file.open("ab+", buffering=0) as log:
        if not _lock_file(log):
            raise InputError(
                f"--name {annotator}: another run of this program labels under that name; two people need two names, "
                "one person opens the same address in a second window"
            )
        choices = _read_log(file, annotator)  # before anything is written: the file may not be a log at all
        _repair(log)
        yield LabelStore(file, annotator, log, choices)


def _lock_file(log: BinaryIO) -> bool:
    """Lock a file until it is closed or the process ends, however it ends; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            log.seek(1 << 30)  # far behind the end: a lock on Windows keeps other programs from reading what it covers
            msvcrt.locking(log.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _repair(log: BinaryIO) -> None:
    """Leave whole lines alone in a log, with the header as the first."""
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
        raise InputError(f"{file} was not written by the labelling page; keep labels of your own in another folder")
    if others := sorted({by for _, _, by in lines} - {annotator}):
        raise InputError(f"{file} holds labels by {others[0]!r}, not {annotator!r}; rename the file to {others[0]}.csv")
    return _standing([(name, emotion) for name, emotion, _ in lines])
