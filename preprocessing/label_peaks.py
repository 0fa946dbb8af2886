"""Label the sequences that a data set leaves without a label, on a local web page; CK+ leaves 266 of 593.

Reads:   data/NAME/inventory.csv, and every frame of the download that step 1 was given (--source where it has moved)
Writes:  data/NAME/labels/ANNOTATOR.csv, a line per choice, on disk before the page shows it as saved

    python -m preprocessing.label_peaks --dataset ckplus --name ann
    python -m preprocessing.step1_inventory --dataset ckplus --source CK+/ --labels data/ckplus/labels
"""

import shlex
import socket
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.errors import InputError
from common.logging import silence_opencv
from configuration import PATHS, SAMPLE_NAME
from preprocessing.datasets.archives import list_files, scratch_folder
from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.downloads import Kind, open_download
from preprocessing.labelling.page import HOSTS, Sequence, build_app, read_guesses, unlabelled_sequences, with_label
from preprocessing.labelling.store import label_files, open_store, read_labels
from preprocessing.tables import read_provenance, read_table


def main(
    name: Annotated[str, typer.Option("--name", help="Who labels; each person needs a name of their own.")],
    dataset: DatasetName = SAMPLE_NAME,
    source: Annotated[
        Path | None, typer.Option(help="The download with all frames; left out: where step 1 found it.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of the labels; left out: DATA/DATASET/labels.")] = None,
    guesses: Annotated[
        Path | None, typer.Option(help="A network's predictions.csv; each is shown after one has chosen.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0: any free one.", min=0, max=65535)] = 0,
    data: DataRoot = PATHS.data,
) -> None:
    """Label the unlabelled sequences of a CK+ data set on a local web page."""
    folder = dataset_folder(data, dataset)
    inventory = read_table(folder, "inventory.csv")
    origin = read_provenance(folder, "inventory.csv")
    source = source or _source_of(origin, folder)
    labels = labels or folder / "labels"
    silence_opencv()  # the page says which picture cannot be read
    with open_store(labels, name) as store, scratch_folder(labels / f".{name}.part") as scratch:
        files, kind = open_download(list_files(source), scratch / "unpacked", source)
        if kind is not Kind.CKPLUS:
            raise InputError(f"--dataset {dataset}: the page is for CK+ sequences; {source} holds {kind}")
        frames = read_ckplus(files)
        sequences = unlabelled_sequences(frames, inventory)
        _check(sequences, frames, labels)
        guessed = read_guesses(guesses, frames) if guesses else {}
        command = _next_command(dataset, data, source, labels, origin)
        _print_start(sequences, inventory, source, guessed if guesses else None)
        serve(build_app(sequences, store, guessed, dataset, command), port)
        chosen = {sequence for sequence, _ in store.choices()} & {sequence.name for sequence in sequences}
        print(f"{name} has labelled {len(chosen):,} of {len(sequences):,} sequences: {store.file}")
        print(f"to enter the labels: {command}")


def _source_of(origin: dict[str, Any], folder: Path) -> Path:
    if not isinstance(origin.get("place"), str):
        raise InputError(f"{folder / 'inventory.json'} does not say where the download lies; give --source")
    if not Path(origin["place"]).exists():
        raise InputError(
            f"the download that {folder / 'inventory.csv'} was made from is no longer at {origin['place']}; give its "
            "place with --source (the inventory alone does not hold every frame)"
        )
    return Path(origin["place"])


def _check(sequences: list[Sequence], frames: pd.DataFrame, labels: Path) -> None:
    """Refuse to begin where nothing is to be labelled, or the labels that are there do not fit the data set."""
    if not sequences:
        raise InputError(f"nothing to label: all {frames['sequence'].nunique():,} sequences have the data set's label")
    given = read_labels(label_files(labels).values())
    absent = given[(given["key"] == "sequence") & ~given["name"].isin(set(frames["sequence"]))]
    if len(absent):
        row = absent.iloc[0]
        raise InputError(
            f"{row['file']}: sequence {row['name']!r} is not in the data set; remove its lines, or give the folder of "
            "this data set's labels with --labels"
        )


def _next_command(dataset: str, data: Path, source: Path, labels: Path, origin: dict[str, Any]) -> str:
    """Return the command of step 1 that enters the labels, with the options that step 1 was given before."""
    options = ["--dataset", dataset, "--source", str(source), "--labels", str(labels)]
    options += ["--data", str(data)] if data != PATHS.data else []
    options += ["--neutral-first"] if origin.get("neutral_first") else []
    options += ["--frames", str(origin["frames"])] if origin.get("frames", "peak") != "peak" else []
    options += ["--link"] if origin.get("link") else []
    return shlex.join(["python", "-m", "preprocessing.step1_inventory", *options])


def _print_start(sequences: list[Sequence], inventory: pd.DataFrame, source: Path, guesses: dict | None) -> None:
    """Print what there is to label and what lacks."""
    names = [sequence.name for sequence in sequences]
    print(f"{len(sequences):,} sequences to label, from {source}")
    incomplete = [sequence.name for sequence in sequences if sequence.missing]
    if incomplete:
        print(f"frames are missing in {len(incomplete):,} of them ({_some(incomplete)}); the page shows which")
    absent = sorted(set(inventory["sequence"]) - with_label(inventory) - set(names))
    if absent:
        print(
            f"not shown: {len(absent):,} unlabelled sequences of the inventory have no frames there ({_some(absent)})"
        )
    if guesses is not None:
        print(f"guesses for {len(guesses.keys() & set(names)):,} of them; each is shown after the choice")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def serve(app: Flask, port: int) -> None:
    """Serve the page on this machine alone until Ctrl-C, and print its address.

    Raises:
        InputError: another program has the port.
    """
    try:
        listener = socket.create_server((HOSTS[0], port))
    except OSError as error:
        raise InputError(f"--port {port} cannot be used ({error.strerror}); leave it out for a free one") from error
    with listener:
        server = make_server(HOSTS[0], port, app, threaded=True, request_handler=_SilentHandler, fd=listener.fileno())
        print(f"open http://{HOSTS[0]}:{listener.getsockname()[1]}/{app.config['TOKEN']}/  (Ctrl-C ends)", flush=True)
        server.serve_forever()  # until Ctrl-C


class _SilentHandler(WSGIRequestHandler):
    """Tells strangers nothing about the program, and keeps the secret address out of the terminal's log."""

    def version_string(self) -> str:
        return "labels"

    def log(self, type: str, message: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    run(main)
