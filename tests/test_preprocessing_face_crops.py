import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from raw_data import random_gray, write_image

from common.engine import Engine
from common.errors import InputError
from configuration import FACES
from inference import face_detector
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector
from inference.faces import choose_face
from preprocessing import face_crops
from preprocessing.datasets.sample import SAMPLE, write_raw
from preprocessing.face_crops import face_paths, write_face_crops
from preprocessing.tables import INVENTORY_COLUMNS, LANDMARK_COLUMNS, read_table, write_table

STEP2 = "preprocessing.step2_face_crops"
PATHS = [f"images/Training/{number}.png" for number in range(5)]


def write_inventory(folder: Path, paths: list[str], **columns) -> Path:
    rows = pd.DataFrame({column: [""] * len(paths) for column in INVENTORY_COLUMNS}).assign(path=paths, status="ok")
    write_table(rows.assign(**columns), folder / "inventory.csv")
    return folder


@pytest.fixture
def crops_folder(tmp_path) -> Path:
    """A data set of five 48 x 48 gray images, as FER2013's."""
    for number, path in enumerate(PATHS):
        write_image(tmp_path / "data" / "small" / path, random_gray(number))
    return write_inventory(tmp_path / "data" / "small", PATHS, emotion="fear", votes_fear="7", gender="?")


