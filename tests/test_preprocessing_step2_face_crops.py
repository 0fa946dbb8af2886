import json
import multiprocessing
import os
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

from common.errors import InputError
from configuration import FACES, ROOT
from inference.crops import network_input, read_image_rgb
from inference.face_detector import FaceDetector
from inference.faces import choose_face
from preprocessing import step2_face_crops
from preprocessing.datasets.sample import SAMPLE, write_raw
from preprocessing.face_crops import face_paths, write_face_crops
from preprocessing.tables import INVENTORY_COLUMNS, LANDMARK_COLUMNS, read_table, write_table


def write_inventory(folder: Path, paths: list[str], **columns) -> Path:
    rows = pd.DataFrame({column: [""] * len(paths) for column in INVENTORY_COLUMNS}).assign(path=paths, status="ok")
    write_table(rows.assign(**columns), folder / "inventory.csv")
    return folder


def write_image(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), image)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def crops_folder(tmp_path) -> Path:
    """A data set of five 48 x 48 gray pictures, as FER2013's are."""
    folder = tmp_path / "data" / "small"
    paths = [f"images/Training/{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        write_image(folder / path, noise(number, 48, 48))
    return write_inventory(folder, paths, emotion="fear", votes_fear="7", gender="?")


@pytest.fixture(scope="module")
def faces_folder(tmp_path_factory) -> Path:
    """A data set with faces: three frames of the sample, and a picture without a face."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    raw = folder / "images" / "raw"
    write_raw(raw, replace(SAMPLE, subjects=1, frames=2, unlabelled=0))
    write_image(folder / "images" / "empty.png", noise(0, 240, 320))
    frames = sorted(file.relative_to(folder).as_posix() for file in raw.rglob("*.png"))[:3]
    return write_inventory(folder, [*frames, "images/empty.png"], emotion="fear")


@pytest.fixture
def many_folder(tmp_path, faces_folder) -> Path:
    """A data set of 150 pictures: face, face, face, no face, face crop, no picture, and again."""
    folder = tmp_path / "data" / "many"
    kinds = [faces_folder / path for path in read_table(faces_folder, "inventory.csv")["path"]]
    write_image(folder / "small.png", noise(0, 48, 48))
    (folder / "broken.png").write_bytes(b"no picture")
    kinds += [folder / "small.png", folder / "broken.png"]
    paths = [f"images/{number:03}.png" for number in range(150)]
    (folder / "images").mkdir()
    for number, path in enumerate(paths):
        os.link(kinds[number % len(kinds)], folder / path)
    return write_inventory(folder, paths)


@pytest.fixture
def cropped_here(monkeypatch) -> list[str]:
    """The paths of the pictures that are cropped in this process, not by a worker, of a machine with two cores."""
    paths = []
    crop_face = step2_face_crops.crop_face

    def crop_and_note(folder, path, *arguments):
        paths.append(path)
        return crop_face(folder, path, *arguments)

    monkeypatch.setattr(step2_face_crops, "crop_face", crop_and_note)
    monkeypatch.setattr(step2_face_crops, "available_cores", lambda: 2)
    return paths


def command_for(folder: Path) -> list[str]:
    module = "preprocessing.step2_face_crops"
    return [sys.executable, "-m", module, "--dataset", folder.name, "--data", str(folder.parent)]


def wait_for_rows(journal: Path, count: int, process: subprocess.Popen) -> None:
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > count):
        time.sleep(0.005)


def times_below(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def read_gray(file: Path) -> np.ndarray:
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


# ---------------------------------------------------------------- what is cropped


def test_face_crops_are_taken_whole_with_their_very_pixels(crops_folder):
    write_face_crops(crops_folder)
    table = read_table(crops_folder, "faces.csv")
    assert list(table["face_status"]) == ["whole_image"] * 5
    assert list(table["face_path"]) == [f"faces/Training/{number}.png" for number in range(5)]
    for path, face_path in zip(table["path"], table["face_path"], strict=True):
        np.testing.assert_array_equal(read_gray(crops_folder / face_path), read_gray(crops_folder / path))
    assert set(table["face_count"]) == {""} and table["box_left"].isna().all()


def test_every_column_of_the_inventory_is_carried_through(crops_folder):
    before = read_table(crops_folder, "inventory.csv")
    after = write_face_crops(crops_folder)
    pd.testing.assert_frame_equal(after[before.columns], before)
    pd.testing.assert_frame_equal(read_table(crops_folder, "faces.csv"), after)


def test_taking_pictures_whole_loads_no_network(crops_folder):
    program = (
        "import sys; from pathlib import Path; from preprocessing.face_crops import write_face_crops;"
        f"write_face_crops(Path({str(crops_folder)!r})); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_larger_pictures_are_cropped_as_the_webcam_would(faces_folder):
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


def test_no_detect_takes_every_picture_whole(faces_folder):
    options = replace(FACES, detect=False)
    table = write_face_crops(faces_folder, options)
    assert set(table["face_status"]) == {"whole_image"}
    expected = network_input(read_image_rgb(faces_folder / "images" / "empty.png"), None, options)
    np.testing.assert_array_equal(read_gray(faces_folder / "faces" / "empty.png"), expected[:, :, 0])


def test_detect_aligns_face_crops_and_falls_back_to_the_whole_one(tmp_path, faces_folder):
    write_face_crops(faces_folder)
    face_path = read_table(faces_folder, "faces.csv")["face_path"][0]
    write_image(tmp_path / "images" / "face.png", np.roll(read_gray(faces_folder / face_path), 4, axis=1))
    write_image(tmp_path / "images" / "noise.png", noise(1, 48, 48))
    write_inventory(tmp_path, ["images/face.png", "images/noise.png"])
    table = write_face_crops(tmp_path, replace(FACES, detect=True))
    assert list(table["face_status"]) == ["found", "whole_image"]
    assert list(table["face_count"]) == ["1", "0"]
    assert (
        0 <= table["left_eye_x"][0] < table["right_eye_x"][0] < 48
    )  # pixels of the original, not of the enlarged copy
    np.testing.assert_array_equal(read_gray(tmp_path / "faces" / "noise.png"), noise(1, 48, 48))
    aligned = read_gray(tmp_path / "faces" / "face.png").astype(float)
    shifted, straight = read_gray(tmp_path / "images" / "face.png"), read_gray(faces_folder / face_path)
    assert np.abs(aligned - straight).mean() < 0.7 * np.abs(aligned - shifted).mean()


def test_size_and_color_are_those_asked_for(tmp_path):
    write_image(tmp_path / "images" / "a.png", np.full((60, 60, 3), (0, 0, 250), np.uint8))
    write_inventory(tmp_path, ["images/a.png"])
    write_face_crops(tmp_path, replace(FACES, size=32, channels=3))
    crop = read_gray(tmp_path / "faces" / "a.png")
    assert crop.shape == (32, 32, 3) and (crop == (0, 0, 250)).all()


def test_unreadable_and_missing_pictures_keep_their_rows_and_are_counted(crops_folder, run_step):
    (crops_folder / "images" / "Training" / "1.png").write_bytes(b"no picture")
    (crops_folder / "images" / "Training" / "3.png").unlink()
    run = run_step("preprocessing.step2_face_crops", "--dataset", "small", "--data", crops_folder.parent)
    assert run.returncode == 0, run.stderr
    assert "5 pictures: 0 with a face found, 3 taken whole, 0 without a face, 2 unreadable" in run.stdout
    assert "images/Training/1.png, images/Training/3.png" in run.stdout
    table = read_table(crops_folder, "faces.csv")
    assert list(table["face_status"] == "not_found") == [False, True, False, True, False]


def test_a_row_marked_unreadable_is_not_read(crops_folder):
    paths = list(read_table(crops_folder, "inventory.csv")["path"])
    write_inventory(crops_folder, paths, status=["ok", "unreadable", "ok", "constant", "ok"])
    table = write_face_crops(crops_folder)
    assert list(table["face_status"]) == ["whole_image", "not_found", "whole_image", "whole_image", "whole_image"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["images/a/1.jpg", "images/2.png"], ["faces/a/1.png", "faces/2.png"]),
        (["images/1.jpg", "images/1.png"], ["faces/1.jpg.png", "faces/1.png.png"]),
        (["elsewhere/1.v2.jpg", "images/none"], ["faces/elsewhere/1.v2.png", "faces/none.png"]),
    ],
)
def test_no_two_pictures_share_a_crop(paths, expected):
    assert face_paths(pd.Series(paths)) == expected


# ---------------------------------------------------------------- again, and after a kill


def test_a_second_run_on_unchanged_input_does_no_work_and_says_so(crops_folder, capsys):
    first = write_face_crops(crops_folder)
    before = times_below(crops_folder)
    capsys.readouterr()
    second = write_face_crops(crops_folder)
    assert "nothing to do" in capsys.readouterr().out
    assert times_below(crops_folder) == before
    pd.testing.assert_frame_equal(second, first)


@pytest.mark.parametrize("change", ["options", "inventory", "crop"])
def test_changed_input_makes_all_crops_again(crops_folder, change):
    write_face_crops(crops_folder)
    paths = list(read_table(crops_folder, "inventory.csv")["path"])
    options = replace(FACES, size=32) if change == "options" else FACES
    if change == "inventory":
        write_inventory(crops_folder, paths[:3])
    if change == "crop":
        (crops_folder / "faces" / "Training" / "2.png").unlink()
    table = write_face_crops(crops_folder, options)
    crops = sorted((crops_folder / "faces").rglob("*.png"))
    assert len(crops) == len(table) == (3 if change == "inventory" else 5)
    assert {read_gray(file).shape for file in crops} == {(options.size, options.size)}
    assert json.loads((crops_folder / "faces.json").read_text())["options"]["size"] == options.size


def test_a_comment_in_the_code_keeps_all_crops(crops_folder, tmp_path, monkeypatch, capsys):
    write_face_crops(crops_folder)
    changed = tmp_path / "faces.py"
    changed.write_text(Path(step2_face_crops.faces.__file__).read_text() + "# a comment\n")
    monkeypatch.setattr(step2_face_crops.faces, "__file__", str(changed))
    write_face_crops(crops_folder)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["crop", "detector", "library", "size", "inventory", "old", "missing", "damaged"])
def test_crops_that_cannot_be_kept_are_made_again_with_the_reason(crops_folder, monkeypatch, capsys, change):
    faces, note = step2_face_crops.faces, crops_folder / "faces.json"
    write_face_crops(crops_folder)
    options = replace(FACES, size=32) if change == "size" else FACES
    reason = {
        "crop": "crop_version was 1, is 2",
        "detector": "detector_version was 1, is 2",
        "library": f"opencv was {cv2.__version__}, is 4.99",
        "size": "size was 48, is 32",
        "inventory": "inventory.csv has changed",
        "old": "an earlier version of this program made them",
        "missing": "one of them or their table is missing or damaged",
        "damaged": "the note of how they were made is damaged",
    }[change]
    if change in ("crop", "detector"):
        monkeypatch.setattr(faces, f"{change.upper()}_VERSION", 2)
    if change == "library":
        monkeypatch.setattr(cv2, "__version__", "4.99")
    if change == "inventory":
        write_inventory(crops_folder, list(read_table(crops_folder, "inventory.csv")["path"])[:4])
    if change == "old":
        note.write_text(json.dumps({"inventory": "0", "code": "0123456789abcdef", "options": {"size": 48}}))
    if change == "missing":
        (crops_folder / "faces" / "Training" / "2.png").unlink()
    if change == "damaged":
        note.write_text("[1]")
    capsys.readouterr()
    write_face_crops(crops_folder, options)
    assert capsys.readouterr().out == f"all crops are made again: {reason}\n"
    write_face_crops(crops_folder, options)
    assert "nothing to do" in capsys.readouterr().out


def test_crops_taken_whole_do_not_depend_on_the_detector(crops_folder, monkeypatch, capsys):
    options = replace(FACES, detect=False)
    write_face_crops(crops_folder, options)
    monkeypatch.setattr(step2_face_crops.faces, "DETECTOR_VERSION", 2)
    write_face_crops(crops_folder, options)
    assert "nothing to do" in capsys.readouterr().out


def test_a_split_of_crops_that_go_goes_too(crops_folder):
    write_face_crops(crops_folder)
    for name in ("split.csv", "split.json"):
        (crops_folder / name).write_text("of the earlier crops")
    write_face_crops(crops_folder)
    assert (crops_folder / "split.csv").exists()
    write_face_crops(crops_folder, replace(FACES, size=32))
    assert not list(crops_folder.glob("split.*"))


@pytest.mark.parametrize(
    ("name", "content"), [("faces.csv", "path,emotion\n1.png,grumpy\n"), ("faces.json", "{"), ("faces.part.jsonl", "")]
)
def test_a_damaged_table_or_record_is_written_again(crops_folder, name, content):
    table = write_face_crops(crops_folder)
    if name == "faces.part.jsonl":  # it is only read where there is no finished table
        (crops_folder / "faces.json").unlink()
    (crops_folder / name).write_text(content)
    pd.testing.assert_frame_equal(write_face_crops(crops_folder), table)
    assert json.loads((crops_folder / "faces.json").read_text())["options"]["size"] == FACES.size


def test_an_interrupted_run_goes_on_where_it_was(crops_folder, monkeypatch, capsys):
    expected = write_face_crops(crops_folder)
    (crops_folder / "faces.json").unlink()
    cropped = []
    crop_face = step2_face_crops.crop_face

    def crop_two_then_die(folder, path, *arguments):
        if len(cropped) == 2:
            raise KeyboardInterrupt
        cropped.append(path)
        return crop_face(folder, path, *arguments)

    monkeypatch.setattr(step2_face_crops, "crop_face", crop_two_then_die)
    with pytest.raises(KeyboardInterrupt):
        write_face_crops(crops_folder)
    assert not (crops_folder / "faces.csv").exists()  # no table beside a mixture of old and new crops
    with (crops_folder / "faces.part.jsonl").open("a") as journal:
        journal.write('{"face_status": "who')  # a line that a kill cut short

    def crop_and_note(folder, path, *arguments):
        cropped.append(path)
        return crop_face(folder, path, *arguments)

    monkeypatch.setattr(step2_face_crops, "crop_face", crop_and_note)
    table = write_face_crops(crops_folder)
    assert cropped == list(table["path"])  # each once
    assert "going on after 2 of 5" in capsys.readouterr().out
    pd.testing.assert_frame_equal(table, expected)
    assert not (crops_folder / "faces.part.jsonl").exists()


def test_a_run_interrupted_under_other_options_starts_anew(crops_folder, monkeypatch):
    crop_face = step2_face_crops.crop_face

    def die_at_the_third(folder, path, *arguments):
        if path.endswith("2.png"):
            raise KeyboardInterrupt
        return crop_face(folder, path, *arguments)

    monkeypatch.setattr(step2_face_crops, "crop_face", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_face_crops(crops_folder)
    monkeypatch.undo()
    write_face_crops(crops_folder, replace(FACES, size=24))
    assert {read_gray(file).shape for file in (crops_folder / "faces").rglob("*.png")} == {(24, 24)}


def test_a_killed_run_resumes_without_doing_finished_pictures_again(tmp_path):
    folder = tmp_path / "data" / "many"
    write_image(folder / "images" / "0.png", noise(0, 48, 48))
    paths = [f"images/{number}.png" for number in range(6_000)]
    for path in paths[1:]:
        os.link(folder / paths[0], folder / path)
    write_inventory(folder, paths)
    command = command_for(folder)
    journal = folder / "faces.part.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for_rows(journal, 100, process)
    process.kill()
    assert process.wait() != 0, "it ended before it could be killed"
    assert not (folder / "faces.csv").exists()
    finished = journal.read_bytes().count(b"\n") - 1
    before = {path: (folder / "faces" / f"{path}.png").stat().st_mtime_ns for path in range(finished)}

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"going on after {finished} of 6000" in run.stdout
    assert before == {path: (folder / "faces" / f"{path}.png").stat().st_mtime_ns for path in range(finished)}
    table = read_table(folder, "faces.csv")
    assert list(table["path"]) == paths and set(table["face_status"]) == {"whole_image"}
    assert len(list((folder / "faces").iterdir())) == 6_000


# ---------------------------------------------------------------- worker processes


def test_workers_make_the_same_rows_and_crops_in_the_same_order(many_folder, cropped_here, monkeypatch):
    by_workers = write_face_crops(many_folder)
    assert cropped_here == ["images/000.png"]  # the first search is made here, the others by workers
    crops = {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}
    (many_folder / "faces.json").unlink()
    monkeypatch.setattr(step2_face_crops, "available_cores", lambda: 1)
    alone = write_face_crops(many_folder)
    assert cropped_here[1:] == list(alone["path"])
    pd.testing.assert_frame_equal(by_workers, alone)
    assert crops == {file: file.read_bytes() for file in (many_folder / "faces").iterdir()}
    statuses = ["found", "found", "found", "not_found", "whole_image", "not_found"]
    assert list(alone["face_status"]) == statuses * 25
    assert list(alone["face_count"]) == ["1", "1", "1", "0", "", ""] * 25


def test_few_searches_and_pictures_taken_whole_need_no_workers(many_folder, cropped_here):
    paths = list(read_table(many_folder, "inventory.csv")["path"])
    write_face_crops(many_folder, replace(FACES, detect=False))
    assert cropped_here == paths
    cropped_here.clear()
    write_inventory(many_folder, paths[:30])
    write_face_crops(many_folder)
    assert cropped_here == paths[:30]


def test_a_run_with_workers_that_is_killed_leaves_none_and_resumes(many_folder):
    journal = many_folder / "faces.part.jsonl"
    process = subprocess.Popen(command_for(many_folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_rows(journal, 20, process)
    process.kill()
    process.communicate(timeout=30)  # workers hold its standard output too: this ends when they have
    assert process.returncode != 0, "it ended before it could be killed"
    finished = journal.read_bytes().count(b"\n") - 1
    before = {file: file.stat().st_mtime_ns for file in sorted((many_folder / "faces").iterdir())[: finished // 2]}

    run = subprocess.run(command_for(many_folder), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"going on after {finished} of 150" in run.stdout
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert list(read_table(many_folder, "faces.csv")["face_status"] == "found") == ([True] * 3 + [False] * 3) * 25


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to interrupt")
def test_ctrl_c_ends_a_run_with_workers_in_one_line(many_folder):
    process = subprocess.Popen(
        command_for(many_folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_rows(many_folder / "faces.part.jsonl", 20, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n") and "Traceback" not in errors


def test_a_worker_that_ends_while_the_next_one_starts_is_told_in_one_line(many_folder, monkeypatch):
    def start(*_: Any, **__: Any) -> None:
        raise OSError("handle is closed")  # as Python's pool tells it then

    monkeypatch.setattr(step2_face_crops, "available_cores", lambda: 2)
    monkeypatch.setattr(ProcessPoolExecutor, "map", start)
    with pytest.raises(InputError, match="run the same command again"):
        write_face_crops(many_folder)


def test_a_broken_pool_kills_no_child_of_the_caller(many_folder, monkeypatch):
    def start(*_: Any, **__: Any) -> None:
        raise OSError("handle is closed")

    monkeypatch.setattr(step2_face_crops, "available_cores", lambda: 2)
    monkeypatch.setattr(ProcessPoolExecutor, "map", start)
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        with pytest.raises(InputError, match="run the same command again"):
            write_face_crops(many_folder)
        child.join(0.2)
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_worker_that_is_killed_ends_the_run_in_one_line_and_the_next_run_goes_on(many_folder, monkeypatch, capsys):
    monkeypatch.setattr(step2_face_crops, "available_cores", lambda: 2)

    def kill_a_worker():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.005)
        workers[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(InputError, match="run the same command again"):
        write_face_crops(many_folder)
    killer.join()
    assert not multiprocessing.active_children()
    assert len(write_face_crops(many_folder)) == 150
    assert "going on after" in capsys.readouterr().out


def test_a_crop_that_a_worker_cannot_write_ends_the_run_in_one_line(many_folder, run_step, cropped_here):
    paths = list(read_table(many_folder, "inventory.csv")["path"])
    (many_folder / "images" / "000.png").rename(many_folder / "images" / "000.jpg")
    (many_folder / "images" / "000.png").mkdir()  # its crop would lie inside of another one
    (many_folder / "images" / "061.png").rename(many_folder / "images" / "000.png" / "061.png")
    paths[0], paths[61] = "images/000.jpg", "images/000.png/061.png"
    write_inventory(many_folder, paths)
    run = run_step("preprocessing.step2_face_crops", "--dataset", "many", "--data", many_folder.parent)
    assert run.returncode == 2 and cropped_here == paths[:1]
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "000.png" in last and "Traceback" not in run.stderr


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("options", [("--size", 0), ("--channels", 2), ("--min-face-size", 5), ("--align", "nose")])
def test_nonsense_options_are_refused_in_one_line(crops_folder, run_step, options):
    before = times_below(crops_folder)
    run = run_step("preprocessing.step2_face_crops", "--dataset", "small", "--data", crops_folder.parent, *options)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and str(options[1]) in run.stderr
    assert times_below(crops_folder) == before


def test_a_data_set_never_inventoried_names_the_step_to_run_first(tmp_path):
    with pytest.raises(InputError, match=r"python -m preprocessing\.step1_inventory --dataset nothing"):
        write_face_crops(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_a_path_that_leaves_the_data_folder_is_refused(tmp_path):
    write_inventory(tmp_path, ["../secret.png"])
    with pytest.raises(InputError, match="leaves the data folder"):
        write_face_crops(tmp_path)


def test_it_also_runs_as_a_plain_file(crops_folder):
    file = ROOT / "preprocessing" / "step2_face_crops.py"
    command = [sys.executable, file, "--dataset", "small", "--data", crops_folder.parent]
    run = subprocess.run(command, cwd=crops_folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "5 taken whole" in run.stdout
