"""List a raw data set's images with all that is known of each, and bring the images together in one folder.

Reads:   a download: fer2013.csv, icml_face_data.csv, folders named by emotion, CK+ or CK+48; also in a .zip or .tar.gz
Writes:  data/NAME/inventory.csv and data/NAME/images/ (copies; with --link hard links to a folder's own files)

    python -m preprocessing.step1_inventory --dataset NAME --source FILE_OR_FOLDER

Without any option it makes the embedded sample data set. The download itself is never changed. Nothing is left out:
what cannot be read, is constant or has no label stays in the table with its status, and is counted in the audit.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.errors import InputError
from common.files import fingerprint
from common.images import ACCEPTED_IMAGES
from common.logging import silence_opencv
from common.processes import exclusive_lock
from configuration import PATHS, SAMPLE_NAME
from preprocessing.audit import audit, count_images, format_audit, format_counts
from preprocessing.datasets.archives import list_files, scratch_folder
from preprocessing.datasets.ckplus import parse_frames, print_missing_frames, read_ckplus, select_frames
from preprocessing.datasets.downloads import ACCEPTED, Kind, find_fer2013_csv, link_images, open_download, print_unused
from preprocessing.datasets.fer2013 import read_votes, write_images
from preprocessing.datasets.folders import describe_folders, parse_mapping, read_folders
from preprocessing.datasets.labels import add_labels
from preprocessing.datasets.sample import SAMPLE, SampleConfig
from preprocessing.labelling.store import label_files, read_labels
from preprocessing.tables import (
    INVENTORY_COLUMNS,
    check_relative,
    is_up_to_date,
    read_table,
    write_provenance,
    write_table,
)


def write_inventory(
    folder: Path,
    source: Path,
    *,
    votes: Path | None = None,
    labels: Path | None = None,
    neutral_first: bool = False,
    frames: str = "peak",
    mapping: Mapping[str, str] | None = None,
    link: bool = False,
) -> Kind | None:
    """Write `inventory.csv` and `images/`, unless they are there already for the same files and options.

    The data set is locked meanwhile.

    Everything is made beside the data set's folder and moved there when it is complete, so that a refused or killed
    run leaves an earlier inventory as it was.

    Args:
        folder: The data set's folder, `data/NAME`.
        source: The download: a file, an archive or a folder.
        votes: FER+'s `fer2013new.csv`, for a FER2013 table.
        labels: People's labels, for images without one: a CSV file or a folder of them; see `label_store.read_labels`.
        neutral_first: CK+: also take each labelled sequence's first frame, as neutral.
        frames: CK+: `peak`, `last:K` or `all`; see `raw_datasets.choose_frames`.
        mapping: Emotions of folders, for folders named by emotion; see `raw_datasets.parse_mapping`.
        link: Whether image files are hard-linked, not copied; see `raw_datasets.link_images`.

    Returns:
        What the source turned out to be; None where there was nothing to do.

    Raises:
        InputError: the source, or an option, cannot be used, or another process writes the data set.
    """
    with exclusive_lock(folder):
        return _write_inventory(folder, source, votes, labels, neutral_first, frames, mapping or {}, link)


def _write_inventory(
    folder: Path,
    source: Path,
    votes: Path | None,
    labels: Path | None,
    neutral_first: bool,
    frames: str,
    mapping: Mapping[str, str],
    link: bool,
) -> Kind | None:
    _check_place(folder, source)
    parse_frames(frames)
    files = list_files(source)
    origin = {
        "source": fingerprint(files),
        "place": str(source.resolve()),
        "votes": votes and fingerprint({votes.name: _existing("--votes", votes)}),
        "labels": labels and fingerprint(label_files(labels)),
        "neutral_first": neutral_first,
        "frames": frames,
        "mapping": mapping,
        "link": link,
    }
    made_from = json.dumps(origin)
    if (folder / "images").is_dir() and is_up_to_date(folder, "inventory.csv", made_from):
        return None
    place = folder.resolve()  # a link may lead to another disk, to which nothing can be renamed
    with scratch_folder(place.with_name(f".{place.name}.part")) as part:
        files, kind = open_download(files, part / "unpacked", source)
        if votes and kind is not Kind.FER2013:
            raise InputError(f"--votes is for a FER2013 table; {source} holds {kind}")
        if (neutral_first or frames != "peak") and kind is not Kind.CKPLUS:
            raise InputError(f"--neutral-first and --frames are for CK+ sequences; {source} holds {kind}")
        if mapping and kind is not Kind.FOLDERS:
            raise InputError(f"--map is for folders named by emotion; {source} holds {kind}")
        if csv_file := find_fer2013_csv(files):
            table = write_images(csv_file, part / "images")
            table = table.join(read_votes(votes, table["usage"])) if votes else table
        else:
            table = read_ckplus(files) if kind is Kind.CKPLUS else read_folders(files, mapping)
            print_unused(files, table)
            if kind is Kind.CKPLUS:
                print_missing_frames(files, table)
        given = read_labels(label_files(labels).values()) if labels else None
        table = table if given is None else add_labels(table, given, "sequence")
        table = select_frames(table, frames, neutral_first) if kind is Kind.CKPLUS else table
        table = table if given is None else add_labels(table, given, "path")
        for path in table["path"]:
            check_relative(path, source)
        table = table if kind is Kind.FER2013 else link_images(table, part, link=link)
        _publish(table, made_from, part, folder)
    return kind


def _check_place(folder: Path, source: Path) -> None:
    """Refuse a source that this step would read and write at once."""
    inside, place = source.resolve(), folder.resolve()
    if inside in (place, *place.parents) or inside.is_relative_to(place / "images"):
        raise InputError(
            f"--source {source} holds what this step writes ({folder}); keep the download in its own folder"
        )


def _existing(option: str, file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{option} {file} does not exist; give a CSV file")
    return file


def _publish(table: pd.DataFrame, made_from: str, part: Path, folder: Path) -> None:
    """Put the finished images and table in the place of earlier ones, by renaming alone.

    The record goes first and comes back last: a run killed in between is done again by the next one. The old table goes
    before its images, so that no step ever reads a table beside the images of another one.
    """
    others = [column for column in table.columns if column not in INVENTORY_COLUMNS]
    write_table(table[[*INVENTORY_COLUMNS, *others]], part / "inventory.csv")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inventory.json").unlink(missing_ok=True)
    (folder / "inventory.csv").unlink(missing_ok=True)
    if (folder / "images").exists():
        (folder / "images").rename(part / "replaced")
    (part / "images").rename(folder / "images")
    (part / "inventory.csv").replace(folder / "inventory.csv")
    write_provenance(folder, "inventory.csv", made_from)


def write_sample(raw: Path, sample: SampleConfig = SAMPLE) -> None:
    """Write the embedded sample data set's raw form, unless it is there already as these settings make it."""
    from preprocessing.datasets import (
        sample as maker,  # loads matplotlib and the face detector, which no other source needs
    )

    made_from = json.dumps(asdict(sample)) + hashlib.sha256(Path(maker.__file__).read_bytes()).hexdigest()
    record = raw / ".made_from"
    if record.is_file() and record.read_text("utf-8", errors="replace") == made_from:
        return
    if raw.exists() and not record.is_file():
        raise InputError(f"{raw} is where the sample goes, but holds something else; move it, or give it as --source")
    with scratch_folder(raw.with_name(f".{raw.name}.part")) as part:
        maker.write_raw(part / "raw", sample)
        (part / "raw" / record.name).write_text(made_from, "utf-8")
        if raw.exists():
            raw.rename(part / "replaced")
        (part / "raw").rename(raw)


