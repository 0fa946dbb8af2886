"""Step 2: cut one face out of every picture, framed as in FER2013, ready for a network.

Reads:  data/NAME/inventory.csv and the images it lists
Writes: data/NAME/faces/**/*.png, data/NAME/faces.csv, data/NAME/faces.json (what they were made from)

    python -m preprocessing.step2_face_crops --dataset fer2013

A picture with no side above 100 pixels (`crop_side`) is a face already and is taken whole; in the others mtcnn looks
for faces and the largest one is aligned by its five points. `--detect` looks for a face in the small ones too, in an
enlarged copy, and takes those whole in which it finds none; `--no-detect` takes every picture whole. Where faces are
looked for in many pictures, one process per core does it. A killed run goes on where it was; a run on unchanged input
has nothing to do.
"""

import json
import multiprocessing
import multiprocessing.context
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath
from threading import Thread, current_thread, main_thread
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, progress_bar, run
from common.errors import InputError
from common.files import atomic_file, named_errors
from common.processes import available_cores, exclusive_lock
from configuration import FACES, PATHS, SAMPLE_NAME, FaceConfig
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

FEW = 32  # pictures: for no more than these, starting workers takes longer than they save
MOST_WORKERS = 61  # processes: Windows waits for no more at once
HANDED = 4  # pictures that a worker takes at a time; a run that is stopped ends when those taken are done

Row = dict[str, Any]  # face columns of one picture; those left out are empty


class Picture(NamedTuple):
    """A picture to crop: where it is, where its crop goes, and whether step 1 could read it."""

    path: str
    face_path: str
    readable: bool


def write_face_crops(folder: Path, options: FaceConfig = FACES) -> pd.DataFrame:
    """Write the crops of a data set's pictures, and their table. The data set is locked meanwhile.

    Args:
        folder: The data set's folder, with `inventory.csv`.
        options: Size, colour and alignment of the crops; what is looked for, and where.

    Returns:
        The inventory with the face columns added, one row per picture.

    Raises:
        InputError: no usable inventory, options that cannot be used, or another process writes the data set; nothing is
            written then.
    """
    faces.check_options(options)
    with exclusive_lock(folder):
        return _write_face_crops(folder, options)


def _write_face_crops(folder: Path, options: FaceConfig) -> pd.DataFrame:
    inventory = read_table(folder, "inventory.csv")
    origin = _origin(inventory, options)
    if _is_done(folder, origin):
        print(f"{folder / 'faces.csv'} is up to date: made from this inventory with these options, nothing to do")
        return read_table(folder, "faces.csv")
    table = inventory.drop(columns=FACE_COLUMNS, errors="ignore").assign(
        **_crop_all(folder, inventory, options, origin)
    )
    write_table(table, folder / "faces.csv")
    write_provenance(folder, "faces.csv", origin)
    _journal(folder).unlink()
    return table


def _origin(inventory: pd.DataFrame, options: FaceConfig) -> str:
    """Return what the crops are made from and how, as one line of JSON: where it changes, all are made again."""
    versions = face_detector.crop_versions(options)
    return json.dumps({"inventory": content_hash(inventory), **versions, "options": asdict(options)})


def _is_done(folder: Path, origin: str) -> bool:
    if not is_up_to_date(folder, "faces.csv", origin):
        return False
    paths = read_table(folder, "faces.csv")["face_path"]
    return all((folder / path).is_file() for path in paths if path)


def _crop_all(folder: Path, inventory: pd.DataFrame, options: FaceConfig, origin: str) -> dict[str, list]:
    """Make the crops that are not there yet and return the face columns of all rows."""
    is_readable = inventory["status"] != "unreadable"
    pictures = list(map(Picture, inventory["path"], face_paths(inventory["path"]), is_readable))
    with _open_journal(folder, origin) as (rows, append), progress_bar() as bar:
        if rows:
            print(f"going on after {len(rows)} of {len(pictures)} pictures")
        task = bar.add_task("face crops", total=len(pictures), completed=len(rows))
        with closing(_crops(folder, pictures[len(rows) :], options)) as new_rows:
            for row in new_rows:
                append(row)
                bar.advance(task)
    return {
        column: [row.get(column, np.nan if column in NUMERIC_COLUMNS else "") for row in rows]
        for column in FACE_COLUMNS
    }


def _crops(folder: Path, pictures: list[Picture], options: FaceConfig) -> Generator[Row, None, None]:
    """Crop pictures and give their rows, in order: here, and from the second face search on, where many are left, by
    one process per core.

    Pictures taken whole are soon done, without workers and without a detector. The first search converts the networks
    where they are not there yet, so that no two workers do.
    """
    detector = cache(lambda: face_detector.FaceDetector(options))
    processes = min(available_cores(), MOST_WORKERS)
    for number, picture in enumerate(pictures):
        searches = detector.cache_info().currsize > 0
        if searches and processes > 1 and len(pictures) - number > FEW:
            yield from _crops_by_workers(folder, pictures[number:], options, processes)
            return
        yield _crop(folder, picture, options, detector)


