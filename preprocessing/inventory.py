"""Build a data set's inventory: one row per image of a download, and the images in one folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from common.errors import InputError
from common.files import fingerprint
from common.processes import exclusive_lock
from preprocessing.datasets.archives import list_files, scratch_folder
from preprocessing.datasets.ckplus import parse_frames, print_missing_frames, read_ckplus, select_frames
from preprocessing.datasets.downloads import Kind, copy_images, find_fer2013_csv, open_download, print_unused
from preprocessing.datasets.fer2013 import read_votes, write_images
from preprocessing.datasets.folders import read_folders
from preprocessing.datasets.labels import add_labels
from preprocessing.labelling.store import label_files, read_labels
from preprocessing.tables import (
    INVENTORY_COLUMNS,
    check_relative,
    is_up_to_date,
    read_table,
    unescaped,
    write_provenance,
    write_table,
)


def write_inventory(
    folder: Path,
    source: Path | None,
    *,
    votes: Path | None = None,
    labels: Path | None = None,
    neutral_first: bool = False,
    frames: str = "peak",
    mapping: Mapping[str, str] | None = None,
) -> Kind | None:
    """Write `inventory.csv` and `images/`, unless they are up to date. The data set is locked meanwhile.

    Everything is written beside the data set's folder and moved there when it is complete, so that a refused or killed
    run leaves an earlier inventory unchanged.

    Args:
        folder: The data set's folder, `data/NAME`.
        source: The download: a file, an archive or a folder. None: the embedded sample, written to `raw/`.
        votes: FER+'s `fer2013new.csv`, for a FER2013 table.
        labels: Annotators' labels for unlabelled images: a CSV file or a folder; see `labelling.store.read_labels`.
        neutral_first: CK+: also keep each labelled sequence's first frame, as neutral.
        frames: CK+: `peak`, `last:K` or `all`; see `ckplus.select_frames`.
        mapping: Emotions of folder names; see `folders.parse_mapping`.

    Returns:
        The kind of the download; None where the inventory is up to date.

    Raises:
        InputError: The source or an option cannot be used, or another process writes the data set.
    """
    parse_frames(frames)
    mapping = dict(mapping or {})
    with exclusive_lock(folder):
        source = source or _write_sample(folder / "raw")
        _check_place(folder, source)
        files = list_files(source)
        provenance = json.dumps(
            {
                "source": fingerprint(files),
                "place": str(source.resolve()),
                "votes_place": votes and str(votes.resolve()),
                "labels_place": labels and str(labels.resolve()),
                "votes": votes and fingerprint({votes.name: _existing("--votes", votes)}),
                "labels": labels and fingerprint(label_files(labels)),
                "neutral_first": neutral_first,
                "frames": frames,
                "mapping": mapping,
            }
        )
        if is_up_to_date(folder, "inventory.csv", provenance) and _has_images(folder):
            return None
        place = folder.resolve()  # a link may lead to another disk, to which nothing can be renamed
        with scratch_folder(place.with_name(f".{place.name}.part")) as part:
            files, kind = open_download(files, part / "unpacked", source)
            for option, is_given, applies_to in (
                ("--votes", bool(votes), Kind.FER2013),
                ("--neutral-first", neutral_first, Kind.CKPLUS),
                ("--frames", frames != "peak", Kind.CKPLUS),
                ("--map", bool(mapping), Kind.FOLDERS),
            ):
                if is_given and kind is not applies_to:
                    raise InputError(f"{option} applies to {applies_to} only; {source} contains {kind}")
            given = read_labels(label_files(labels).values()) if labels else None
            if kind is Kind.FER2013:
                table = _with_labels(_read_fer2013(files, part / "images", votes), given)
            else:
                table = _read_images(files, kind, given, frames, neutral_first, mapping)
                for path in table["path"]:
                    check_relative(path, source)
                table = copy_images(table, part)
            _publish(table, provenance, part, folder)
    return kind


_KEYS = ["path", "pixel_hash"]  # of equal images
_BEFORE = ".inventory.before.csv"  # the earlier table, while it is replaced


def _has_images(folder: Path) -> bool:
    """Return whether no image has disappeared since the inventory was written."""
    table = read_table(folder, "inventory.csv")
    return all((folder / path).is_file() for path in table.loc[table["status"] != "unreadable", "path"])


def _check_place(folder: Path, source: Path) -> None:
    """Refuse a source that this step would read and write at once."""
    inside, place = source.resolve(), folder.resolve()
    if inside in (place, *place.parents) or inside.is_relative_to(place / "images"):
        raise InputError(f"--source {source} contains this step's output ({folder}); keep the download elsewhere")


def _existing(option: str, file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{option} {file} does not exist; give a CSV file")
    return file


def _read_fer2013(files: dict[str, Path], images: Path, votes: Path | None) -> pd.DataFrame:
    csv_file = find_fer2013_csv(files)
    assert csv_file is not None
    table = write_images(csv_file, images)
    return table.join(read_votes(votes, table["usage"])) if votes else table


def _read_images(
    files: dict[str, Path],
    kind: Kind,
    labels: pd.DataFrame | None,
    frames: str,
    neutral_first: bool,
    mapping: Mapping[str, str],
) -> pd.DataFrame:
    """Return the raw table of a tree of images, with annotators' labels and selected frames."""
    table = read_ckplus(files) if kind is Kind.CKPLUS else read_folders(files, mapping)
    print_unused(files, table)
    if kind is not Kind.CKPLUS:
        return _with_labels(table, labels)
    print_missing_frames(files, table)
    if labels is not None:
        table = add_labels(table, labels, "sequence")
    table = select_frames(table, frames, neutral_first)
    return table if labels is None else add_labels(table, labels, "path")


