"""Step 1: list a raw data set's images with their labels, and copy the images to one folder.

Reads:   a download: fer2013.csv, icml_face_data.csv, folders named by emotion, CK+ or CK+48; also in a .zip or .tar.gz
Writes:  data/NAME/inventory.csv and data/NAME/images/

    python -m preprocessing.step1_inventory --dataset NAME --source FILE_OR_FOLDER

Without options it writes the embedded sample data set. The download is never changed. No image is dropped: unreadable,
constant and unlabelled images keep a row with a status, and the audit counts them.
"""

from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run, shortened
from common.errors import InputError
from common.images import ACCEPTED_IMAGES
from common.logging import silence_opencv
from configuration import PATHS, SAMPLE_NAME
from preprocessing.audit import audit, count_images, format_audit, format_counts
from preprocessing.datasets.downloads import ACCEPTED, Kind
from preprocessing.datasets.folders import describe_folders, parse_mapping
from preprocessing.inventory import write_inventory
from preprocessing.tables import read_table


def main(
    dataset: DatasetName = SAMPLE_NAME,
    source: Annotated[Path | None, typer.Option(help="The download: a file, an archive or a folder.")] = None,
    votes: Annotated[Path | None, typer.Option(help="FER+'s annotator votes (fer2013new.csv), for FER2013.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Annotators' labels for unlabelled images: a CSV file or a folder."),
    ] = None,
    neutral_first: Annotated[
        bool, typer.Option("--neutral-first", help="CK+: add each labelled sequence's first frame, as neutral.")
    ] = False,
    frames: Annotated[str, typer.Option(help="CK+ frames per sequence: peak (last frame), last:K, or all.")] = "peak",
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="FOLDER=EMOTION or FOLDER=none, for folders named otherwise; repeatable."),
    ] = None,
    data: DataRoot = PATHS.data,
) -> None:
    """Step 1: list a raw data set's images, copy them to one folder, and print an audit."""
    folder = dataset_folder(data, dataset)
    if source is None and dataset != SAMPLE_NAME:
        raise InputError(f"--dataset {dataset} needs --source FILE_OR_FOLDER; {ACCEPTED}")
    silence_opencv()  # unreadable files are counted below
    kind = write_inventory(
        folder,
        source,
        votes=votes,
        labels=labels,
        neutral_first=neutral_first,
        frames=frames,
        mapping=parse_mapping(mapping or []),
    )
    file = folder / "inventory.csv"
    if kind is None:
        print(f"unchanged: {file} was made from the same files with the same options; nothing to do")
        return
    table = read_table(folder, file.name)
    print(f"recognised: {kind}")
    if kind is Kind.FOLDERS and (text := describe_folders(table)):
        print(text)
    print(format_counts(count_images(table, "usage")))
    print(format_audit(audit(table)))
    if unreadable := table.loc[table["status"] == "unreadable", "path"].tolist():
        print(f"unreadable: {shortened(unreadable)}; {ACCEPTED_IMAGES}")
    print(f"wrote {file}")


if __name__ == "__main__":
    run(main)