def main(
    dataset: DatasetName = SAMPLE_NAME,
    source: Annotated[Path | None, typer.Option(help="The download: a file, an archive or a folder.")] = None,
    votes: Annotated[Path | None, typer.Option(help="FER+'s fer2013new.csv, for a FER2013 table.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labels for unlabelled images: the labelling page's folder (data/NAME/labels), or a CSV with sequence "
            "or path, emotion, annotator (optional)."
        ),
    ] = None,
    neutral_first: Annotated[
        bool, typer.Option("--neutral-first", help="CK+: also take each labelled sequence's first frame, as neutral.")
    ] = False,
    frames: Annotated[
        str, typer.Option(help="CK+ frames of a sequence: peak (the last one), last:K (the last K), or all.")
    ] = "peak",
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="Map a folder to an emotion, such as calm=neutral or calm=none; repeat for several."
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link image files, not copy: a later edit changes both.")
    ] = False,
    data: DataRoot = PATHS.data,
) -> None:
    """Step 1: list a raw data set's images (data/NAME/inventory.csv, data/NAME/images/) and print an audit."""
    folder = dataset_folder(data, dataset)
    if source is None and dataset != SAMPLE_NAME:
        raise InputError(f"--dataset {dataset} needs --source FILE_OR_FOLDER; {ACCEPTED}")
    silence_opencv()  # unreadable files are counted below
    file = folder / "inventory.csv"
    with exclusive_lock(folder):
        if source is None:
            source = folder / "raw"
            write_sample(source)
        emotions = parse_mapping(mapping or [])
        kind = _write_inventory(folder, source, votes, labels, neutral_first, frames, emotions, link)
        if kind is None:
            print(f"unchanged: {file} was made from the same files with the same options; nothing to do")
            return
        table = read_table(folder, file.name)
    print(f"recognised: {kind}")
    if kind is Kind.FOLDERS and (text := describe_folders(table)):
        print(text)
    if link and kind is not Kind.FER2013:
        print(f"--link: a file below {folder / 'images'} and the download's own are one; an edit changes both")
    print(format_counts(count_images(table, "usage")))
    print(format_audit(audit(table)))
    if unreadable := table.loc[table["status"] == "unreadable", "path"].tolist():
        shown = ", ".join(unreadable[:5]) + ", ..." * (len(unreadable) > 5)
        print(f"unreadable: {shown}; {ACCEPTED_IMAGES}")
    print(f"wrote {file}")


if __name__ == "__main__":
    run(main)
