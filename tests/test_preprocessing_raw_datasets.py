"""What folders, files and tables that are not as one expects become."""

import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from inference.crops import read_image_rgb
from preprocessing.datasets.archives import list_files
from preprocessing.datasets.folders import read_folders
from preprocessing.tables import OFFICIAL_SPLITS, read_table

STEP1, STEP2 = "preprocessing.step1_inventory", "preprocessing.step2_face_crops"
USUAL = "happy/1.png"


def write_images(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        image = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


def sparse_file(file: Path, size: int, start: bytes = b"") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(size)
    return file


# ---- the emotion of a folder


@pytest.mark.parametrize("folder", ["calm", "04_Calm", "smile", "unhappy", "boredom"])
def test_an_emotion_outside_the_taxonomy_is_not_merged_into_another_one(tmp_path, run_step, folder):
    source = write_images(tmp_path / "ravdess", "neutral/1.png", f"{folder}/2.png", "zeal/3.png")
    arguments = ["--dataset", "x", "--source", source, "--data", tmp_path / "data"]
    done = run_step(STEP1, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"folder {folder!r} names no emotion (nor do 'zeal')" in done.stderr
    assert f"--map {folder}=EMOTION, or --map {folder}=none" in done.stderr
    assert not (tmp_path / "data" / "x").exists()

    assert run_step(STEP1, *arguments, "--map", f"{folder}=none", "--map", "zeal=happy").returncode == 0
    table = read_table(tmp_path / "data" / "x", "inventory.csv").set_index("path")
    assert table["emotion"].to_dict() == {
        f"images/{folder}/2.png": "",
        "images/neutral/1.png": "neutral",
        "images/zeal/3.png": "happiness",
    }
    assert table.loc[f"images/{folder}/2.png", "label_source"] == ""

    done = run_step(STEP1, *arguments, "--map", f"{folder.upper()}=neutral", "--map", "zeal=none")
    assert done.returncode == 0
    assert (
        f"{folder} (1) + neutral (1) -> neutral" in done.stdout
        or f"neutral (1) + {folder} (1) -> neutral" in done.stdout
    )
    assert "zeal (1) -> no label" in done.stdout


def test_folders_that_are_read_as_one_emotion_are_printed(tmp_path, run_step):
    source = write_images(tmp_path / "tree", "happy/1.png", "joy/2.png", "joy/3.png", "sadness/4.png")
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert "folders: happy (1) + joy (2) -> happiness\n" in done.stdout


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (["calm"], "'calm' is not FOLDER=EMOTION"),
        (["=neutral"], "is not FOLDER=EMOTION"),
        (["calm=grumpy"], "unknown emotion 'grumpy'"),
        (["clam=neutral"], "no image lies in a folder of that name; the folders are calm, happy"),
        (["calm=neutral", "Calm=none"], "twice"),
    ],
)
def test_a_mapping_that_says_nothing_is_refused(tmp_path, run_step, mapping, said):
    source = write_images(tmp_path / "tree", USUAL, "calm/2.png")
    options = [part for text in mapping for part in ("--map", text)]
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


# ---- the subject of a folder


def people(root: Path, *folders: str) -> dict[str, tuple[str, str]]:
    """Return subject and usage of an image in each folder's `happy`."""
    write_images(root, *(f"{folder}/happy/{number}.png" for number, folder in enumerate(folders)))
    table = read_folders(list_files(root))
    parents = [path.removeprefix("images/").split("/happy/")[0] for path in table["path"]]
    return dict(zip(parents, zip(table["subject"], table["usage"], strict=True), strict=True))


def test_the_folder_above_the_emotion_names_the_subject(tmp_path):
    found = people(tmp_path, "ann", "Bob K", "S001", "007", "dev_patel", "train/eve", "eve/Test", "李")
    assert found == {
        "ann": ("ann", ""),
        "Bob K": ("Bob K", ""),
        "S001": ("S001", ""),
        "007": ("007", ""),
        "dev_patel": ("dev_patel", ""),
        "train/eve": ("eve", "train"),
        "eve/Test": ("eve", "Test"),
        "李": ("李", ""),
    }


