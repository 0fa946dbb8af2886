"""Cut one face out of every image of a data set; resumable, in parallel where faces are searched."""

import json
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd

from common.command_line import progress_bar
from common.engine import Engine
from common.errors import InputError
from common.files import named_errors, write_file
from common.processes import available_cores, exclusive_lock
from configuration import FACES, FaceConfig
from inference import crops, face_detector, faces
from preprocessing.tables import (
    BOX_COLUMNS,
    FACE_COLUMNS,
    LANDMARK_COLUMNS,
    NUMERIC_COLUMNS,
    content_hash,
    is_up_to_date,
    read_provenance,
    read_table,
    write_provenance,
    write_table,
)

FEW = 32  # images: for so few, starting workers takes longer than it saves
CHUNK = 16  # images that a worker takes at a time

Row = dict[str, Any]  # face columns of one image; absent ones are empty
Paths = tuple[str, str]  # of an image and its crop


def write_face_crops(folder: Path, options: FaceConfig = FACES, engine: Engine = Engine()) -> pd.DataFrame:
    """Write the face crops of a data set's images, and their table. The data set is locked meanwhile.

    Args:
        folder: The data set's folder, with `inventory.csv`.
        options: Size, channels and alignment of the crops, and the search for faces.
        engine: Where the images are cropped. The result does not depend on it.

    Returns:
        The inventory with the face columns, one row per image.

    Raises:
        InputError: The inventory or the options cannot be used, or another process writes the data set. Nothing is
            written then.
    """
    faces.check_options(options)
    with exclusive_lock(folder):
        inventory = read_table(folder, "inventory.csv")
        provenance = json.dumps(
            {
                "inventory": content_hash(inventory),
                "images": content_hash(inventory[["path", "pixel_hash"]]),
                **face_detector.crop_versions(options),
                "options": asdict(options),
            }
        )
        if _is_done(folder, provenance):
            print(f"unchanged: {folder / 'faces.csv'} was made from the same images and options; nothing to do")
            return read_table(folder, "faces.csv")
        columns = _keep_crops(folder, inventory, provenance)
        if columns is None:
            rows = _crop_all(folder, inventory, options, provenance, engine)
            columns = {
                column: [row.get(column, np.nan if column in NUMERIC_COLUMNS else "") for row in rows]
                for column in FACE_COLUMNS
            }
        table = inventory.drop(columns=FACE_COLUMNS, errors="ignore").assign(**columns)
        write_table(table, folder / "faces.csv")
        write_provenance(folder, "faces.csv", provenance)
        _journal(folder).unlink(missing_ok=True)
    return table


def _keep_crops(folder: Path, inventory: pd.DataFrame, provenance: str) -> dict[str, pd.Series] | None:
    """Return the face columns of earlier crops if only other columns of the inventory changed; else None.

    Before the table is written, the record names no inventory: after a kill, the crops can still be kept, but no step
    accepts the table.
    """
    try:
        before, table = read_provenance(folder, "faces.csv"), read_table(folder, "faces.csv")
    except InputError:
        return None
    now, images, unknown = json.loads(provenance), ["path", "pixel_hash"], {"inventory": ""}
    has_same_inventory = before.get("inventory") == now["inventory"]
    if has_same_inventory:
        before.setdefault("images", now["images"])  # a record of an earlier version has no such entry
    is_same = before | unknown == now | unknown and table[images].equals(inventory[images])
    if not (is_same and _has_crops(folder, table)):
        return None
    print("the images are the same: their crops are kept")
    if not has_same_inventory:
        for name in ("split.json", "split.csv"):  # they have the earlier labels
            (folder / name).unlink(missing_ok=True)
    write_provenance(folder, "faces.csv", json.dumps(now | unknown))
    return {column: table[column] for column in FACE_COLUMNS}


def _is_done(folder: Path, provenance: str) -> bool:
    if not is_up_to_date(folder, "faces.csv", provenance):
        return False
    return _has_crops(folder, read_table(folder, "faces.csv"))


def _has_crops(folder: Path, table: pd.DataFrame) -> bool:
    return all((folder / path).is_file() for path in table["face_path"] if path)


def _crop_all(folder: Path, inventory: pd.DataFrame, options: FaceConfig, provenance: str, engine: Engine) -> list[Row]:
    """Write the missing crops and return the face columns of all rows."""
    paths = list(zip(inventory["path"], face_paths(inventory["path"]), strict=True))
    with _open_journal(folder, provenance) as (rows, append), progress_bar() as bar:
        if rows:
            print(f"continuing after {len(rows)} of {len(paths)} images")
        task = bar.add_task("face crops", total=len(paths), completed=len(rows))
        with closing(_crops(folder, paths[len(rows) :], options, engine)) as new_rows:
            for row in new_rows:
                append(row)
                bar.advance(task)
    return rows


def _crops(folder: Path, paths: list[Paths], options: FaceConfig, engine: Engine) -> Generator[Row, None, None]:
    """Yield the rows of images in order.

    Whole images need neither workers nor a detector. After the first search, which converts the networks, the engine
    crops the remaining images.
    """
    detector = cache(lambda: face_detector.FaceDetector(options))
    is_parallel = engine.name != "local" or available_cores() > 1
    for number, (path, face_path) in enumerate(paths):
        searches = detector.cache_info().currsize > 0
        if searches and is_parallel and len(paths) - number > FEW:
            crop = partial(_crop_in_worker, folder.absolute(), options, face_detector.network_files())
            yield from engine.map(crop, paths[number:], CHUNK, partial(_refuse, folder))
            return
        yield crop_face(folder, path, face_path, options, detector)


