"""Damaged provenance records, kills, and disks that accept no more data."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, files_of_at_most
from raw_data import random_gray, write_fer2013, write_image, write_images

from common.errors import InputError
from common.files import atomic_file
from preprocessing.face_crops import write_face_crops
from preprocessing.inventory import write_inventory
from preprocessing.splitting import Strategy, write_split
from preprocessing.tables import (
    FACE_COLUMNS,
    INVENTORY_COLUMNS,
    crop_options,
    read_provenance,
    read_table,
    write_table,
)
from preprocessing.whole_images import write_whole_images
from training.sequences.data import read_sequences

DAMAGE = {
    "empty": b"",
    "list": b"[1, 2]",
    "binary": b"\xff\xfe\x00\x80",
    "deep": b"[" * 100_000,
}


def dataset(data: Path) -> Path:
    """Write a data set of six images with hand-made tables."""
    folder = data / "x"
    rows = []
    for number in range(6):
        path = f"images/{number}.png"
        write_image(folder / path, random_gray(number))
        row = dict.fromkeys([*INVENTORY_COLUMNS, *FACE_COLUMNS], "")
        row |= {"path": path, "emotion": ["anger", "fear"][number % 2], "pixel_hash": path, "status": "ok"}
        rows.append({**row, "face_path": path, "face_status": "whole_image"})
    write_table(pd.DataFrame(rows)[INVENTORY_COLUMNS], folder / "inventory.csv")
    write_table(pd.DataFrame(rows), folder / "faces.csv")
    return folder


@pytest.mark.parametrize("damage", [*DAMAGE, "folder"])
def test_damaged_record_ends_a_step_in_one_line_or_is_written_again(tmp_path, run_step, damage):
    folder = dataset(tmp_path)
    for record in ("faces.json", "split.json", "inventory.json"):
        (folder / record).mkdir() if damage == "folder" else (folder / record).write_bytes(DAMAGE[damage])

    split = run_step("preprocessing.step3_split", "--dataset", "x", "--data", tmp_path, "--strategy", "random")
    assert split.returncode == 2 and split.stderr.startswith(f"error: {folder / 'faces.json'} is damaged")
    assert split.stderr.count("\n") == 1 and "step2_face_crops" in split.stderr
    with pytest.raises(InputError, match=r"faces\.json.*is missing or damaged; run first: .*step2_face_crops"):
        crop_options(folder)
    page = run_step("preprocessing.label_peaks", "--annotator", "ann", "--dataset", "x", "--data", tmp_path)
    assert page.returncode == 2 and page.stderr.count("\n") == 1 and "inventory.json is damaged" in page.stderr

    crops = run_step("preprocessing.step2_face_crops", "--dataset", "x", "--data", tmp_path)
    assert crops.stderr.count("\n") == (damage == "folder")
    assert (crops.returncode, (folder / "faces.csv").exists()) == (2 if damage == "folder" else 0, True)
    if damage != "folder":
        assert json.loads((folder / "faces.json").read_text())["options"]["size"] == 48


def lose(name: str):
    return lambda folder: (folder / name).unlink()


def damage(name: str):
    return lambda folder: (folder / name).write_text("{")


def edit_inventory(folder: Path) -> None:
    table = read_table(folder, "inventory.csv")
    write_table(table.assign(note="x"), folder / "inventory.csv")


def of_sequences(folder: Path) -> None:
    write_table(read_table(folder, "split.csv").assign(sequence="S1", frame="1"), folder / "split.csv")


def use_inventory_record(folder: Path) -> None:
    read_provenance(folder, "inventory.csv")


def use_crops(folder: Path) -> None:
    write_split(folder, Strategy.RANDOM)


def use_split(folder: Path) -> None:
    read_sequences(read_table(folder, "split.csv"), folder)


REMEDIES = {  # what happens to a data set, what then names a remedy, and the part of it that this test does not run
    "no inventory": (lose("inventory.csv"), write_face_crops, ""),
    "inventory without columns": (lambda folder: (folder / "inventory.csv").write_text("a\n"), write_face_crops, ""),
    "record of the inventory": (damage("inventory.json"), use_inventory_record, "--source FILE_OR_FOLDER"),
    "no crops": (lose("faces.csv"), use_crops, ""),
    "damaged record of the crops": (damage("faces.json"), use_crops, ""),
    "no record of the crops": (lose("faces.json"), crop_options, ""),
    "other inventory": (edit_inventory, use_crops, ""),
    "no split": (lose("split.csv"), lambda folder: read_table(folder, "split.csv"), ""),
    "no image": (lose("images/calm face/1.png"), write_whole_images, ""),
    "peaks only": (of_sequences, use_split, "--frames all"),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_printed_remedy_works_when_pasted(tmp_path, run_step, case):
    """The data set is in another folder than the configured one, and the names need quotes."""
    (change, use, not_run), source = REMEDIES[case], tmp_path / "my pictures"
    write_images(source, *(f"{place}/{number}.png" for place in ("calm face", "fear", "rest") for number in range(6)))
    places = ["--dataset", "my set", "--data", tmp_path / "my data"]
    mapping = ["--source", source, "--map", "calm face=neutral", "--map", "rest=none"]
    steps = ["preprocessing.step1_inventory", "preprocessing.step2_face_crops", "preprocessing.step3_split"]
    for step in steps:
        assert run_step(step, *places, *(mapping if step == steps[0] else [])).returncode == 0
    change(folder := tmp_path / "my data" / "my set")
    with pytest.raises(InputError) as error:
        use(folder)
    command = str(error.value).partition(": python -m ")[2]
    assert not_run in command
    if not not_run:
        step, *words = shlex.split(command)
        assert (run := run_step(step, *words)).returncode == 0, run.stderr
        assert read_table(folder, "inventory.csv")["emotion"].value_counts()[["neutral", ""]].tolist() == [6, 6]
        for later in steps[steps.index(step) + 1 :]:
            assert run_step(later, *places).returncode == 0
        use(folder)


@pytest.mark.parametrize("content", ["{}", '{"options": {"size": "48", "channels": 1, "align": "box"}}'])
def test_record_with_other_entries_is_refused(tmp_path, content):
    (tmp_path / "faces.json").write_text(content)
    with pytest.raises(InputError, match=r"faces\.json.*run first: python -m preprocessing\.step2_face_crops"):
        crop_options(tmp_path)


def test_damaged_journal_starts_step_2_again(tmp_path, run_step):
    folder = dataset(tmp_path)
    (folder / "faces.part.jsonl").write_bytes(b"\xff\xfe{\n5\n")
    run = run_step("preprocessing.step2_face_crops", "--dataset", "x", "--data", tmp_path)
    assert run.returncode == 0 and "6 used whole" in run.stdout


def test_interrupted_step_1_leaves_no_table_beside_the_images_of_another_one(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "data")
    write_image(tmp_path / "source" / "angry" / "9.png", random_gray(9))
    rename = Path.rename

    def interrupt_after(file: Path, target: Path) -> None:
        rename(file, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt_after)
    with pytest.raises(KeyboardInterrupt):
        write_inventory(folder, tmp_path / "source")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"run first: python -m preprocessing\.step1_inventory"):
        write_face_crops(folder)
    assert write_inventory(folder, tmp_path / "source") and len(write_face_crops(folder)) == 1


# ---- full disks

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")


@needs_full_device
@pytest.mark.parametrize("kind", ["text", "table", "array"])
def test_failed_write_names_its_file(tmp_path, kind):
    file = tmp_path / "table.csv"
    (tmp_path / ".table.part.csv").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        if kind == "table":
            write_table(pd.DataFrame({"path": ["a"] * 9}), file)
        else:
            with atomic_file(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, np.zeros(100_000)) if kind == "array" else stream.write(b"x")
    assert error.value.filename == str(file) and error.value.errno is not None


def test_failed_write_leaves_the_earlier_file_and_a_kill_no_rest(tmp_path):
    file = tmp_path / "new" / "inventory.csv"
    with atomic_file(file) as temporary:
        temporary.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "before" and list(file.parent.iterdir()) == [file]
    temporary.write_text("of a killed run, which is longer than the new content")
    with atomic_file(file) as again:
        again.write_text("whole")
    assert file.read_text() == "whole" and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("step", ["step1_inventory", "step1_inventory of a table", "step2_face_crops", "step3_split"])
def test_full_disk_ends_a_step_in_one_line_that_names_the_place(tmp_path, run_step, step):
    folder = dataset(tmp_path / "data")
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    if step == "step1_inventory":
        write_image(tmp_path / "source" / "angry" / "1.png", random_gray(0))
        arguments += ["--source", tmp_path / "source"]
    elif step == "step1_inventory of a table":
        arguments += ["--source", write_fer2013(tmp_path)]
    before = {file: file.read_bytes() for file in folder.rglob("*.*") if file.is_file() and file.name != "faces.csv"}
    with files_of_at_most(600):  # also of the output
        run = run_step(f"preprocessing.{step.split()[0]}", *arguments)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ") and "File too large" in run.stderr and str(folder.parent) in run.stderr
    assert before == {file: file.read_bytes() for file in before}


@needs_full_device
def test_full_standard_output_is_named(tmp_path):
    code = "import sys\nfrom common.command_line import run\nsys.argv = ['x']\nrun(lambda: print('x'))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output or a file: No space left") and done.stderr.count("\n") == 1