def _with_labels(table: pd.DataFrame, labels: pd.DataFrame | None) -> pd.DataFrame:
    return table if labels is None else add_labels(add_labels(table, labels, "sequence"), labels, "path")


def _publish(table: pd.DataFrame, provenance: str, part: Path, folder: Path) -> None:
    """Replace images and table by renaming.

    The provenance record is removed first and written last, so that the next run repeats a killed one. The old table is
    renamed before its images, so that no step reads a table beside the images of another one.
    """
    inventory, before = folder / "inventory.csv", folder / _BEFORE
    if inventory.exists() and before.exists():  # a killed run had already written the new table
        _discard(before, _losses(_read_earlier(before), _read_earlier(inventory)))
    table, lost = _with_entries(table, inventory if inventory.exists() else before)
    others = [column for column in table.columns if column not in INVENTORY_COLUMNS]
    write_table(table[[*INVENTORY_COLUMNS, *others]], part / "inventory.csv")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inventory.json").unlink(missing_ok=True)
    if inventory.exists():
        inventory.replace(before)
    if (folder / "images").exists():
        (folder / "images").rename(part / "replaced")
    (part / "images").rename(folder / "images")
    (part / "inventory.csv").replace(inventory)
    _discard(before, lost)
    write_provenance(folder, "inventory.csv", provenance)


def _discard(before: Path, lost: str) -> None:
    """Delete an earlier table, or keep it under a visible name if the new one lacks something of it."""
    if not lost:
        before.unlink(missing_ok=True)
        return
    number = 1
    while (kept := before.with_name(f"inventory.before-{number}.csv")).exists():
        number += 1
    before.replace(kept)
    print(f"{lost}; the earlier table is kept as {kept}")


def _read_earlier(file: Path) -> pd.DataFrame | None:
    """Return an earlier table as text, indexed by path and pixel hash; None if it cannot be read."""
    try:
        table = unescaped(pd.read_csv(file, dtype=str, keep_default_na=False))
        table = table.drop_duplicates(_KEYS).set_index(_KEYS)
    except (OSError, ValueError, KeyError):
        return None
    return table if {"subject", "emotion"} <= {*table.columns} else None


def _own_columns(earlier: pd.DataFrame) -> list[str]:
    """Return the columns that the user added to an earlier table, such as `gender`."""
    from_votes = ("votes_", "ferplus_") if "ferplus_name" in earlier.columns else ()  # step 1 wrote these
    names = map(str, earlier.columns)
    return [name for name in names if name not in INVENTORY_COLUMNS and not name.startswith(from_votes)]


def _with_entries(table: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, str]:
    """Return a new table with the user's entries in an earlier one for equal images: own columns, completed subjects.

    The second value is that of `_losses`.
    """
    if not file.exists():
        return table, ""
    if (earlier := _read_earlier(file)) is None:
        return table, _losses(earlier, None)
    same = earlier.reindex(pd.MultiIndex.from_frame(table[_KEYS])).fillna("")
    own = {name: same[name].to_numpy() for name in _own_columns(earlier) if name not in table.columns}
    if own:
        print(f"kept columns of the earlier inventory.csv: {', '.join(own)}")
    table = table.assign(subject=table["subject"].where(table["subject"] != "", same["subject"].to_numpy()), **own)
    return table, _losses(earlier, table.drop_duplicates(_KEYS).set_index(_KEYS))


def _losses(earlier: pd.DataFrame | None, new: pd.DataFrame | None) -> str:
    """Return in words which of the user's entries in an earlier table a new one lacks; empty if it lacks none.

    Both tables are as `_read_earlier` returns them.
    """
    if earlier is None or new is None:
        return "own columns of the earlier inventory.csv cannot be read"
    names = _own_columns(earlier) + ["subject"] * bool((new["subject"] == "").any())  # else step 1 knows all subjects
    same = new.reindex(index=earlier.index, columns=names).fillna("")
    lost = ((earlier[names] != "") & (earlier[names] != same)).any(axis=1)
    emotion = new["emotion"].reindex(earlier.index)
    lost |= (earlier["emotion"] != "") & emotion.notna() & (earlier["emotion"] != emotion)
    return f"own columns, subjects or labels of {lost.sum():,} images could not be kept" if lost.any() else ""


def _write_sample(raw: Path) -> Path:
    """Write the sample data set's raw form to `raw`, unless it is up to date, and return `raw`."""
    from preprocessing.datasets import sample  # late: it loads matplotlib, which no other source needs

    made_from = json.dumps(asdict(sample.SAMPLE)) + hashlib.sha256(Path(sample.__file__).read_bytes()).hexdigest()
    record = raw / ".made_from"
    if record.is_file() and record.read_text("utf-8", errors="replace") == made_from:
        return raw
    if raw.exists() and not record.is_file():
        raise InputError(f"{raw} is the sample's folder, but contains something else; move it, or give it as --source")
    with scratch_folder(raw.with_name(f".{raw.name}.part")) as part:
        sample.write_raw(part / "raw")
        (part / "raw" / record.name).write_text(made_from, "utf-8")
        if raw.exists():
            raw.rename(part / "replaced")
        (part / "raw").rename(raw)
    return raw