@pytest.fixture(scope="module")
def faces_folder(tmp_path_factory) -> Path:
    """A data set with faces: three frames of the sample, and an image without a face."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    raw = folder / "images" / "raw"
    write_raw(raw, replace(SAMPLE, subjects=1, frames=2, unlabelled=0))
    write_image(folder / "images" / "empty.png", random_gray(0, 240))
    frames = sorted(file.relative_to(folder).as_posix() for file in raw.rglob("*.png"))[:3]
    return write_inventory(folder, [*frames, "images/empty.png"], emotion="fear")


@pytest.fixture
def many_folder(tmp_path, faces_folder) -> Path:
    """A data set of 96 images: face, face, face, no face, face crop, unreadable, and again."""
    folder = tmp_path / "data" / "many"
    kinds = [faces_folder / path for path in read_table(faces_folder, "inventory.csv")["path"]]
    write_image(folder / "small.png", random_gray(0))
    (folder / "broken.png").write_bytes(b"no image")
    kinds += [folder / "small.png", folder / "broken.png"]
    paths = [f"images/{number:03}.png" for number in range(96)]
    (folder / "images").mkdir()
    for number, path in enumerate(paths):
        os.link(kinds[number % len(kinds)], folder / path)
    return write_inventory(folder, paths)


@pytest.fixture
def cropped_here(monkeypatch) -> list[str]:
    """The paths of the images that are cropped in this process, on a machine with two cores."""
    paths = []
    crop_face = face_crops.crop_face

    def crop_and_note(folder, path, *arguments):
        paths.append(path)
        return crop_face(folder, path, *arguments)

    monkeypatch.setattr(face_crops, "crop_face", crop_and_note)
    monkeypatch.setattr(face_crops, "available_cores", lambda: 2)
    return paths


def started(folder: Path, rows: int, **options: Any) -> subprocess.Popen:
    """Start step 2, and return its process when it has finished more than some rows."""
    command = [sys.executable, "-m", STEP2, "--dataset", folder.name, "--data", str(folder.parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes, **options)
    journal = folder / "faces.part.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > rows):
        time.sleep(0.005)
    return process


def times_below(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def read_gray(file: Path) -> np.ndarray:
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


# ---- what is cropped


def test_small_images_are_used_whole_with_equal_pixels_and_only_once(crops_folder, monkeypatch, capsys):
    before = read_table(crops_folder, "inventory.csv")
    table = write_face_crops(crops_folder, replace(FACES, detect=False))
    pd.testing.assert_frame_equal(table[before.columns], before)
    pd.testing.assert_frame_equal(read_table(crops_folder, "faces.csv"), table)
    assert list(table["face_status"]) == ["whole_image"] * 5
    assert list(table["face_path"]) == [f"faces/Training/{number}.png" for number in range(5)]
    for path, face_path in zip(table["path"], table["face_path"], strict=True):
        np.testing.assert_array_equal(read_gray(crops_folder / face_path), read_gray(crops_folder / path))
    assert set(table["face_count"]) == {""} and table["box_left"].isna().all()
    times = times_below(crops_folder)
    monkeypatch.setattr(face_detector, "DETECTOR_VERSION", 2)  # whole images do not depend on it
    pd.testing.assert_frame_equal(write_face_crops(crops_folder, replace(FACES, detect=False)), table)
    assert "nothing to do" in capsys.readouterr().out and times_below(crops_folder) == times


def test_larger_images_are_cropped_like_the_webcam(faces_folder):
    table = write_face_crops(faces_folder)
    assert list(table["face_status"]) == ["found"] * 3 + ["not_found"]
    assert list(table["face_count"]) == ["1", "1", "1", "0"]
    assert table["face_path"][3] == "" and not (faces_folder / "faces" / "empty.png").exists()
    detector = FaceDetector()
    for row in table[:3].to_dict("records"):
        image_rgb = read_image_rgb(faces_folder / row["path"])
        face = choose_face(detector.detect(image_rgb), image_rgb.shape)
        assert face is not None and face.landmarks is not None
        crop = read_gray(faces_folder / row["face_path"])
        np.testing.assert_array_equal(crop, network_input(image_rgb, face)[:, :, 0])
        assert row["box_left"] == pytest.approx(face.left, abs=0.01)
        assert row["face_confidence"] == pytest.approx(face.confidence, abs=1e-4)
        np.testing.assert_allclose([row[column] for column in LANDMARK_COLUMNS], face.landmarks.ravel(), atol=0.01)


def test_no_detect_uses_every_image_whole(faces_folder):
    options = replace(FACES, detect=False, size=32, channels=3)
    table = write_face_crops(faces_folder, options)
    assert set(table["face_status"]) == {"whole_image"}
    expected = network_input(read_image_rgb(faces_folder / "images" / "empty.png"), None, options)
    crop = read_gray(faces_folder / "faces" / "empty.png")
    np.testing.assert_array_equal(crop, cv2.cvtColor(expected, cv2.COLOR_RGB2BGR))


def test_detect_aligns_face_crops_or_uses_them_whole(tmp_path, faces_folder):
    write_face_crops(faces_folder)
    face_path = read_table(faces_folder, "faces.csv")["face_path"][0]
    write_image(tmp_path / "images" / "face.png", np.roll(read_gray(faces_folder / face_path), 4, axis=1))
    write_image(tmp_path / "images" / "noise.png", random_gray(1))
    write_inventory(tmp_path, ["images/face.png", "images/noise.png"])
    table = write_face_crops(tmp_path, replace(FACES, detect=True))
    assert table[["face_status", "face_count"]].to_numpy().tolist() == [["found", "1"], ["whole_image", "0"]]
    assert 0 <= table["left_eye_x"][0] < table["right_eye_x"][0] < 48  # pixels of the original, not of its copy
    np.testing.assert_array_equal(read_gray(tmp_path / "faces" / "noise.png"), random_gray(1))
    aligned = read_gray(tmp_path / "faces" / "face.png").astype(float)
    shifted, straight = read_gray(tmp_path / "images" / "face.png"), read_gray(faces_folder / face_path)
    assert np.abs(aligned - straight).mean() < 0.7 * np.abs(aligned - shifted).mean()


def test_unreadable_and_missing_images_keep_their_rows(crops_folder, run_step):
    (crops_folder / PATHS[1]).write_bytes(b"no image")
    (crops_folder / PATHS[4]).unlink()
    run = run_step(STEP2, "--dataset", "small", "--data", crops_folder.parent)
    assert run.returncode == 0, run.stderr
    assert "5 images: 0 with a face found, 3 used whole, 0 without a face, 2 unreadable" in run.stdout
    assert "images/Training/1.png, images/Training/4.png" in run.stdout
    table = read_table(crops_folder, "faces.csv")
    assert list(table["face_status"] == "not_found") == [False, True, False, False, True]


def test_no_two_images_share_a_crop():
    assert face_paths(pd.Series(["images/a/1.jpg", "images/2.png"])) == ["faces/a/1.png", "faces/2.png"]
    assert face_paths(pd.Series(["images/1.jpg", "images/1.png"])) == ["faces/1.jpg.png", "faces/1.png.png"]


# ---- running again, being killed


DAMAGED = "a crop or the table is missing or damaged"
CHANGES = {
    "crop": ("changed: crop_version", lambda folder, patch: patch.setattr(face_detector, "CROP_VERSION", 2)),
    "library": ("changed: opencv", lambda folder, patch: patch.setattr(cv2, "__version__", "4.99")),
    "inventory": ("changed: inventory, images", lambda folder, patch: write_inventory(folder, PATHS[:4])),
    "missing": (DAMAGED, lambda folder, patch: (folder / "faces" / "Training" / "2.png").unlink()),
    "table": (DAMAGED, lambda folder, patch: (folder / "faces.csv").write_text("path,emotion\n1.png,grumpy\n")),
    "record": ("their provenance record is damaged", lambda folder, patch: (folder / "faces.json").write_text("[1]")),
    "size": ("changed: size", lambda folder, patch: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_crops_are_made_again_with_the_reason(crops_folder, monkeypatch, capsys, change):
    write_face_crops(crops_folder)
    (crops_folder / "split.csv").write_text("of the earlier crops")
    reason, make = CHANGES[change]
    make(crops_folder, monkeypatch)
    options = replace(FACES, size=32) if change == "size" else FACES
    capsys.readouterr()
    table = write_face_crops(crops_folder, options)
    assert capsys.readouterr().out == f"all crops are made again: {reason}\n"
    crops = sorted((crops_folder / "faces").rglob("*.png"))
    assert len(crops) == len(table) == (4 if change == "inventory" else 5)
    assert {read_gray(file).shape for file in crops} == {(options.size, options.size)}
    assert not (crops_folder / "split.csv").exists()


def test_crops_are_kept_where_only_labels_or_own_columns_change(crops_folder, capsys):
    crops = write_face_crops(crops_folder)
    (crops_folder / "split.csv").write_text("with the earlier labels")
    before = times_below(crops_folder / "faces")
    inventory = read_table(crops_folder, "inventory.csv").assign(emotion="fear", mood="f")
    write_table(inventory, crops_folder / "inventory.csv")
    table = write_face_crops(crops_folder)
    assert times_below(crops_folder / "faces") == before and "their crops are kept" in capsys.readouterr().out
    pd.testing.assert_frame_equal(table.drop(columns="mood"), crops.assign(emotion="fear"))
    assert set(table["mood"]) == {"f"} and not (crops_folder / "split.csv").exists()
    pd.testing.assert_frame_equal(write_face_crops(crops_folder), table)
    assert "nothing to do" in capsys.readouterr().out
    crops = read_table(crops_folder, "faces.csv")
    write_table(crops.iloc[::-1], crops_folder / "faces.csv")  # sorted in a spreadsheet
    write_table(inventory.assign(mood="m"), crops_folder / "inventory.csv")
    pd.testing.assert_frame_equal(write_face_crops(crops_folder), crops.assign(mood="m"))


def test_interrupted_run_is_resumed(crops_folder, cropped_here, monkeypatch, capsys):
    expected = write_face_crops(crops_folder)
    (crops_folder / "faces.json").unlink()
    cropped_here.clear()
    noting = face_crops.crop_face

    def crop_two_then_stop(*arguments):
        if len(cropped_here) == 2:
            raise KeyboardInterrupt
        return noting(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(face_crops, "crop_face", crop_two_then_stop)
        write_face_crops(crops_folder)
    assert not (crops_folder / "faces.csv").exists()  # no table beside a mixture of old and new crops
    with (crops_folder / "faces.part.jsonl").open("a") as journal:
        journal.write('{"face_status": "who')  # a line that a kill cut
    table = write_face_crops(crops_folder)
    assert cropped_here == list(table["path"])  # each once
    assert "continuing after 2 of 5" in capsys.readouterr().out
    pd.testing.assert_frame_equal(table, expected)
    assert not (crops_folder / "faces.part.jsonl").exists()


# ---- worker processes


def test_workers_make_the_same_rows_and_crops_in_the_same_order(many_folder, cropped_here, monkeypatch):
    by_workers = write_face_crops(many_folder)
    assert cropped_here == ["images/000.png"]  # the first search is made here, the others by workers
    crops = {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}
    (many_folder / "faces.json").unlink()
    monkeypatch.setattr(face_crops, "available_cores", lambda: 1)
    alone = write_face_crops(many_folder)
    assert cropped_here[1:] == list(alone["path"])
    pd.testing.assert_frame_equal(by_workers, alone)
    assert crops == {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}
    assert list(alone["face_status"]) == [*["found"] * 3, "not_found", "whole_image", "not_found"] * 16
    assert list(alone["face_count"]) == ["1", "1", "1", "0", "", ""] * 16


@pytest.mark.system
def test_ray_makes_the_same_rows_and_crops(many_folder):
    pytest.importorskip("ray")
    local = write_face_crops(many_folder)
    crops = {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}
    (many_folder / "faces.json").unlink()
    shutil.rmtree(many_folder / "faces")
    pd.testing.assert_frame_equal(write_face_crops(many_folder, engine=Engine("ray")), local)
    assert crops == {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}


def test_resumed_run_makes_crops_again_that_have_disappeared(crops_folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(face_crops, "write_table", stop)
        write_face_crops(crops_folder)
    shutil.rmtree(crops_folder / "faces")
    table = write_face_crops(crops_folder)
    assert all((crops_folder / path).is_file() for path in table["face_path"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to interrupt")
def test_killed_and_interrupted_runs_leave_no_workers_and_are_resumed(many_folder, run_step):
    process = started(many_folder, 9)
    process.kill()
    process.communicate(timeout=60)  # workers hold its standard output, too: this ends when they have
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    finished = (many_folder / "faces.part.jsonl").read_bytes().count(b"\n")
    process = started(many_folder, finished + 5, start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    finished = (many_folder / "faces.part.jsonl").read_bytes().count(b"\n") - 1
    before = {file: file.stat().st_mtime_ns for file in sorted((many_folder / "faces").iterdir())[: finished // 2]}
    run = run_step(STEP2, "--dataset", "many", "--data", many_folder.parent)
    assert run.returncode == 0 and f"continuing after {finished} of 96" in run.stdout
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert list(read_table(many_folder, "faces.csv")["face_status"] == "found") == ([True] * 3 + [False] * 3) * 16


def test_lost_worker_is_replaced_and_an_image_that_ends_its_worker_is_named(many_folder, monkeypatch, capsys):
    def break_pool(*_: Any, **__: Any) -> None:
        raise OSError("handle is closed")  # of Python's pool, where a worker ends while the next one starts

    def kill_a_worker():
        while not (workers := {*multiprocessing.active_children()} - {child}):
            time.sleep(0.005)
        workers.pop().kill()

    monkeypatch.setattr(face_crops, "available_cores", lambda: 2)
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    try:
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"001\.png ends the process"):
            patch.setattr(ProcessPoolExecutor, "submit", break_pool)
            write_face_crops(many_folder)
        killer = threading.Thread(target=kill_a_worker)
        killer.start()
        assert len(write_face_crops(many_folder)) == 96
        killer.join()
        assert multiprocessing.active_children() == [child]
    finally:
        child.kill()
        child.join()
    assert "continuing after" in capsys.readouterr().out


# ---- refusals


def test_missing_inventory_and_paths_outside_the_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"python -m preprocessing\.step1_inventory --dataset nothing"):
        write_face_crops(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="leaves the data folder"):
        write_face_crops(write_inventory(tmp_path / "x", ["../secret.png"]))
