"""Step 2: cut one face out of every picture, framed as in FER2013, ready for a network.

Reads:  data/NAME/inventory.csv and the images it lists
Writes: data/NAME/faces/**/*.png, data/NAME/faces.csv, data/NAME/faces.json (what they were made from)

    python -m preprocessing.step2_face_crops --dataset fer2013

A picture with no side above 100 pixels (`crop_side`) is a face already and is taken whole; in the others mtcnn looks
for faces and the largest one is aligned by its five points. `--detect` looks for a face in the small ones too, in an
enlarged copy, and takes those whole in which it finds none; `--no-detect` takes every picture whole. A killed run goes
on where it was; a run on unchanged input has nothing to do.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

if not __package__:  # run as a plain file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import pandas as pd
import typer

from configuration import FACES, PATHS, SAMPLE, Faces
from preprocessing import faces
from preprocessing.command_line import DataRoot, DatasetName, dataset_folder, progress_bar, run
from preprocessing.errors import InputError
from preprocessing.image_tables import (
    BOX_COLUMNS,
    FACE_COLUMNS,
    LANDMARK_COLUMNS,
    NUMERIC_COLUMNS,
    atomic_file,
    digest,
    is_made_from,
    read_table,
    write_origin,
    write_table,
)

Row = dict[str, Any]  # face columns of one picture; those left out are empty


def write_face_crops(folder: Path, options: Faces = FACES) -> pd.DataFrame:
    """Write the crops of a data set's pictures, and their table.

    Args:
        folder: The data set's folder, with `inventory.csv`.
        options: Size, colour and alignment of the crops; what is looked for, and where.

    Returns:
        The inventory with the face columns added, one row per picture.

    Raises:
        InputError: no usable inventory, or options that cannot be used; nothing is written then.
    """
    faces.check_options(options)
    inventory = read_table(folder, "inventory.csv")
    origin = _origin(inventory, options)
    if _is_done(folder, origin):
        print(f"{folder / 'faces.csv'} is up to date: made from this inventory with these options, nothing to do")
        return read_table(folder, "faces.csv")
    table = inventory.drop(columns=FACE_COLUMNS, errors="ignore").assign(
        **_crop_all(folder, inventory, options, origin)
    )
    write_table(table, folder / "faces.csv")
    write_origin(folder, "faces.csv", origin)
    _journal(folder).unlink()
    return table


def _origin(inventory: pd.DataFrame, options: Faces) -> str:
    """Return what the crops are made from and how, as one line of JSON: where it changes, all are made again."""
    code = hashlib.sha256(Path(faces.__file__).read_bytes()).hexdigest()[:16]
    return json.dumps({"inventory": digest(inventory), "code": code, "options": asdict(options)})


def _is_done(folder: Path, origin: str) -> bool:
    if not is_made_from(folder, "faces.csv", origin):
        return False
    paths = read_table(folder, "faces.csv")["face_path"]
    return all((folder / path).is_file() for path in paths if path)


def _crop_all(folder: Path, inventory: pd.DataFrame, options: Faces, origin: str) -> dict[str, list]:
    """Make the crops that are not there yet and return the face columns of all rows."""
    detector = cache(lambda: faces.FaceDetector(options))  # TensorFlow is only loaded where a picture needs it
    crop_files = face_paths(inventory["path"])
    with _open_journal(folder, origin) as (rows, append), progress_bar() as bar:
        if rows:
            print(f"going on after {len(rows)} of {len(inventory)} pictures")
        task = bar.add_task("face crops", total=len(inventory), completed=len(rows))
        for index in range(len(rows), len(inventory)):
            path, crop_file = inventory["path"][index], crop_files[index]
            readable = inventory["status"][index] != "unreadable"
            append(crop_face(folder, path, crop_file, options, detector) if readable else {"face_status": "not_found"})
            bar.advance(task)
    return {
        column: [row.get(column, np.nan if column in NUMERIC_COLUMNS else "") for row in rows]
        for column in FACE_COLUMNS
    }


def face_paths(paths: pd.Series) -> list[str]:
    """Return where each picture's crop goes: its path with `faces/` for `images/` and the ending `.png`.

    Where two pictures of a data set differ by their ending only, all crops keep it (`a.jpg.png`).
    """
    inside = [path.removeprefix("images/") for path in paths]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in inside]
    unique = len(set(stems)) == len(set(inside))
    return [f"faces/{name}.png" for name in (stems if unique else inside)]


def crop_face(folder: Path, path: str, face_path: str, options: Faces, detector: Callable[[], faces.Detector]) -> Row:
    """Write the crop of one picture.

    Args:
        folder: The data set's folder.
        path: The picture, relative to it.
        face_path: The crop to write, relative to it.
        options: How to crop.
        detector: Gives the detector; only called where a face is looked for.

    Returns:
        The picture's face columns. One that cannot be read is `not_found`, without a `face_count`.
    """
    try:
        image_rgb = faces.read_image_rgb(folder / path)
    except InputError:
        return {"face_status": "not_found"}
    face, row = None, {}
    is_crop = faces.is_face_crop(image_rgb, options)
    if options.detect or (options.detect is None and not is_crop):
        found = faces.detect_in_crop(image_rgb, detector(), options) if is_crop else detector().detect(image_rgb)
        face = faces.choose_face(found, image_rgb.shape)
        row = {"face_count": str(len(found))}
        if face is None and not is_crop:
            return row | {"face_status": "not_found"}
    _write_png(folder / face_path, faces.network_input(image_rgb, face, options))
    row |= {"face_path": face_path, "face_status": "whole_image" if face is None else "found"}
    return row if face is None else row | _place(face)


def _place(face: faces.Face) -> Row:
    """Return where a face is, in pixels to two decimals."""
    box = dict(zip(BOX_COLUMNS, (face.left, face.top, face.width, face.height), strict=True))
    points = {} if face.landmarks is None else dict(zip(LANDMARK_COLUMNS, face.landmarks.ravel(), strict=True))
    pixels = {column: round(float(value), 2) for column, value in (box | points).items()}
    return {"face_confidence": round(face.confidence, 4), **pixels}


def _write_png(file: Path, crop: np.ndarray) -> None:
    """Write uint8 (size, size, 1) gray or (size, size, 3) RGB; what a kill cuts short is written again on resuming."""
    image = crop if crop.shape[2] == 1 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _journal(folder: Path) -> Path:
    return folder / "faces.part.jsonl"


@contextmanager
def _open_journal(folder: Path, origin: str) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
    """Give the rows that an interrupted run finished, and a function that appends one.

    The journal holds one line of JSON for what it is made from and one per finished picture, in the table's order. A
    line is written after the picture's crop. Without a journal of the same origin, all that was made before goes.
    """
    file = _journal(folder)
    rows = _read_journal(file, origin)
    if rows is None:
        for name in ("split.csv", "split.json", "faces.csv", "faces.json"):  # they name the crops that go
            (folder / name).unlink(missing_ok=True)
        file.unlink(missing_ok=True)  # before the crops that it vouches for
        shutil.rmtree(folder / "faces", ignore_errors=True)
        rows = []
    with atomic_file(file) as temporary:  # without the line that a kill may have cut
        temporary.write_text("".join(f"{line}\n" for line in [origin, *map(json.dumps, rows)]), encoding="utf-8")
    with file.open("a", encoding="utf-8") as lines:

        def append(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            rows.append(row)

        yield rows, append


def _read_journal(file: Path, origin: str) -> list[Row] | None:
    """Return a journal's finished rows; None where there is no journal of this origin."""
    first, *lines = (file.read_text(encoding="utf-8") if file.is_file() else "").split("\n")
    if first != origin:
        return None
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # cut by a kill
            break
    return rows