def _crops_by_workers(folder: Path, pictures: list[Picture], options: FaceConfig, processes: int) -> Iterator[Row]:
    """Crop pictures in worker processes and give their rows, in order. Only names and rows pass between processes.

    Raises:
        InputError: a worker was killed.
    """
    workers = _Workers()
    pool = ProcessPoolExecutor(processes, workers, _start_worker)
    try:
        with _ignored_interruptions():  # the workers start here
            crop = partial(_crop_in_worker, folder, options, face_detector.network_files())
            try:
                rows = pool.map(crop, pictures, chunksize=HANDED)
            except OSError as error:  # "handle is closed": the first worker ended while the next one was being started
                raise BrokenProcessPool(str(error)) from error
        yield from rows
    except BrokenProcessPool as error:
        # The pool waits forever for a worker that started while the pool failed. Other children are the caller's.
        for worker in set(multiprocessing.active_children()).intersection(workers.processes):
            worker.kill()
        raise InputError(
            "a worker process ended early, perhaps for want of memory; run the same command again to go on where it was"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Workers(multiprocessing.context.SpawnContext):
    """Starts processes as on every system and safely beside threads, and keeps a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[multiprocessing.context.SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> multiprocessing.context.SpawnProcess:  # noqa: N802
        """Return a new process."""
        self.processes.append(multiprocessing.context.SpawnProcess(*arguments, **options))
        return self.processes[-1]


@contextmanager
def _ignored_interruptions() -> Iterator[None]:
    """Ignore Ctrl-C, also in processes started meanwhile: the main process gets it too, and then ends its workers."""
    if current_thread() is not main_thread():  # where Python sets no signal handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows hands none down
    cv2.setNumThreads(1)
    Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)  # it was killed: nobody takes the rows


def _crop_in_worker(folder: Path, options: FaceConfig, networks: tuple[Path, Path, Path], picture: Picture) -> Row:
    return _crop(folder, picture, options, partial(_worker_detector, options, networks))


@lru_cache(maxsize=1)
def _worker_detector(options: FaceConfig, networks: tuple[Path, Path, Path]) -> faces.Detector:
    return face_detector.FaceDetector(options, threads=1, networks=networks)


def _crop(folder: Path, picture: Picture, options: FaceConfig, detector: Callable[[], faces.Detector]) -> Row:
    if not picture.readable:
        return {"face_status": "not_found"}
    return crop_face(folder, picture.path, picture.face_path, options, detector)


def face_paths(paths: pd.Series) -> list[str]:
    """Return where each picture's crop goes: its path with `faces/` for `images/` and the ending `.png`.

    Where two pictures of a data set differ by their ending only, all crops keep it (`a.jpg.png`).
    """
    inside = [path.removeprefix("images/") for path in paths]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in inside]
    unique = len(set(stems)) == len(set(inside))
    return [f"faces/{name}.png" for name in (stems if unique else inside)]


def crop_face(
    folder: Path, path: str, face_path: str, options: FaceConfig, detector: Callable[[], faces.Detector]
) -> Row:
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
    with named_errors(file):
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
        if reason := _reason_to_start_again(folder, origin):
            print(f"all crops are made again: {reason}", flush=True)
        for name in ("split.json", "faces.json", "split.csv", "faces.csv"):  # they describe the crops that go
            (folder / name).unlink(missing_ok=True)
        file.unlink(missing_ok=True)  # before the crops that it vouches for
        shutil.rmtree(folder / "faces", ignore_errors=True)
        rows = []
    with atomic_file(file) as temporary:  # without the line that a kill may have cut
        temporary.write_text("".join(f"{line}\n" for line in [origin, *map(json.dumps, rows)]), encoding="utf-8")
    with named_errors(file), file.open("a", encoding="utf-8") as lines:

        def append(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            rows.append(row)

        yield rows, append


def _read_journal(file: Path, origin: str) -> list[Row] | None:
    """Return a journal's finished rows; None where there is no journal of this origin."""
    first, *lines = (file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "").split("\n")
    if first != origin:
        return None
    rows = []
    for line in lines:
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):  # cut by a kill
            break
    return rows


def _reason_to_start_again(folder: Path, origin: str) -> str:
    """Return why earlier crops cannot be kept; empty where there are none."""
    try:
        earlier = read_provenance(folder, "faces.csv")
        if not earlier and _journal(folder).is_file():  # of an interrupted run
            earlier = json.loads(_journal(folder).read_text(encoding="utf-8").partition("\n")[0])
        before, now = ({**facts, **facts["options"]} for facts in (earlier or {"options": {}}, json.loads(origin)))
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return "the note of how they were made is damaged"
    if not before or "crop_version" not in before:
        return "an earlier version of this program made them" if earlier else ""
    changes = [
        "inventory.csv has changed" if name == "inventory" else f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in {**before, **now}
        if name != "options" and before.get(name) != now.get(name)
    ]
    return ", ".join(changes) or "one of them or their table is missing or damaged"


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
    dataset: DatasetName = SAMPLE_NAME,
    detect: Annotated[
        bool | None,
        typer.Option(help="Look for a face in every picture, or in none. Left out: only where a side is above 100 px."),
    ] = FACES.detect,
    align: Annotated[
        str, typer.Option(help="landmarks: turn and scale by five points; box: plain square.")
    ] = FACES.align,
    size: Annotated[int, typer.Option(help="Side of the square crops, in pixels.")] = FACES.size,
    channels: Annotated[int, typer.Option(help="1: gray, 3: RGB.")] = FACES.channels,
    min_face_size: Annotated[int, typer.Option(help="Smallest face looked for, in pixels.")] = FACES.min_face_size,
    data: DataRoot = PATHS.data,
) -> None:
    """Cut one face out of every picture of a data set, framed as in FER2013."""
    options = replace(FACES, detect=detect, align=align, size=size, channels=channels, min_face_size=min_face_size)
    folder = dataset_folder(data, dataset)
    print_counts(write_face_crops(folder, options), folder)


if __name__ == "__main__":
    run(main)