SPLIT_FOLDERS = [
    *(name.upper() for name in OFFICIAL_SPLITS),
    *(
        "PublicTest",
        "Private_Test",
        "fold_1",
        "Fold2",
        "set1",
        "part-3",
        "train_set",
        "TestImages",
        "valset",
        "my test",
    ),
    *("trainset2", "holdout", "split0", "cropped faces", "images", "evaluation", "Validation Data", "devset", "5folds"),
]


def test_a_split_never_becomes_a_subject(tmp_path):
    found = people(tmp_path, "ann", "bob", *SPLIT_FOLDERS, *(f"{name.lower()} x/cy" for name in ("train", "fold1")))
    named = {folder for folder, (subject, _) in found.items() if subject}
    assert named == {"ann", "bob", "train x/cy", "fold1 x/cy"}
    assert found["PUBLICTEST"] == ("", "PUBLICTEST") and found["fold_1"] == ("", "")


def test_one_folder_for_all_images_is_the_data_sets_and_no_subject(tmp_path):
    found = people(tmp_path, "kaggle/train", "kaggle/test")
    assert found == {"kaggle/train": ("", "train"), "kaggle/test": ("", "test")}


def test_the_subjects_are_printed_and_split_by(tmp_path, run_step):
    names = [
        f"{who}/{emotion}/{n}.png" for who in ("ann", "bob", "cy", "di") for emotion in ("happy", "sad") for n in "12"
    ]
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    done = run_step(STEP1, *arguments, "--source", write_images(tmp_path / "pictures", *names))
    assert "subjects: 4, named by the folders above the emotions (ann, bob, cy, di)" in done.stdout
    assert run_step(STEP2, *arguments).returncode == 0
    assert "strategy: subject\n" in run_step("preprocessing.step3_split", *arguments).stdout


# ---- the files of a folder


def test_an_edit_to_a_picture_does_not_reach_the_data_set_or_back(tmp_path, run_step):
    source = write_images(tmp_path / "mine", USUAL, "sad/2.png")
    assert run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data").returncode == 0
    for edited, other in [(source, tmp_path / "data/x/images"), (tmp_path / "data/x/images", source)]:
        before = (other / USUAL).read_bytes()
        with (edited / USUAL).open("r+b") as file:
            file.write(b"edited in place")
        assert (other / USUAL).read_bytes() == before


@pytest.mark.parametrize("refused", [OSError(18, "cross-device link"), None])
def test_link_saves_the_copies_and_says_so(tmp_path, run_step, monkeypatch, refused):
    def refuse(*_):
        raise refused

    source = write_images(tmp_path / "mine", USUAL)
    if refused:
        monkeypatch.setattr(os, "link", refuse)
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data", "--link")
    assert done.returncode == 0 and "an edit changes both" in done.stdout
    made = tmp_path / "data/x/images" / USUAL
    assert made.read_bytes() == (source / USUAL).read_bytes()
    assert made.samefile(source / USUAL) is (refused is None)


@pytest.mark.parametrize("short", [0, 1000])
def test_files_are_copied_whole_where_the_system_call_stops_early(tmp_path, run_step, monkeypatch, short):
    def stop(source: int, target: int, _: int) -> int:
        return os.write(target, os.read(source, short)) if short and os.lseek(source, 0, os.SEEK_CUR) == 0 else 0

    monkeypatch.setattr(os, "copy_file_range", stop, raising=False)
    source = tmp_path / "mine"
    (source / "happy").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)
    (source / USUAL).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    assert run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data").returncode == 0
    assert (tmp_path / "data/x/images" / USUAL).read_bytes() == (source / USUAL).read_bytes()


