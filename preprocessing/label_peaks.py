"""Label the sequences that a CK+ data set leaves unlabelled, on a local web page; CK+ has 266 of 593.

Reads:   data/NAME/inventory.csv, and every frame of the download that step 1 read
Writes:  data/NAME/labels/ANNOTATOR.csv, one line per choice

    python -m preprocessing.label_peaks --dataset ckplus --annotator ann
    python -m preprocessing.step1_inventory --dataset ckplus --source CK+/ --labels data/ckplus/labels
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run, shortened
from common.errors import InputError
from common.logging import silence_opencv
from common.web import address, listen, serve
from configuration import PATHS, SAMPLE_NAME
from preprocessing.datasets.archives import list_files, scratch_folder
from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.downloads import Kind, open_download
from preprocessing.labelling.page import (
    Sequence,
    build_app,
    labelled_sequences,
    unlabelled_sequences,
)
from preprocessing.labelling.store import label_files, open_store, read_labels
from preprocessing.tables import make_command, read_provenance, read_table


def main(
    annotator: Annotated[str, typer.Option(help="Name of the annotator; one per person.")],
    dataset: DatasetName = SAMPLE_NAME,
    source: Annotated[Path | None, typer.Option(help="CK+ download with all frames. [default: as in step 1]")] = None,
    data: DataRoot = PATHS.data,
) -> None:
    """Label the unlabelled sequences of a CK+ data set on a local web page."""
    folder = dataset_folder(data, dataset)
    inventory = read_table(folder, "inventory.csv")
    provenance = read_provenance(folder, "inventory.csv")
    source = source or _source_of(provenance, folder)
    labels = folder / "labels"
    silence_opencv()  # the page reports unreadable images
    with open_store(labels, annotator) as store, scratch_folder(labels / f".{annotator}.part") as scratch:
        files, kind = open_download(list_files(source), scratch / "unpacked", source)
        if kind is not Kind.CKPLUS:
            raise InputError(f"--dataset {dataset}: the page is for CK+ sequences; {source} contains {kind}")
        frames = read_ckplus(files)
        sequences = unlabelled_sequences(frames, inventory)
        _check(sequences, frames, labels)
        command = make_command(folder, "inventory.csv", source=source, labels=labels)
        _print_start(sequences, inventory, source)
        app, listener = build_app(sequences, store, dataset, command), listen()
        print(f"open {address(app, listener)}  (Ctrl-C ends)", flush=True)
        serve(app, listener)
        chosen = {sequence for sequence, _ in store.choices()} & {sequence.name for sequence in sequences}
        print(f"{annotator} has labelled {len(chosen):,} of {len(sequences):,} sequences: {store.file}")
        print(f"add the labels to the inventory with: {command}")


def _source_of(provenance: dict[str, Any], folder: Path) -> Path:
    place = provenance.get("place")
    if not isinstance(place, str) or not Path(place).exists():
        raise InputError(
            f"the download that {folder / 'inventory.csv'} was made from is not at {place}; give its place with "
            "--source"
        )
    return Path(place)


def _check(sequences: list[Sequence], frames: pd.DataFrame, labels: Path) -> None:
    """Refuse to start without unlabelled sequences, or with labels of another data set."""
    if not sequences:
        raise InputError(f"nothing to label: all {frames['sequence'].nunique():,} sequences have the data set's label")
    given = read_labels(label_files(labels).values())
    absent = given[(given["key"] == "sequence") & ~given["name"].isin(set(frames["sequence"]))]
    if len(absent):
        row = absent.iloc[0]
        raise InputError(f"{row['file']}: sequence {row['name']!r} is not in the data set; remove its lines")


def _print_start(sequences: list[Sequence], inventory: pd.DataFrame, source: Path) -> None:
    """Print how many sequences there are to label, and what is missing."""
    names = [sequence.name for sequence in sequences]
    print(f"{len(sequences):,} sequences to label, from {source}")
    incomplete = [sequence.name for sequence in sequences if sequence.missing]
    if incomplete:
        print(f"{len(incomplete):,} of them have missing frames ({shortened(incomplete)}); the page shows which")
    absent = sorted(set(inventory["sequence"]) - labelled_sequences(inventory) - set(names))
    if absent:
        print(f"{len(absent):,} unlabelled sequences of the inventory have no frames there ({shortened(absent)})")


if __name__ == "__main__":
    run(main)