def print_counts(table: pd.DataFrame, folder: Path) -> None:
    """Print what became of the pictures, and where the crops are."""
    count = table["face_status"].value_counts()
    unread = table.loc[(table["face_status"] == "not_found") & (table["face_count"] == ""), "path"]
    print(
        f"{len(table)} pictures: {count.get('found', 0)} with a face found, {count.get('whole_image', 0)} taken whole, "
        f"{count.get('not_found', 0) - len(unread)} without a face, {len(unread)} unreadable"
    )
    if len(unread):
        print(f"unreadable or missing: {', '.join(unread[:5])}{', ...' if len(unread) > 5 else ''}")
    print(f"table: {folder / 'faces.csv'}, crops: {folder / 'faces'}")


def main(
    dataset: DatasetName = SAMPLE.name,
    detect: Annotated[
        bool | None,
        typer.Option(help="Look for a face in every picture, or in none. Left out: only where a side is above 100 px."),
    ] = FACES.detect,
    align: Annotated[
        str, typer.Option(help="landmarks: turn and scale by five points; box: plain square.")
    ] = FACES.align,
    size: Annotated[int, typer.Option(help="Side of the square crops, in pixels.")] = FACES.size,
    channels: Annotated[int, typer.Option(help="1: gray, 3: RGB.")] = FACES.channels,
    smallest_face: Annotated[int, typer.Option(help="Smallest face looked for, in pixels.")] = FACES.smallest_face,
    data: DataRoot = PATHS.data,
) -> None:
    """Cut one face out of every picture of a data set, framed as in FER2013."""
    options = replace(FACES, detect=detect, align=align, size=size, channels=channels, smallest_face=smallest_face)
    folder = dataset_folder(data, dataset)
    print_counts(write_face_crops(folder, options), folder)


if __name__ == "__main__":
    run(main)