def _crop_in_worker(folder: Path, options: FaceConfig, networks: tuple[Path, Path, Path], paths: Paths) -> Row:
    return crop_face(folder, *paths, options, partial(_worker_detector, options, networks))


def _refuse(folder: Path, paths: Paths) -> Row:
    """Refuse an image that ends its worker.

    Raises:
        InputError: Always, with the image's name.
    """
    raise InputError(
        f"{folder / paths[0]} ends the process that reads it: it is damaged, or needs more memory than there is; "
        "remove it from the source, and run step 1 again"
    )


@lru_cache(maxsize=1)
def _worker_detector(options: FaceConfig, networks: tuple[Path, Path, Path]) -> faces.Detector:
    return face_detector.FaceDetector(options, threads=1, networks=networks)


def face_paths(paths: pd.Series) -> list[str]:
    """Return the crops' paths: those of the images with `faces/` for `images/` and the suffix `.png`.

    Where two images differ only in their suffix, all crops keep the image's suffix (`a.jpg.png`).
    """
    inside = [path.removeprefix("images/") for path in paths]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in inside]
    unique = len(set(stems)) == len(set(inside))
    return [f"faces/{name}.png" for name in (stems if unique else inside)]


def crop_face(
    folder: Path, path: str, face_path: str, options: FaceConfig, detector: Callable[[], faces.Detector]
) -> Row:
    """Write the crop of one image.

    Args:
        folder: The data set's folder.
        path: The image, relative to it.
        face_path: The crop to write, relative to it.
        options: How to search and crop.
        detector: Returns the detector; only called where a face is searched.

    Returns:
        The image's face columns. An unreadable image is `not_found`, without a `face_count`.
    """
    try:
        image_rgb = crops.read_image_rgb(folder / path)
    except InputError:
        return {"face_status": "not_found"}
    face, row = None, {}
    is_crop = crops.is_face_crop(image_rgb)
    if options.detect or (options.detect is None and not is_crop):
        found = crops.detect_in_crop(image_rgb, detector()) if is_crop else detector().detect(image_rgb)
        face = faces.choose_face(found, image_rgb.shape)
        row = {"face_count": str(len(found))}
        if face is None and not is_crop:
            return row | {"face_status": "not_found"}
    _write_png(folder / face_path, crops.network_input(image_rgb, face, options))
    row |= {"face_path": face_path, "face_status": "whole_image" if face is None else "found"}
    return row if face is None else row | _location(face)


def _location(face: faces.Face) -> Row:
    """Return a face's confidence, and its box and landmarks in pixels to two decimals."""
    box = dict(zip(BOX_COLUMNS, (face.left, face.top, face.width, face.height), strict=True))
    points = {} if face.landmarks is None else dict(zip(LANDMARK_COLUMNS, face.landmarks.ravel(), strict=True))
    pixels = {column: round(float(value), 2) for column, value in (box | points).items()}
    return {"face_confidence": round(face.confidence, 4), **pixels}


def _write_png(file: Path, crop: np.ndarray) -> None:
    """Write uint8 (size, size, 1) gray or (size, size, 3) RGB; a resumed run rewrites a crop that a kill cut."""
    image = crop if crop.shape[2] == 1 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    file.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(file):
        file.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _journal(folder: Path) -> Path:
    return folder / "faces.part.jsonl"


@contextmanager
def _open_journal(folder: Path, provenance: str) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
    """Give the rows that an interrupted run finished, and a function that appends one.

    The journal has one line of JSON with the provenance, and one per finished image, in the table's order. A line is
    written after the image's crop. Without a journal of the same provenance, all earlier crops are removed.
    """
    file = _journal(folder)
    rows = _read_journal(file, provenance)
    if rows is None:
        if reason := _reason_to_restart(folder, provenance):
            print(f"all crops are made again: {reason}", flush=True)
        for name in ("split.json", "faces.json", "split.csv", "faces.csv"):  # they describe the removed crops
            (folder / name).unlink(missing_ok=True)
        file.unlink(missing_ok=True)  # before the crops that it lists
        shutil.rmtree(folder / "faces", ignore_errors=True)
        rows = []
    kept = [provenance, *map(json.dumps, rows)]  # without the line that a kill may have cut
    write_file(file, "".join(f"{line}\n" for line in kept).encode())
    with named_errors(file), file.open("a", encoding="utf-8") as lines:

        def append(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            rows.append(row)

        yield rows, append


def _read_journal(file: Path, provenance: str) -> list[Row] | None:
    """Return a journal's finished rows, up to a missing crop; None where there is no journal of this provenance."""
    first, *lines = (file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "").split("\n")
    if first != provenance:
        return None
    rows = []
    for line in lines:
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError):  # cut by a kill
            break
        if not (file.parent / row.get("face_path", "")).exists():  # the crop has disappeared
            break
        rows.append(row)
    return rows


def _reason_to_restart(folder: Path, provenance: str) -> str:
    """Return why earlier crops cannot be kept; empty where there are none."""
    journal = _journal(folder)
    try:
        before = read_provenance(folder, "faces.csv")
        if not before and journal.is_file():  # of an interrupted run
            before = json.loads(journal.read_text(encoding="utf-8").partition("\n")[0])
        now = json.loads(provenance)
        before, now = ({**record, **record.get("options", {})} for record in (before, now))
    except (InputError, OSError, ValueError, TypeError, AttributeError):
        return "their provenance record is damaged"
    if not before:
        return ""
    changed = [name for name in now if name != "options" and before.get(name) != now[name]]
    return f"changed: {', '.join(changed)}" if changed else "a crop or the table is missing or damaged"
