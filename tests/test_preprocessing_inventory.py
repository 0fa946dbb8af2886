"""Step 1: downloads of every kind become an inventory; refusals, resuming, the audit."""

import errno
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from raw_data import (
    CKPLUS,
    all_files,
    encoded,
    fer2013_rows,
    names_in,
    pixels,
    random_gray,
    write_ckplus,
    write_csv,
    write_fer2013,
    write_image,
    write_images,
    write_kaggle_folders,
    zip_folder,
)  # fmt: skip

from common.errors import InputError
from common.images import read_image
from configuration import SAMPLE_NAME
from preprocessing.audit import audit, count_images
from preprocessing.datasets.sample import SAMPLE
from preprocessing.datasets.votes import majority
from preprocessing.inventory import write_inventory
from preprocessing.tables import make_command, read_table, write_table

STEP1, STEP2, STEP3 = (f"preprocessing.{step}" for step in ("step1_inventory", "step2_face_crops", "step3_split"))


def inventory(folder: Path, source: Path, **options) -> pd.DataFrame:
    assert write_inventory(folder, source, **options) is not None
    return read_table(folder, "inventory.csv")


def refused(done, *expected: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in expected), done.stderr


def sparse_file(file: Path, start: bytes = b"") -> Path:
    """Write a file of six gigabytes that takes no space on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(6_000_000_000)
    return file


# ---- FER2013


def test_fer2013_csv_becomes_one_png_and_one_row_per_row(tmp_path):
    table = inventory(tmp_path / "fer", write_fer2013(tmp_path))
    assert table["emotion"].tolist() == ["anger", "happiness", "sadness", "neutral", "neutral", "surprise"]
    assert table["usage"].tolist() == ["Training"] * 4 + ["PublicTest", "PrivateTest"]
    assert table["path"][4] == "images/PublicTest/00004.png"
    assert table["status"].tolist() == ["ok", "ok", "ok", "constant", "ok", "ok"]
    for path, (_, text, _) in zip(table["path"], fer2013_rows(), strict=True):
        image = cv2.imread(str(tmp_path / "fer" / path), cv2.IMREAD_UNCHANGED)
        assert image is not None and pixels(image) == text
    rows = [(emotion, f" {usage}", f" {text}") for emotion, text, usage in fer2013_rows()]
    icml = write_csv(tmp_path / "icml_face_data.csv", rows, "emotion, Usage, pixels")
    pd.testing.assert_frame_equal(inventory(tmp_path / "icml", icml), table)
    table = inventory(tmp_path / "c", write_csv(tmp_path / "test.csv", [(pixels(random_gray(0)),)], "pixels"))
    assert table[["path", "emotion", "label_source", "usage"]].to_numpy().tolist() == [["images/00000.png", "", "", ""]]


VOTES_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def votes_rows() -> list[tuple]:
    """The votes of `fer2013_rows`: ten each, image 3 without a name."""
    return [
        (usage, "" if row == 3 else f"fer{row:07d}.png", row, 10 - row, *[0] * 8)
        for row, (_, _, usage) in enumerate(fer2013_rows())
    ]


def test_ferplus_votes_are_joined_by_row(tmp_path):
    votes = write_csv(tmp_path / "fer2013new.csv", votes_rows(), VOTES_HEADER)
    table = inventory(tmp_path / "fer", write_fer2013(tmp_path), votes=votes)
    assert table["votes_neutral"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table["votes_happiness"].tolist() == [10, 9, 8, 7, 6, 5]
    assert table[["votes_contempt", "votes_unknown", "votes_nf"]].sum().sum() == 0
    assert table["ferplus_name"].eq("").tolist() == [False, False, False, True, False, False]
    with pytest.raises(InputError, match="--votes applies to FER2013 only"):
        write_inventory(tmp_path / "x", write_kaggle_folders(tmp_path / "tree"), votes=votes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:-1], "5 rows"),
        (lambda rows: [rows[-1], *rows[1:]], "column Usage differs"),
        (lambda rows: [(*row[:2], "many", *row[3:]) for row in rows], "not a whole number"),
    ],
)
def test_votes_that_do_not_match_are_refused(tmp_path, change, expected):
    votes = write_csv(tmp_path / "fer2013new.csv", change(votes_rows()), VOTES_HEADER)
    with pytest.raises(InputError, match=expected):
        write_inventory(tmp_path / "fer", write_fer2013(tmp_path), votes=votes)
    assert not (tmp_path / "fer").exists()


# ---- folders named by emotion


def test_folders_give_emotion_and_usage(tmp_path):
    table = inventory(tmp_path / "x", write_kaggle_folders(tmp_path / "kaggle"))
    assert table[["path", "emotion", "usage"]].to_numpy().tolist() == [
        ["images/test/Surprised/d.png", "surprise", "test"],
        ["images/test/angry/c.png", "anger", "test"],
        ["images/train/angry/a.png", "anger", "train"],
        ["images/train/happy/b.png", "happiness", "train"],
    ]
    names = ["test/fear/PrivateTest_88305.png", "test/fear/PublicTest_95.png", "train/fear/S010_004_00000017.png"]
    table = inventory(tmp_path / "y", write_images(tmp_path / "named", *names))
    assert table[["usage", "subject", "sequence", "frame"]].to_numpy().tolist() == [
        ["PrivateTest", "", "", ""], ["PublicTest", "", "", ""], ["train", "S010", "S010/004", "17"],
    ]  # fmt: skip


def test_system_files_are_ignored_and_links_to_folders_followed_once(tmp_path, capsys):
    tree = write_images(tmp_path / "tree", *(f"0_Happy/1.{suffix}" for suffix in ("png", "jpg", "JPEG", "bmp", "tif")))
    write_images(tmp_path / "elsewhere", "2.png")
    (tree / "sad").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tree / "0_Happy" / "loop").symlink_to(tree, target_is_directory=True)
    for name in (".DS_Store", "Thumbs.db", "0_Happy/._1.png", "a.heic", "b.HEIC", "about.txt"):
        (tree / name).write_bytes(b"x")
    zip_folder(tree / "sad", tree / "more.zip")
    table = inventory(tmp_path / "x", tree)
    assert len(table) == 6 and set(table["status"]) == {"ok"} and "images/sad/2.png" in set(table["path"])
    assert capsys.readouterr().out == "not used: 3 of the source's files (2 .heic, 1 .zip)\n"


def test_folder_without_a_known_emotion_needs_a_mapping(tmp_path, run_step):
    source = write_images(tmp_path / "tree", "neutral/1.png", "04_Calm/2.png", "zeal/3.png")
    arguments = ["--dataset", "x", "--source", source, "--data", tmp_path / "data"]
    refused(run_step(STEP1, *arguments), "folder '04_Calm' is no emotion (as are 'zeal')", "--map 04_Calm=none")
    assert not (tmp_path / "data" / "x").exists()
    done = run_step(STEP1, *arguments, "--map", "04_CALM=neutral", "--map", "zeal=none")
    assert done.returncode == 0 and "-> neutral; zeal (1) -> no label" in done.stdout
    table = read_table(tmp_path / "data" / "x", "inventory.csv")
    assert dict(zip(table["path"], table["emotion"], strict=True)) == {
        "images/04_Calm/2.png": "neutral", "images/neutral/1.png": "neutral", "images/zeal/3.png": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (["calm"], "'calm' is not FOLDER=EMOTION"),
        (["calm=grumpy"], "unknown emotion 'grumpy'"),
        (["clam=neutral"], "no image is in a folder of that name; the folders are calm, happy"),
        (["calm=neutral", "Calm=none"], "two emotions"),
    ],
)
def test_invalid_mapping_is_refused(tmp_path, run_step, mapping, expected):
    source = write_images(tmp_path / "tree", "happy/1.png", "calm/2.png")
    options = [part for text in mapping for part in ("--map", text)]
    refused(run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data", *options), expected)


SPLIT_FOLDERS = [
    *("PUBLICTEST", "Private_Test", "fold_1", "set1", "part-3", "train_set", "TestImages", "valset", "my test"),
    *("trainset2", "holdout", "split0", "cropped faces", "images", "evaluation", "Validation Data", "5folds"),
]


def test_folder_above_the_emotion_is_the_subject_unless_it_names_a_split(tmp_path):
    people = ["ann", "Bob K", "S001", "007", "dev_patel", "train/eve", "eve/Test", "李", "train x/cy"]
    names = [f"{folder}/happy/{number}.png" for number, folder in enumerate([*people, *SPLIT_FOLDERS])]
    table = inventory(tmp_path / "x", write_images(tmp_path / "tree", *names))
    folders = [path.removeprefix("images/").split("/happy/")[0] for path in table["path"]]
    subjects = dict(zip(folders, table["subject"], strict=True))
    nested = {"train/eve": "eve", "eve/Test": "eve", "train x/cy": "cy"}
    assert {folder: who for folder, who in subjects.items() if who} == {name: name for name in people} | nested
    usages = dict(zip(folders, table["usage"], strict=True))
    assert (usages["train/eve"], usages["eve/Test"], usages["PUBLICTEST"]) == ("train", "Test", "PUBLICTEST")
    table = inventory(tmp_path / "one", write_images(tmp_path / "b", "kaggle/train/sad/1.png", "kaggle/test/sad/2.png"))
    assert set(table["subject"]) == {""} and table["usage"].tolist() == ["test", "train"]


# ---- the files


@pytest.mark.parametrize("copied", [None, 0, 1000])
def test_images_are_whole_copies_and_edits_reach_neither_side(tmp_path, monkeypatch, copied):
    def stop(source: int, target: int, _: int) -> int:
        return os.write(target, os.read(source, copied)) if copied and os.lseek(source, 0, os.SEEK_CUR) == 0 else 0

    if copied is not None:  # the system call stops early
        monkeypatch.setattr(os, "copy_file_range", stop, raising=False)
    write_image(tmp_path / "mine" / "happy" / "1.png", random_gray(0, 99))
    inventory(tmp_path / "x", tmp_path / "mine")
    files = [tmp_path / "mine/happy/1.png", tmp_path / "x/images/happy/1.png"]
    assert files[0].read_bytes() == files[1].read_bytes()
    for edited, other in (files, files[::-1]):
        before = other.read_bytes()
        with edited.open("r+b") as file:
            file.write(b"edited in place")
        assert other.read_bytes() == before


TURNED = np.array([[[250, 0, 0], [0, 0, 250], [0, 250, 0]]], np.uint8).repeat(16, 0).repeat(16, 1)  # red, blue, green


def png_of_pixels(side: int) -> bytes:
    """Return a small file with a huge picture: side x side black pixels of 1 bit."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header, row = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), bytes(1 + (side + 7) // 8)
    pack = zlib.compressobj(1)
    rows = b"".join(pack.compress(row * 100) for _ in range(side // 100 + 1)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def images_of_every_kind(root: Path) -> dict[str, bool]:
    """Write images of unusual kinds, and return whether each can be read."""
    gray, color = random_gray(0, 20), np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    for name, image in {
        "float32.tif": gray.astype(np.float32),
        "int32.tif": gray.astype(np.int32),
        "uint16.tif": gray.astype(np.uint16) * 257,
        "uint16.png": color.astype(np.uint16) * 257,
        "transparent.png": np.dstack([color, gray]),
    }.items():
        write_image(root / name, image)
    assert cv2.imwritemulti(str(root / "pages.tif"), [color, color[::-1].copy()])
    from PIL import Image  # comes with matplotlib

    picture = Image.fromarray(color)
    for mode, name in (("CMYK", "cmyk.jpg"), ("P", "palette.png"), ("1", "bits.tif")):
        picture.convert(mode).save(root / name)
    rotated = Image.Exif()
    rotated[0x112] = 6  # to be turned right by 90 degrees
    Image.fromarray(TURNED).save(root / "turned.jpg", quality=100, subsampling=0, exif=rotated)
    for suffix in ("gif", "webp", "png"):
        picture.save(root / f"animated.{suffix}", save_all=True, append_images=[Image.fromarray(255 - color)])
    (root / "jpeg.png").write_bytes(encoded(color, ".jpg"))
    (root / "text.png").write_text("no image")
    (root / "empty.png").write_bytes(b"")
    (root / "half.png").write_bytes(encoded(gray)[:200])
    sparse_file(root / "huge.png", encoded(gray))
    unreadable = ("float32.tif", "int32.tif", "empty.png", "half.png", "huge.png", "text.png")
    return {file.name: file.name not in unreadable for file in root.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the memory in this way")
def test_picture_of_a_billion_pixels_takes_no_memory(tmp_path):
    """In a process of its own, because OpenCV takes its limit when it is imported."""
    source = write_images(tmp_path / "tree", "happy/1.png")
    (source / "happy" / "bomb.png").write_bytes(png_of_pixels(31_623))
    code = (
        "import runpy, sys, pathlib\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
        "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", code, STEP1, "--dataset", "x", "--data", tmp_path / "data", "--source", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "unreadable: images/happy/bomb.png; accepted are" in done.stdout
    assert int(done.stdout.split()[-1]) < 500_000  # kilobytes


def test_steps_1_and_2_agree_which_images_are_readable(tmp_path, run_step):
    readable = images_of_every_kind(tmp_path / "tree" / "happy")
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    done = run_step(STEP1, *arguments, "--source", tmp_path / "tree")
    assert done.returncode == 0 and "accepted are 8-bit and 16-bit images" in done.stdout
    assert run_step(STEP2, *arguments).returncode == 0
    table = read_table(tmp_path / "data" / "x", "faces.csv")
    names = [Path(path).name for path in table["path"]]
    assert dict(zip(names, table["status"] == "ok", strict=True)) == readable
    assert dict(zip(names, table["face_status"] == "whole_image", strict=True)) == readable
    assert set(table.loc[table["status"] == "unreadable", "pixel_hash"]) == {""}
    assert not (tmp_path / "data/x/images/happy/huge.png").exists()
    turned_bgr = read_image(tmp_path / "data/x/images/happy/turned.jpg")
    assert turned_bgr is not None and turned_bgr.shape == (48, 16, 3)
    assert [int(turned_bgr[row, 8].argmax()) for row in (8, 24, 40)] == [2, 0, 1]


def test_huge_tables_and_emotion_files_are_refused_in_one_line(tmp_path, run_step):
    arguments = ["--dataset", "x", "--data", tmp_path / "data", "--source"]
    for start in (b"", b'emotion,pixels,Usage\n3,"\n'):
        huge = sparse_file(tmp_path / "huge" / "fer2013.csv", start)
        refused(run_step(STEP1, *arguments, huge), "fer2013.csv")
    big = sparse_file(tmp_path / "big.csv", b"path,emotion\n")
    for option in ("--votes", "--labels"):
        refused(run_step(STEP1, *arguments, write_fer2013(tmp_path), option, big), "big.csv")
    root = write_images(tmp_path / "ck", "cohn-kanade-images/S005/001/S005_001_00000001.png")
    sparse_file(root / "Emotion/S005/001/S005_001_00000001_emotion.txt", b"3.0")
    refused(run_step(STEP1, *arguments, root), "S005_001_00000001_emotion.txt")


@pytest.mark.skipif(os.name == "nt", reason="Windows accepts no such file names")
def test_file_names_like_formulas_pass_all_steps_unchanged(tmp_path, run_step):
    names = ["=1+1", "+cmd", "-2", "@sum", "a;=1", "a\t-1", "'=q", "plain"]
    people = ["=HYPERLINK(1)", "@bob", "cy", "-di"]
    files = [f"{who}/{emotion}/{name}.png" for who in people for emotion in ("happy", "sad") for name in names]
    source = write_images(tmp_path / "tree", *files)
    arguments = ["--dataset", "x", "--data", tmp_path / "data"]
    done = [run_step(STEP1, *arguments, "--source", source), run_step(STEP2, *arguments), run_step(STEP3, *arguments)]
    assert [step.returncode for step in done] == [0, 0, 0] and "strategy: subject\n" in done[2].stdout
    assert "subjects: 4, from the folders above the emotions" in done[0].stdout
    folder = tmp_path / "data" / "x"
    table = read_table(folder, "split.csv")
    assert sorted(table["path"]) == sorted(f"images/{name}" for name in files) and set(table["subject"]) == set(people)
    assert all((folder / path).is_file() for path in [*table["path"], *table["face_path"]])
    for file in ("inventory.csv", "faces.csv", "split.csv"):
        raw = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
        cells = [part for column in raw.columns for cell in raw[column] for part in cell.replace("\t", ";").split(";")]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@") and cell]
    assert "unchanged" in run_step(STEP1, *arguments, "--source", source).stdout


# ---- CK+


def test_ckplus_gives_the_peak_of_every_sequence(tmp_path):
    table = inventory(tmp_path / "x", write_ckplus(tmp_path / "ck"))
    rows = table[["sequence", "subject", "frame", "emotion", "label_source"]].apply(tuple, axis=1).tolist()
    assert rows == [
        ("S005/001", "S005", "4", "disgust", "dataset"),
        ("S005/002", "S005", "3", "", ""),
        ("S010/001", "S010", "1", "surprise", "dataset"),
        ("S010/002", "S010", "5", "neutral", "dataset"),
        ("S999/003", "S999", "3", "contempt", "dataset"),
    ]
    assert table["path"][0] == "images/S005/001/S005_001_00000004.png"
    assert len(list((tmp_path / "x" / "images").rglob("*.png"))) == 5


@pytest.mark.parametrize(
    ("options", "kept", "labelled"),
    [
        ({"frames": "last:2"}, 9, 7),
        ({"frames": "last:9"}, 16, 13),
        ({"frames": "all"}, 16, 4),
        ({"neutral_first": True}, 8, 7),
    ],
)
def test_more_frames_of_each_sequence(tmp_path, options, kept, labelled):
    table = inventory(tmp_path / "x", write_ckplus(tmp_path / "ck"), **options)
    assert (len(table), (table["emotion"] != "").sum()) == (kept, labelled)
    assert table.groupby("sequence")["frame"].last().to_dict() == {name: str(n) for name, (n, _) in CKPLUS.items()}
    first = table[table["label_source"] == "first_frame"]
    assert first["sequence"].tolist() == (["S005/001", "S010/002", "S999/003"] if "neutral_first" in options else [])
    assert set(first["emotion"]) <= {"neutral"}


def test_zips_and_partly_unpacked_downloads_give_the_same_table(tmp_path):
    root = write_ckplus(tmp_path / "ck")
    plain = inventory(tmp_path / "plain", root)
    zips = tmp_path / "zips"
    zips.mkdir()
    zip_folder(root / "cohn-kanade-images", zips / "extended-cohn-kanade-images.zip", "cohn-kanade-images/")
    zip_folder(root / "Emotion", zips / "Emotion_labels.zip", "Emotion/")
    pd.testing.assert_frame_equal(inventory(tmp_path / "a", zips), plain)
    (root / "cohn-kanade-images").rename(zips / "cohn-kanade-images")
    pd.testing.assert_frame_equal(inventory(tmp_path / "b", zips), plain)


@pytest.mark.parametrize("content", ["", "8.0000000e+00", "3.5", "nan"])
def test_emotion_file_without_a_code_is_refused_by_name(tmp_path, content):
    root = write_ckplus(tmp_path / "ck")
    (root / "Emotion/S005/001/S005_001_00000004_emotion.txt").write_text(content)
    with pytest.raises(InputError, match=r"S005_001_00000004_emotion\.txt"):
        write_inventory(tmp_path / "x", root)


def test_missing_frames_are_reported_and_the_rest_is_kept(tmp_path, capsys):
    root = write_ckplus(tmp_path / "ck")
    table = inventory(tmp_path / "whole", root, frames="all")
    assert "missing" not in capsys.readouterr().out
    for sequence, frame in [("S010/002", 2), ("S010/002", 3), ("S005/001", 4), ("S005/002", 1)]:
        (root / "cohn-kanade-images" / sequence / f"{sequence.replace('/', '_')}_{frame:08d}.png").unlink()
    without = inventory(tmp_path / "x", root, frames="all")
    one, peak = capsys.readouterr().out.splitlines()[:2]
    assert len(without) == len(table) - 4
    assert one == "missing: 4 frames of 3 sequences (S005/001, S005/002, S010/002)"
    assert peak == "missing: the labelled peak of S005/001; the frame before it is used"
    assert without[without["sequence"] == "S005/001"]["emotion"].tolist() == ["", "", "disgust"]
    (root / "cohn-kanade-images/S010/001/S010_001_00000001.png").unlink()
    with pytest.raises(InputError, match="S010/001 has an emotion file but no images"):
        write_inventory(tmp_path / "x", root)


# ---- annotators' labels


def test_labels_by_path_apply_to_tables_and_to_selected_frames(tmp_path):
    source = write_csv(tmp_path / "test.csv", [(pixels(random_gray(0)),), (pixels(random_gray(1)),)], "pixels")
    labels = write_csv(tmp_path / "labels.csv", [("images/00001.png", "fear")], "path,emotion")
    table = inventory(tmp_path / "x", source, labels=labels)
    assert table[["emotion", "label_source"]].to_numpy().tolist() == [["", ""], ["fear", "manual"]]
    root = write_ckplus(tmp_path / "ck", {"S005/002": (3, None)})
    write_csv(labels, [("images/S005/002/S005_002_00000002.png", "fear")], "path,emotion")
    assert inventory(tmp_path / "all", root, labels=labels, frames="all")["emotion"].tolist() == ["", "fear", ""]
    command = make_command(tmp_path / "all", "inventory.csv")  # as printed in messages
    assert f"--labels {labels}" in command and "--frames all" in command
    with pytest.raises(InputError, match="--frames leaves it out"):
        write_inventory(tmp_path / "peak", root, labels=labels)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("sequence,emotion", ("S777/001", "fear"), "'S777/001' is not in the data set"),
        ("sequence,emotion", ("S005/001", "fear"), "has the label disgust in the data set, not fear"),
        ("sequence,emotion", ("S005/002", "grumpy"), r"labels\.csv: unknown emotion 'grumpy'"),
        ("sequence,emotion", ("S005/002", "fear\nS005/002,anger"), "two labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, header, row, expected):
    root = write_ckplus(tmp_path / "ck")
    with pytest.raises(InputError, match=expected):
        write_inventory(tmp_path / "x", root, labels=write_csv(tmp_path / "labels.csv", [row], header))
    assert not (tmp_path / "x").exists()


# ---- refusals


def fer2013_with(*row, header: str = "emotion,pixels,Usage"):
    return lambda folder: write_csv(folder / "fer2013.csv", [*fer2013_rows()[:1], row], header)


SQUARE = pixels(random_gray(9))
REST = SQUARE[SQUARE.index(" ") :]
REFUSED = {
    "missing source": (lambda folder: folder / "nowhere.csv", "nowhere.csv does not exist"),
    "no pixels": (lambda folder: write_csv(folder / "fer2013.csv", [(0, 1)], "emotion,Usage"), "'pixels'"),
    "no rows": (lambda folder: write_csv(folder / "fer2013.csv", []), "no rows"),
    "2303 pixels": (fer2013_with(0, REST[1:], "Training"), "row 1 (line 3) has 2,303 pixels"),
    "value 256": (fer2013_with(0, "256" + REST, "Training"), "row 1 (line 3) has the pixel 256"),
    "no number": (fer2013_with(0, "1x" + REST, "Training"), "the pixel '1x'"),
    "code 7": (fer2013_with(7, SQUARE, "Training"), "emotion '7'"),
    "unknown Usage": (fer2013_with(1, SQUARE, "Practice"), "'Practice'"),
    "missing Usage": (fer2013_with(1, SQUARE), "row 1 (line 3) has no Usage"),
    "carriage return": (lambda folder: write_images(folder / "tree", "happy/a\rb.png"), "rename the file"),
}


VOTES = b"Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
TABLES = {  # tables that a user may have opened in another program, and the option of step 1 that reads them
    "fer2013.csv": ("--source", b"emotion,pixels,Usage\n3," + SQUARE.encode() + b",Training\n"),
    "votes.csv": ("--votes", VOTES + b"\nTraining,a.png,1,9,0,0,0,0,0,0,0,0\n"),
    "labels.csv": ("--labels", b"path,emotion\nimages/Training/00000.png,anger\n"),
    "inventory.csv": ("", b""),  # of an earlier step
}
CHANGES = {  # changes of a table, and what its readers say; empty where they accept it
    "byte order mark": (lambda table: b"\xef\xbb\xbf" + table, ""),
    "CRLF": (lambda table: table.replace(b"\n", b"\r\n"), ""),
    "semicolons": (lambda table: table.replace(b",", b";"), "column"),
    "NUL": (
        lambda table: table.replace(b"3,", b"3\0,", 1).replace(b".png,", b"\0.png,"),
        r"x00|^$",
    ),  # in a vote's name
    "UTF-16": (lambda table: table.decode().encode("utf-16"), "is not a readable CSV table"),
    "Latin-1": (lambda table: table.replace(b"\n", b",\xe9\n"), "is not a readable CSV table"),
    "100,000 columns": (lambda table: table.replace(b"\n", b",x" * 100_000 + b"\n"), "more than 10,000 columns|^$"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tables_of_other_programs_are_read_or_refused_in_one_line(tmp_path, run_step, change):
    alter, expected = CHANGES[change]
    unlabelled = write_csv(tmp_path / "plain" / "fer2013.csv", [("", SQUARE, "Training")])
    for name, (option, content) in TABLES.items():
        places = ["--dataset", name[:3], "--data", tmp_path / "data"]
        folder = tmp_path / "data" / name[:3]
        if not option:
            write_inventory(folder, unlabelled)
            content = (folder / name).read_bytes()
        file = tmp_path / name if option else folder / name
        file.write_bytes(alter(content))
        source = ["--source", unlabelled] if name in ("votes.csv", "labels.csv") else []
        done = run_step(STEP1 if option else STEP2, *places, *source, *([option, file] if option else []))
        if done.returncode or expected not in ("", r"x00|^$", "more than 10,000 columns|^$"):
            refused(done, name)
        assert re.search(expected, done.stderr), (name, done)
        if not done.returncode:
            table = read_table(folder, "inventory.csv" if option else "faces.csv")
            labels = {"fer2013.csv": "happiness", "labels.csv": "anger"}
            assert table["emotion"].tolist() == [labels.get(name, "")]


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_source_is_refused_in_one_line_and_leaves_nothing(tmp_path, run_step, case):
    make, expected = REFUSED[case]
    (tmp_path / "raw").mkdir()
    (tmp_path / "data").mkdir()
    done = run_step(STEP1, "--dataset", "x", "--source", make(tmp_path / "raw"), "--data", tmp_path / "data")
    refused(done, expected)
    assert all_files(tmp_path / "data") == set()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "fer2013"], "needs --source"),
        (["--dataset", "../x", "--source", "SOURCE"], "not a plain name"),
        (["--dataset", "x", "--source", "SOURCE", "--frames", "last:0"], "last:0"),
        (["--dataset", "x", "--source", "SOURCE", "--frames", "last:2"], "--frames applies to CK+ sequences only"),
        (["--dataset", "x", "--source", "SOURCE", "--neutral-first"], "--neutral-first applies to CK+"),
        (["--dataset", "x", "--source", "SOURCE", "--map", "calm=none"], "--map applies to folders"),
        (["--dataset", "x", "--source", "SOURCE", "--labels", "none.csv"], "none.csv does not exist"),
        (["--dataset", "x", "--source", "DATA"], "keep the download elsewhere"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, run_step, arguments, expected):
    (tmp_path / "data").mkdir()
    places = {"SOURCE": write_fer2013(tmp_path), "DATA": tmp_path / "data"}
    done = run_step(STEP1, *(places.get(argument, argument) for argument in arguments), "--data", tmp_path / "data")
    refused(done, expected)
    assert all_files(tmp_path / "data") == set()


# ---- running again, being killed


def times_below(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_command_prints_the_audit_and_later_runs_leave_the_files_unchanged(tmp_path, run_step):
    arguments = ["--dataset", "x", "--data", tmp_path / "data", "--source"]
    source = write_fer2013(tmp_path / "raw")
    lines = [" ".join(line.split()) for line in run_step(STEP1, *arguments, source).stdout.splitlines()]
    for line in (
        "Training PublicTest PrivateTest all",
        "neutral 1 1 0 2",
        "duplicates 1 (5 distinct images)",
        "groups of duplicates across the data set's own splits 1 (images: 1 of Training, 1 of PublicTest)",
        "groups of duplicates with conflicting labels 1",
    ):
        assert line in lines
    before = times_below(tmp_path / "data")
    assert run_step(STEP1, *arguments, source).stdout.startswith("unchanged: ")
    refused(run_step(STEP1, *arguments, fer2013_with(0, "256" + REST, "Training")(tmp_path)), "256")
    assert times_below(tmp_path / "data") == before


def test_changed_input_and_options_replace_images_and_table(tmp_path):
    folder, root = tmp_path / "x", write_ckplus(tmp_path / "ck")
    assert len(inventory(folder, root, frames="all")) == 16
    assert len(inventory(folder, root)) == len(list(folder.rglob("*.png"))) == 5
    (root / "cohn-kanade-images/S005/001/S005_001_00000004.png").unlink()
    table = inventory(folder, root)
    assert table["frame"][0] == "3" and write_inventory(folder, root) is None
    for name, content in (("inventory.csv", "path,emotion\n1.png,grumpy\n"), ("inventory.json", "{")):
        (folder / name).write_text(content)
        pd.testing.assert_frame_equal(inventory(folder, root), table)


def test_columns_that_the_user_added_are_kept(tmp_path, capsys):
    folder, root = tmp_path / "x", write_ckplus(tmp_path / "ck")
    table = inventory(folder, root)
    write_table(table.assign(gender=["f", *["m"] * (len(table) - 1)]), folder / "inventory.csv")
    more = inventory(folder, root, frames="last:2")
    assert "kept columns of the earlier inventory.csv: gender" in capsys.readouterr().out
    expected = dict(zip(table["path"], ["f", *["m"] * (len(table) - 1)], strict=True))
    assert more["gender"].tolist() == [expected.get(path, "") for path in more["path"]]
    (folder / "inventory.csv").rename(folder / ".inventory.before.csv")  # as after a kill
    assert inventory(folder, root)["gender"].tolist() == list(expected.values())
    assert not (folder / ".inventory.before.csv").exists()
    for file in root.rglob("*.png"):  # other images of the same names
        cv2.imwrite(str(file), 255 - np.asarray(read_image(file)))
    capsys.readouterr()
    assert set(inventory(folder, root)["gender"]) == {""} and not (folder / ".inventory.before.csv").exists()
    kept = folder / "inventory.before-1.csv"
    assert f"labels of {len(expected)} images could not be kept" in capsys.readouterr().out
    assert pd.read_csv(kept)["gender"].tolist() == list(expected.values())


def test_an_edited_inventory_that_cannot_be_read_is_kept(tmp_path, capsys):
    folder, root = tmp_path / "x", write_ckplus(tmp_path / "ck")
    edited = inventory(folder, root).assign(gender="f").to_csv(index=False, sep=";").encode("cp1252")
    (folder / "inventory.csv").write_bytes(edited)
    assert "gender" not in inventory(folder, root)
    assert (folder / "inventory.before-1.csv").read_bytes() == edited and "cannot be read" in capsys.readouterr().out


def test_completed_subjects_are_kept_and_each_loss_has_a_copy(tmp_path):
    folder, root = tmp_path / "x", write_kaggle_folders(tmp_path / "raw")
    table = inventory(folder, root)
    write_table(table.assign(subject=[f"p{row}" for row in range(len(table))], gender="f"), folder / "inventory.csv")
    for number in (1, 2):
        file = sorted(root.rglob("*.png"))[number - 1]
        cv2.imwrite(str(file), 255 - np.asarray(read_image(file)))
        table = inventory(folder, root)
        assert (table["subject"] == "").sum() == (table["gender"] == "").sum() == number
        assert (folder / f"inventory.before-{number}.csv").exists()
    assert set(pd.read_csv(folder / "inventory.before-1.csv")["gender"]) == {"f"}
    write_table(table.assign(emotion="fear"), folder / "inventory.csv")  # corrected by hand
    cv2.imwrite(str(file), np.asarray(read_image(file)) // 2)
    assert inventory(folder, root)["emotion"].tolist() == table["emotion"].tolist()
    assert set(pd.read_csv(folder / "inventory.before-3.csv")["emotion"]) == {"fear"}


def test_columns_added_after_a_kill_between_two_renames_are_kept(tmp_path):
    folder, root = tmp_path / "x", write_ckplus(tmp_path / "ck")
    table = inventory(folder, root)
    write_table(table.assign(gender="f"), folder / ".inventory.before.csv")  # the new table has lost it
    write_table(table.assign(age=30), folder / "inventory.csv")
    assert set(inventory(folder, root, frames="all")["age"]) == {"30", ""}
    assert set(pd.read_csv(folder / "inventory.before-1.csv")["gender"]) == {"f"}
    assert not (folder / ".inventory.before.csv").exists()


def test_own_text_and_own_votes_stay_the_same_over_several_runs(tmp_path):
    folder, root = tmp_path / "x", write_ckplus(tmp_path / "ck")
    write_table(inventory(folder, root).assign(gender="-", votes_anger=2), folder / "inventory.csv")
    for frames in ("last:2", "peak"):
        table = inventory(folder, root, frames=frames)
        assert set(table["gender"]) <= {"-", ""} and set(table["votes_anger"].dropna()) == {2}


def test_disk_without_hard_links_is_copied_to(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    archive = shutil.make_archive(str(tmp_path / "ck"), "zip", write_ckplus(tmp_path / "ck"))
    assert (inventory(tmp_path / "x", Path(archive))["status"] == "ok").all()


KILLED = """
import os, signal, sys
from pathlib import Path
from preprocessing.datasets import fer2013
from preprocessing.inventory import write_inventory

def write_four_images_then_die(*arguments, original=fer2013.write_png, written=[]):
    written.append(arguments)
    if len(written) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

fer2013.write_png = write_four_images_then_die
write_inventory(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX's")
def test_killed_run_keeps_the_earlier_inventory_and_is_repeated_cleanly(tmp_path):
    folder, source = tmp_path / "data" / "x", write_fer2013(tmp_path)
    earlier = inventory(folder, write_kaggle_folders(tmp_path / "tree"))
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, source], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    pd.testing.assert_frame_equal(read_table(folder, "inventory.csv"), earlier)
    assert all((folder / path).is_file() for path in earlier["path"])
    table = inventory(folder, source)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == sorted(table["path"])
    assert names_in(tmp_path / "data") == ["x"]
    pd.testing.assert_frame_equal(table, inventory(tmp_path / "never_killed", source))


# ---- the audit and the sample


AUDITED = """emotion,usage,pixel_hash,status,subject,sequence,ferplus_name
anger,Training,1,ok,S1,S1/1,a.png
anger,Training,1,ok,S1,S1/1,b.png
fear,PublicTest,1,ok,S2,S2/1,
,PublicTest,2,ok,S2,S2/2,c.png
fear,PrivateTest,2,ok,,,
neutral,Training,3,constant,,,d.png
neutral,Training,3,constant,,,e.png
fear,PublicTest,,unreadable,S2,S2/3,
anger,PublicTest,,unreadable,S3,,f.png
fear,Training,4,ok,,,g.png
"""


def test_audit_counts_duplicates_conflicts_and_sequences():
    table = pd.read_csv(io.StringIO(AUDITED), dtype=str, keep_default_na=False)
    assert audit(table) == {
        "rows": 10, "unlabelled": 1, "constant": 2, "unreadable": 2, "distinct": 4, "duplicates": 4,
        "cross_split_groups": 2, "cross_split_rows": {"Training": 2, "PublicTest": 2, "PrivateTest": 1},
        "conflicting_groups": 1, "subjects": 3, "sequences": 4, "labelled_sequences": 3, "unnamed": 3,
    }  # fmt: skip
    counts = count_images(table, "usage")
    assert counts.index.tolist() == ["anger", "fear", "neutral", "(unlabelled)", "all"]
    assert counts.loc["all", "all"] == 10 and counts.loc["fear", "PublicTest"] == 2


@pytest.mark.system
def test_real_fer2013_has_known_counts_and_majorities(tmp_path, shared_data):
    writer = shared_data / "fer2013" / "write_csv.py"
    subprocess.run([sys.executable, writer, tmp_path], check=True, stdout=subprocess.DEVNULL)
    table = inventory(tmp_path / "fer", tmp_path / "fer2013.csv", votes=tmp_path / "fer2013new.csv")
    counts = audit(table)
    assert counts.pop("cross_split_rows")["PublicTest"] == 280
    assert counts == {
        "rows": 32_298, "unlabelled": 0, "constant": 12, "unreadable": 0, "distinct": 30_766, "duplicates": 1_532,
        "cross_split_groups": 270, "conflicting_groups": 47, "subjects": 0, "sequences": 0, "labelled_sequences": 0,
        "unnamed": 158,
    }  # fmt: skip
    by_hand = 0
    for row in table[table["usage"] == "PublicTest"].filter(like="votes_").itertuples(index=False):
        counted = [int(count) if count > 1 else 0 for count in row]
        by_hand += max(counted[:8]) > sum(counted) / 2
    assert (majority(table)[table["usage"] == "PublicTest"] != "").sum() == by_hand == 3199


def test_sample_is_made_once_and_read_as_ckplus(tmp_path, run_step):
    assert "recognised: CK+ sequences" in run_step(STEP1, "--data", tmp_path / "data").stdout
    table = read_table(tmp_path / "data" / SAMPLE_NAME, "inventory.csv")
    assert table["subject"].nunique() == SAMPLE.subjects and table["sequence"].is_unique
    assert sum(table["emotion"] == "") == SAMPLE.unlabelled and set(table["frame"]) == {str(SAMPLE.frames)}
    before = times_below(tmp_path / "data")
    assert "unchanged" in run_step(STEP1, "--data", tmp_path / "data").stdout
    assert times_below(tmp_path / "data") == before
    write_image(tmp_path / "other" / SAMPLE_NAME / "raw" / "mine.png", random_gray(0))
    refused(run_step(STEP1, "--data", tmp_path / "other"), "contains something else")
