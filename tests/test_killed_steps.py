"""The harness that kills steps, and steps on a disk that is full or read-only."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest
from conftest import ROOT
from raw_data import names_in, random_gray, write_image, write_images
from test_preprocessing_faults import dataset

from benchmarks.kill_steps import STEPS, Step
from benchmarks.kill_test import differences, kill_rounds

IN_PLACE = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from contextlib import nullcontext
from common.command_line import run
from preprocessing import splitting, step3_split

def write_in_place(table, file):
    text = table.to_csv(index=False)
    with file.open("w") as stream:
        stream.write(text[:len(text) // 2])
        stream.flush()
        time.sleep(6)
        stream.write(text[len(text) // 2:])

splitting.write_table = write_in_place
splitting.exclusive_lock = nullcontext  # its file would be one more change
run(step3_split.main)
"""
SPLIT = "--dataset x --data {work} --strategy random --seed 3"


def test_killed_step_ends_like_an_undisturbed_one(tmp_path):
    step = Step(f"-m preprocessing.step2_face_crops {SPLIT.split(' --strategy')[0]}", (dataset,))
    result = kill_rounds(step, 1, tmp_path)
    assert result.problems == [] and result.kills + result.late in (1, 2)


@pytest.mark.system
def test_table_that_is_written_in_place_is_found(tmp_path):
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    step = Step(f"{tmp_path / 'in_place.py'} {SPLIT}", (dataset,))
    for seed in range(12):  # a kill hits the six seconds of the write in about every second round
        (folder := tmp_path / f"rounds{seed}").mkdir()
        if "x/split.csv is half-written" in " ".join(kill_rounds(step, 1, folder, seed=seed).problems):
            return
    pytest.fail("the defect was not found")


def test_files_that_are_missing_left_over_or_different_are_reported():
    expected, step = (
        {"a.csv": b"1", "b.csv": b"2", "c/": b"", "d.png": b"3"},
        Step("", compare={"*.png": lambda *_: ""}),
    )
    files = {"a.csv": b"0", "d.png": b"4", ".a.part.csv": b""}
    assert differences(files, expected, step) == ["missing: b.csv, c/", "left over: .a.part.csv", "a.csv differs"]
    assert differences(expected, expected, step) == []


@pytest.mark.system
@pytest.mark.parametrize("name", ["step1_inventory", "step2_face_crops", "label_peaks", "webcam", "step3_best_model"])
def test_killed_step_of_the_pipeline_ends_like_an_undisturbed_one(tmp_path, name):
    assert kill_rounds(STEPS[name], 1, tmp_path, seed=5).problems == []


# ---- disks


@pytest.fixture
def disk(tmp_path) -> Iterator:
    """A small disk in memory, and a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        with contextlib.suppress(FileNotFoundError):
            return subprocess.run(command, capture_output=True).returncode
        return 1

    if mount("size=64k"):
        pytest.skip("mounting is not allowed; tests/test_preprocessing_faults.py limits the size of files instead")
    try:
        yield place, mount
    finally:
        subprocess.run(["umount", str(place)], check=True)


STEPS_1_TO_3 = ["preprocessing.step1_inventory", "preprocessing.step2_face_crops", "preprocessing.step3_split"]


def test_steps_end_in_one_line_on_a_full_disk_and_go_on_when_there_is_room(tmp_path, run_step, disk):
    place, mount = disk
    names = [f"{emotion}/{number}.png" for emotion in ("happy", "sad") for number in range(30)]
    source = write_images(tmp_path / "tree", *names)
    for name in names:
        write_image(source / name, random_gray(len(name), 48))
    for step in STEPS_1_TO_3:
        arguments = ["--dataset", "x", "--data", place, *(["--source", source] if "step1" in step else [])]
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        before = names_in(place / "x") if (place / "x").exists() else []
        done = run_step(step, *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "No space left on device" in done.stderr and str(place) in done.stderr
        (place / "filler").unlink()
        assert set(before) <= set(names_in(place / "x") if (place / "x").exists() else [])
        mount("remount,size=4m")
        assert run_step(step, *arguments).returncode == 0
    assert names_in(place / "x") == sorted(
        ["faces", "images", *(f"{name}.{kind}" for name in ("faces", "inventory", "split") for kind in ("csv", "json"))]
    )


def test_steps_on_a_read_only_disk_do_nothing_or_end_in_one_line(tmp_path, run_step, disk):
    """Root may write everywhere else, so that permissions would not show this."""
    place, mount = disk
    mount("remount,size=4m")
    source = write_images(tmp_path / "tree", *(f"{emotion}/{n}.png" for emotion in ("happy", "sad") for n in range(9)))
    runs = [(step, ["--source", source] if "step1" in step else []) for step in STEPS_1_TO_3]
    for step, options in runs:
        assert run_step(step, "--dataset", "x", "--data", place, *options).returncode == 0
    mount("remount,ro")
    changed = [["--map", "happy=fear"], ["--size", 32], ["--strategy", "folds", "--folds", 3]]
    for (step, options), other in zip(runs, changed, strict=True):
        done = run_step(step, "--dataset", "x", "--data", place, *options)
        assert done.returncode == 0 and "unchanged" in done.stdout
        done = run_step(step, "--dataset", "x", "--data", place, *options, *other)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Read-only file system" in done.stderr