def images_of_every_kind(root: Path) -> dict[str, bool]:
    """Write images of unusual kinds, and return whether each is one that a network can be shown."""
    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (20, 20)).astype(np.uint8)
    color = random.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    (root / "happy").mkdir(parents=True)
    encoded = {
        "float32.tif": (gray.astype(np.float32), False),
        "float64.tif": (gray / 255, False),
        "int32.tif": (gray.astype(np.int32), False),
        "float32_color.tif": (color.astype(np.float32), False),
        "uint16.tif": (gray.astype(np.uint16) * 257, True),
        "uint16.png": (color.astype(np.uint16) * 257, True),
        "transparent.png": (np.dstack([color, gray]), True),
        "plain.png": (gray, True),
    }
    for name, (image, _) in encoded.items():
        (root / "happy" / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
    assert cv2.imwritemulti(str(root / "happy" / "pages.tif"), [color, color[::-1].copy()])
    animation = cv2.Animation()
    animation.frames, animation.durations = [color, color[::-1].copy()], [40, 40]
    assert cv2.imwriteanimation(str(root / "happy" / "animated.webp"), animation)
    from PIL import Image  # comes with matplotlib

    picture = Image.fromarray(color)
    picture.convert("CMYK").save(root / "happy" / "cmyk.jpg")
    picture.convert("CMYK").save(root / "happy" / "cmyk.tif")
    picture.convert("P").save(root / "happy" / "palette.png")
    picture.convert("1").save(root / "happy" / "bits.tif")
    others = ["pages.tif", "animated.webp", "cmyk.jpg", "cmyk.tif", "palette.png", "bits.tif"]
    return {name: readable for name, (_, readable) in encoded.items()} | dict.fromkeys(others, True)


def test_step_1_calls_exactly_those_images_readable_that_step_2_crops(tmp_path, run_step):
    readable = images_of_every_kind(tmp_path / "tree")
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    done = run_step(STEP1, *arguments, "--source", tmp_path / "tree")
    assert done.returncode == 0
    assert "accepted are 8-bit and 16-bit images" in done.stdout
    assert run_step(STEP2, *arguments).returncode == 0
    table = read_table(tmp_path / "data" / "x", "faces.csv")
    names = [Path(path).name for path in table["path"]]
    assert dict(zip(names, table["status"] == "ok", strict=True)) == readable
    assert dict(zip(names, table["face_status"] == "whole_image", strict=True)) == readable


def test_the_hash_is_that_of_the_pixels_a_network_sees(tmp_path, run_step):
    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (20, 20)).astype(np.uint8)
    root = tmp_path / "tree" / "happy"
    root.mkdir(parents=True)
    same = {"8.png": gray, "16.png": gray.astype(np.uint16) * 256, "three.bmp": cv2.merge([gray] * 3)}
    for name, image in {**same, "turned.png": gray.T}.items():
        (root / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
    run_step(STEP1, "--dataset", "x", "--source", tmp_path / "tree", "--data", tmp_path / "data")
    hashes = read_table(tmp_path / "data" / "x", "inventory.csv").set_index("path")["pixel_hash"]
    assert hashes.drop("images/happy/turned.png").nunique() == 1
    assert hashes.nunique() == 2
    for name in same:
        np.testing.assert_array_equal(read_image_rgb(root / name)[..., 0], gray)


def test_a_file_of_six_gigabytes_is_unreadable_and_costs_neither_memory_nor_disk(tmp_path, run_step):
    source = write_images(tmp_path / "tree", "happy/1.png", "sad/2.png")
    sparse_file(
        source / "happy" / "big.png", 6_000_000_000, cv2.imencode(".png", np.eye(9, dtype=np.uint8))[1].tobytes()
    )
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    done = run_step(STEP1, *arguments, "--source", source)
    assert done.returncode == 0
    assert "unreadable: images/happy/big.png; accepted are" in done.stdout and "at most 268 MB" in done.stdout
    assert run_step(STEP2, *arguments).returncode == 0
    table = read_table(tmp_path / "data" / "x", "faces.csv").set_index("path")
    assert table["status"].to_dict() == {
        "images/happy/1.png": "ok",
        "images/happy/big.png": "unreadable",
        "images/sad/2.png": "ok",
    }
    assert table.loc["images/happy/big.png", "face_status"] == "not_found"
    assert not (tmp_path / "data/x/images/happy/big.png").exists()


# ---- tables


def fer_row(usage: str | None = "Training") -> str:
    return f"3,{' '.join(['7', *['9'] * 2303])}" + ("" if usage is None else f",{usage}")


@pytest.mark.parametrize("usage", ["", "  ", None, '""'])
def test_a_row_without_usage_is_refused_by_its_line(tmp_path, run_step, usage):
    source = tmp_path / "fer2013.csv"
    source.write_text("\n".join(["emotion,pixels,Usage", fer_row(), fer_row(usage), fer_row("PublicTest"), ""]))
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: fer2013.csv: row 1 (line 3) has no Usage")
    assert not (tmp_path / "data" / "x").exists()


def test_a_table_without_the_column_usage_is_accepted(tmp_path, run_step):
    source = tmp_path / "train.csv"
    source.write_text("\n".join(["emotion,pixels", fer_row(None), fer_row(None)]))
    assert run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data").returncode == 0
    assert read_table(tmp_path / "data" / "x", "inventory.csv")["usage"].tolist() == ["", ""]


@pytest.mark.parametrize("start", ["", "emotion,pixels,Usage\n", 'emotion,pixels,Usage\n3,"\n'])
def test_a_table_of_six_gigabytes_without_rows_is_refused_in_one_line(tmp_path, run_step, start):
    source = sparse_file(tmp_path / "fer2013.csv", 6_000_000_000, start.encode())
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "fer2013.csv" in done.stderr


def test_other_tables_of_six_gigabytes_are_refused_in_one_line(tmp_path, run_step):
    source = tmp_path / "fer2013.csv"
    source.write_text("\n".join(["emotion,pixels,Usage", fer_row()]))
    big = sparse_file(tmp_path / "big.csv", 6_000_000_000, b"path,emotion\n")
    for option in ("--votes", "--labels"):
        done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data", option, big)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "big.csv" in done.stderr


def test_an_emotion_file_of_six_gigabytes_is_refused_by_name(tmp_path, run_step):
    root = write_images(tmp_path / "ck", "cohn-kanade-images/S005/001/S005_001_00000001.png")
    sparse_file(root / "Emotion/S005/001/S005_001_00000001_emotion.txt", 6_000_000_000, b"3.0")
    done = run_step(STEP1, "--dataset", "x", "--source", root, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "S005_001_00000001_emotion.txt" in done.stderr


# ---- text that a spreadsheet would run


@pytest.mark.skipif(os.name == "nt", reason="Windows takes no such file names")
def test_file_names_that_look_like_formulas_go_through_all_steps_unchanged(tmp_path, run_step):
    names = ["=1+1", "+cmd", "-2", "@sum", "a;=1", "a\t-1", "'=q", "plain"]
    people = ["=HYPERLINK(1)", "@bob", "cy", "-di"]
    files = [f"{who}/{emotion}/{name}.png" for who in people for emotion in ("happy", "sad") for name in names]
    source = write_images(tmp_path / "tree", *files)
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    for step, options in [(STEP1, ["--source", source]), (STEP2, []), ("preprocessing.step3_split", [])]:
        assert run_step(step, *arguments, *options).returncode == 0
    folder = tmp_path / "data" / "x"
    table = read_table(folder, "split.csv")
    assert sorted(table["path"]) == sorted(f"images/{name}" for name in files)
    assert set(table["subject"]) == set(people)
    assert all((folder / path).is_file() for path in [*table["path"], *table["face_path"]])
    for file in ("inventory.csv", "faces.csv", "split.csv"):
        raw = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
        cells = [part for column in raw.columns for cell in raw[column] for part in cell.replace("\t", ";").split(";")]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@") and cell]
    assert "unchanged" in run_step(STEP1, *arguments, "--source", source).stdout
    assert "unchanged" in run_step("preprocessing.step3_split", *arguments).stdout
