import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from common.command_line import run
from common.errors import InputError
from configuration import SAMPLE_NAME
from preprocessing import step1_inventory
from preprocessing.audit import audit, count_images
from preprocessing.datasets.downloads import Kind
from preprocessing.datasets.sample import SAMPLE
from preprocessing.inventory import write_inventory
from preprocessing.tables import read_table, usable

REPOSITORY = Path(__file__).resolve().parents[1]


def random_gray(seed: int, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def pixels(image_gray: np.ndarray) -> str:
    return " ".join(map(str, image_gray.ravel()))


def write_csv(file: Path, rows: list[tuple], header: str = "emotion,pixels,Usage") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def fer2013_rows() -> list[tuple]:
    """Six images: two copies across the splits with different labels, and a constant one."""
    return [
        (0, pixels(random_gray(0)), "Training"),
        (3, pixels(random_gray(1)), "Training"),
        (4, pixels(random_gray(2)), "Training"),
        (6, pixels(np.full((48, 48), 7)), "Training"),
        (6, pixels(random_gray(1)), "PublicTest"),
        (5, pixels(random_gray(3)), "PrivateTest"),
    ]


def write_image(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode(file.suffix, image)[1].tobytes())


def write_ckplus(root: Path, sequences: dict[str, tuple[int, int | None]]) -> Path:
    """Write a CK+ root; sequences such as `S005/001` with their number of frames and code."""
    for seed, (sequence, (frames, code)) in enumerate(sequences.items()):
        name = sequence.replace("/", "_")
        for frame in range(1, frames + 1):
            file = root / "cohn-kanade-images" / sequence / f"{name}_{frame:08d}.png"
            write_image(file, random_gray(100 * seed + frame, 12))
        if code is not None:
            file = root / "Emotion" / sequence / f"{name}_{frames:08d}_emotion.txt"
            file.parent.mkdir(parents=True)
            file.write_text(f"   {code:.7e}\n")
    return root


CKPLUS = {"S005/001": (4, 3), "S005/002": (3, None), "S010/001": (1, 7), "S010/002": (5, 0), "S999/003": (3, 2)}


def zip_folder(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, prefix + path.relative_to(folder).as_posix())
    return file


def tar_folder(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as packed:
        packed.add(folder, arcname="top")
    return file


def zip_in_zip(folder: Path, file: Path) -> Path:
    inner = zip_folder(folder, file.with_name("inner.zip"))
    with zipfile.ZipFile(file, "w") as packed:
        packed.write(inner, "below/inner.zip")
    return file


def tar_in_zip(folder: Path, file: Path) -> Path:
    inner = tar_folder(folder, file.with_name("inner.tar.gz"))
    with zipfile.ZipFile(file, "w") as packed:
        packed.write(inner, "inner.tar.gz")
    return file


PACKINGS = {
    "folder": lambda folder, _: folder,
    "a.zip": zip_folder,
    "a.tar.gz": tar_folder,
    "a.tgz": tar_folder,
    "b.zip": zip_in_zip,
    "c.zip": tar_in_zip,
}


def inventory(folder: Path, source: Path, **options) -> pd.DataFrame:
    assert write_inventory(folder, source, **options) is not None
    return read_table(folder, "inventory.csv")


def run_here(monkeypatch, *arguments: object) -> int | str | None:
    """Run the step's command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["step1_inventory", *map(str, arguments)])
    try:
        run(step1_inventory.main)
    except SystemExit as end:
        return end.code
    return 0


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- FER2013


def test_fer2013_csv_becomes_one_png_and_one_row_per_row(tmp_path):
    table = inventory(tmp_path / "data" / "fer", write_csv(tmp_path / "fer2013.csv", fer2013_rows()))
    assert table["emotion"].tolist() == ["anger", "happiness", "sadness", "neutral", "neutral", "surprise"]
    assert table["usage"].tolist() == ["Training"] * 4 + ["PublicTest", "PrivateTest"]
    assert table["path"][4] == "images/PublicTest/00004.png"
    assert table["status"].tolist() == ["ok", "ok", "ok", "constant", "ok", "ok"]
    assert set(table["label_source"]) == {"dataset"}
    assert set(table["subject"]) == {""}
    for path, (_, text, _) in zip(table["path"], fer2013_rows(), strict=True):
        image = cv2.imread(str(tmp_path / "data" / "fer" / path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.dtype == np.uint8
        assert pixels(image) == text


def test_padded_column_names_in_another_order_give_the_same_table(tmp_path):
    plain = inventory(tmp_path / "data" / "a", write_csv(tmp_path / "fer2013.csv", fer2013_rows()))
    rows = [(emotion, f" {usage}", f" {text}") for emotion, text, usage in fer2013_rows()]
    icml = write_csv(tmp_path / "icml_face_data.csv", rows, "emotion, Usage, pixels")
    pd.testing.assert_frame_equal(inventory(tmp_path / "data" / "b", icml), plain)


def test_rows_without_an_emotion_column_are_unlabelled(tmp_path):
    table = inventory(tmp_path / "data" / "x", write_csv(tmp_path / "test.csv", [(pixels(random_gray(0)),)], "pixels"))
    assert table[["path", "emotion", "label_source", "usage"]].to_numpy().tolist() == [["images/00000.png", "", "", ""]]


def test_exact_copies_share_their_hash_also_across_kinds_of_files(tmp_path):
    table = inventory(tmp_path / "data" / "a", write_csv(tmp_path / "fer2013.csv", fer2013_rows()))
    write_image(tmp_path / "tree" / "happy" / "1.bmp", random_gray(1))
    other = inventory(tmp_path / "data" / "b", tmp_path / "tree")
    assert table["pixel_hash"][1] == table["pixel_hash"][4] == other["pixel_hash"][0]
    assert table["pixel_hash"].nunique() == 5


def test_a_table_longer_than_one_chunk_keeps_its_row_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocessing.datasets.fer2013._CHUNK", 4)
    table = inventory(tmp_path / "data" / "fer", write_csv(tmp_path / "fer2013.csv", fer2013_rows()))
    assert [Path(path).stem for path in table["path"]] == [f"{row:05d}" for row in range(6)]


VOTES_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def votes_rows() -> list[tuple]:
    """The votes of `fer2013_rows`: ten each, image 3 without a name."""
    return [
        (usage, "" if row == 3 else f"fer{row:07d}.png", row, 10 - row, *[0] * 8)
        for row, (_, _, usage) in enumerate(fer2013_rows())
    ]


def test_ferplus_votes_are_joined_by_row(tmp_path):
    votes = write_csv(tmp_path / "fer2013new.csv", votes_rows(), VOTES_HEADER)
    table = inventory(tmp_path / "data" / "fer", write_csv(tmp_path / "fer2013.csv", fer2013_rows()), votes=votes)
    assert table["votes_neutral"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table["votes_happiness"].tolist() == [10, 9, 8, 7, 6, 5]
    assert table[["votes_contempt", "votes_unknown", "votes_nf"]].sum().sum() == 0
    assert table["ferplus_name"].eq("").tolist() == [False, False, False, True, False, False]
    assert audit(table)["unnamed"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "5 rows"),
        (lambda rows: [rows[-1], *rows[1:]], "row 0"),
        (lambda rows: [(*row[:2], "many", *row[3:]) for row in rows], "no whole number"),
    ],
)
def test_votes_of_other_rows_are_refused(tmp_path, change, said):
    votes = write_csv(tmp_path / "fer2013new.csv", change(votes_rows()), VOTES_HEADER)
    source = write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    with pytest.raises(InputError, match=said):
        write_inventory(tmp_path / "data" / "fer", source, votes=votes)
    assert not (tmp_path / "data" / "fer").exists()


# ---- folders named by emotion


def write_kaggle_folders(root: Path) -> Path:
    for seed, name in enumerate(["train/angry/a.png", "train/happy/b.png", "test/angry/c.png", "test/Surprised/d.png"]):
        write_image(root / name, random_gray(seed, 12))
    return root


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["table", "folders"])
def test_every_packing_gives_the_same_rows(tmp_path, packing, kind):
    download = tmp_path / "download"
    if kind == "table":
        write_csv(download / "fer2013" / "fer2013.csv", fer2013_rows())
        write_csv(download / "fer2013" / "README.csv", [("not", "a table")])
    else:
        write_kaggle_folders(download)
    (download / "__MACOSX").mkdir(parents=True)
    (download / "__MACOSX" / "._x.png").write_bytes(b"litter")
    packed = PACKINGS[packing](download, tmp_path / packing)
    columns = ["emotion", "usage", "pixel_hash", "status"]
    table, plain = inventory(tmp_path / "data" / "a", packed), inventory(tmp_path / "data" / "b", download)
    pd.testing.assert_frame_equal(table[columns], plain[columns])
    assert len(table) == (6 if kind == "table" else 4)
    assert all((tmp_path / "data" / "a" / path).is_file() for path in table["path"])
    assert names_in(tmp_path / "data") == ["a", "b"]


def test_emotion_folders_keep_their_path_and_the_usage_folder(tmp_path):
    table = inventory(tmp_path / "data" / "x", write_kaggle_folders(tmp_path / "kaggle"))
    assert table["path"].tolist() == [
        "images/test/Surprised/d.png",
        "images/test/angry/c.png",
        "images/train/angry/a.png",
        "images/train/happy/b.png",
    ]
    assert table["emotion"].tolist() == ["surprise", "anger", "anger", "happiness"]
    assert table["usage"].tolist() == ["test", "test", "train", "train"]


def test_kaggle_file_names_tell_the_two_test_splits_apart(tmp_path):
    names = ["test/fear/PrivateTest_88305.png", "test/fear/PublicTest_95.png", "train/fear/Training_7.png"]
    for name in names:
        write_image(tmp_path / "kaggle" / name, random_gray(0, 12))
    table = inventory(tmp_path / "data" / "x", tmp_path / "kaggle")
    assert table["usage"].tolist() == ["PrivateTest", "PublicTest", "Training"]


def test_ck48_names_give_subject_sequence_and_frame(tmp_path):
    write_image(tmp_path / "CK+48" / "happy" / "S010_004_00000017.png", random_gray(0))
    table = inventory(tmp_path / "data" / "x", tmp_path / "CK+48")
    columns = ["emotion", "subject", "sequence", "frame"]
    assert table[columns].to_numpy().tolist() == [["happiness", "S010", "S010/004", "17"]]


def test_litter_is_ignored_and_other_formats_are_read(tmp_path):
    for suffix in ("png", "jpg", "JPEG", "bmp", "webp", "tif"):
        write_image(tmp_path / "tree" / "0_Happy" / f"1.{suffix}", random_gray(0))
    for litter in (".DS_Store", "Thumbs.db", "0_Happy/._1.png", ".cache/angry/x.png"):
        (tmp_path / "tree" / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / litter).write_bytes(b"litter")
    table = inventory(tmp_path / "data" / "x", tmp_path / "tree")
    assert len(table) == 6
    assert set(table["status"]) == {"ok"}


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    write_image(tmp_path / "elsewhere" / "1.png", random_gray(1))
    write_image(tmp_path / "tree" / "sad" / "2.png", random_gray(2))
    try:
        (tmp_path / "tree" / "happy").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "tree" / "sad" / "loop").symlink_to(tmp_path / "tree", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert inventory(tmp_path / "data" / "x", tmp_path / "tree")["path"].tolist() == [
        "images/happy/1.png",
        "images/sad/2.png",
    ]


def test_files_that_do_not_enter_the_table_are_counted(tmp_path, capsys):
    tree = write_kaggle_folders(tmp_path / "tree")
    zip_folder(tree / "train", tree / "more.zip")
    for name in ("a.heic", "b.HEIC", "about.txt"):
        write_bytes(tree / name, b"x")
    write_inventory(tmp_path / "data" / "x", tree)
    assert capsys.readouterr().out == "not used: 3 of the source's files (2 .heic, 1 .zip)\n"


def test_unreadable_and_constant_files_keep_their_row(tmp_path):
    write_kaggle_folders(tmp_path / "tree")
    whole = (tmp_path / "tree" / "train" / "angry" / "a.png").read_bytes()
    for name, content in {"empty.png": b"", "half.png": whole[: len(whole) // 2], "text.jpg": b"no image"}.items():
        (tmp_path / "tree" / "train" / "angry" / name).write_bytes(content)
    write_image(tmp_path / "tree" / "train" / "angry" / "red.png", np.full((9, 9, 3), (0, 0, 255), np.uint8))
    table = inventory(tmp_path / "data" / "x", tmp_path / "tree").set_index("path")
    status = table["status"].filter(like="train/angry").rename(lambda path: Path(path).name)
    assert status.to_dict() == {
        "a.png": "ok", "empty.png": "unreadable", "half.png": "unreadable", "red.png": "constant",
        "text.jpg": "unreadable",
    }  # fmt: skip
    assert set(table.loc[table["status"] == "unreadable", "pixel_hash"]) == {""}
    assert audit(table)["duplicates"] == 0


# ---- CK+


def test_ckplus_gives_the_peak_of_every_sequence(tmp_path):
    table = inventory(tmp_path / "data" / "ck", write_ckplus(tmp_path / "ck", CKPLUS))
    rows = table[["sequence", "subject", "frame", "emotion", "label_source"]].apply(tuple, axis=1).tolist()
    assert rows == [
        ("S005/001", "S005", "4", "disgust", "dataset"),
        ("S005/002", "S005", "3", "", ""),
        ("S010/001", "S010", "1", "surprise", "dataset"),
        ("S010/002", "S010", "5", "neutral", "dataset"),
        ("S999/003", "S999", "3", "contempt", "dataset"),
    ]
    assert table["path"][0] == "images/S005/001/S005_001_00000004.png"
    assert (tmp_path / "data" / "ck" / table["path"][0]).is_file()
    assert len(list((tmp_path / "data" / "ck" / "images").rglob("*.png"))) == 5


def test_the_first_frame_of_labelled_sequences_is_neutral_on_request(tmp_path):
    table = inventory(tmp_path / "data" / "ck", write_ckplus(tmp_path / "ck", CKPLUS), neutral_first=True)
    first = table[table["label_source"] == "first_frame"]
    assert first["sequence"].tolist() == ["S005/001", "S010/002", "S999/003"]  # S010/001 is its peak alone
    assert set(first["emotion"]) == {"neutral"}
    assert set(first["frame"]) == {"1"}
    assert len(table) == 5 + 3


@pytest.mark.parametrize(("frames", "kept", "labelled"), [("last:2", 9, 7), ("last:9", 16, 13), ("all", 16, 4)])
def test_more_frames_of_each_sequence(tmp_path, frames, kept, labelled):
    table = inventory(tmp_path / "data" / "ck", write_ckplus(tmp_path / "ck", CKPLUS), frames=frames)
    assert len(table) == kept
    assert (table["emotion"] != "").sum() == labelled
    assert table.groupby("sequence")["frame"].last().to_dict() == {name: str(n) for name, (n, _) in CKPLUS.items()}


def test_four_zips_and_half_unpacked_downloads_give_the_same_table(tmp_path):
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    plain = inventory(tmp_path / "data" / "plain", root)
    zips = tmp_path / "zips"
    zips.mkdir()
    zip_folder(root / "cohn-kanade-images", zips / "extended-cohn-kanade-images.zip", "cohn-kanade-images/")
    zip_folder(root / "Emotion", zips / "Emotion_labels.zip", "Emotion/")
    for other in ("Landmarks", "FACS_labels"):
        with zipfile.ZipFile(zips / f"{other}.zip", "w") as packed:
            packed.writestr(f"{other}/S005/001/S005_001_00000001_{other.lower()}.txt", "1.0 2.0\n")
    pd.testing.assert_frame_equal(inventory(tmp_path / "data" / "zips", zips), plain)
    (root / "cohn-kanade-images").rename(zips / "cohn-kanade-images")
    pd.testing.assert_frame_equal(inventory(tmp_path / "data" / "half", zips), plain)


def test_ckplus_images_alone_are_all_unlabelled(tmp_path):
    root = write_ckplus(tmp_path / "ck", {"S005/001": (2, None), "S005/002": (2, None)})
    table = inventory(tmp_path / "data" / "ck", root)
    assert table["emotion"].tolist() == ["", ""]


@pytest.mark.parametrize("content", ["happy", "", "8.0000000e+00", "-1", "3.5", "nan", "3 4"])
def test_an_emotion_file_without_a_code_is_refused_by_name(tmp_path, content):
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    (root / "Emotion/S005/001/S005_001_00000004_emotion.txt").write_text(content)
    with pytest.raises(InputError, match=r"S005_001_00000004_emotion\.txt"):
        write_inventory(tmp_path / "data" / "ck", root)


def test_a_label_without_images_is_refused(tmp_path):
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    (root / "cohn-kanade-images/S010/001/S010_001_00000001.png").unlink()
    with pytest.raises(InputError, match="S010/001"):
        write_inventory(tmp_path / "data" / "ck", root)


def test_missing_frames_are_told_and_the_rest_is_kept(tmp_path, capsys):
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    table = inventory(tmp_path / "data" / "whole", root, frames="all")
    assert "missing" not in capsys.readouterr().out
    for sequence, frame in [("S010/002", 2), ("S010/002", 3), ("S005/001", 4), ("S005/002", 1)]:
        (root / "cohn-kanade-images" / sequence / f"{sequence.replace('/', '_')}_{frame:08d}.png").unlink()
    without = inventory(tmp_path / "data" / "ck", root, frames="all")
    assert len(without) == len(table) - 4
    one, ends = capsys.readouterr().out.splitlines()[:2]
    assert one == "missing: 4 frames of 3 sequences (S005/001 lacks 4); what is there is kept"
    assert "in 2 (S005/001, S005/002)" in ends
    assert without[without["sequence"] == "S005/001"]["emotion"].tolist() == ["", "", "disgust"]


# ---- labels that a person added


def test_manual_labels_fill_unlabelled_sequences_and_name_the_annotator(tmp_path):
    labels = write_csv(
        tmp_path / "labels.csv",
        [("S005/002", "Happy", "ann"), ("S005/002", "joy", "bob"), ("S005/001", "disgust", "ann")],
        "sequence,emotion,annotator",
    )
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    table = inventory(tmp_path / "data" / "ck", root, labels=labels, neutral_first=True).set_index("path")
    peak = table.loc["images/S005/002/S005_002_00000003.png"]
    assert (peak["emotion"], peak["label_source"]) == ("happiness", "manual:ann+bob")
    assert table.loc["images/S005/002/S005_002_00000001.png", "emotion"] == "neutral"
    assert table.loc["images/S005/001/S005_001_00000004.png", "label_source"] == "dataset"


def test_manual_labels_by_path_and_without_annotator(tmp_path):
    source = write_csv(tmp_path / "test.csv", [(pixels(random_gray(0)),), (pixels(random_gray(1)),)], "pixels")
    labels = write_csv(tmp_path / "labels.csv", [("images/00001.png", "fear")], "path,emotion")
    table = inventory(tmp_path / "data" / "x", source, labels=labels)
    assert table["emotion"].tolist() == ["", "fear"]
    assert table["label_source"].tolist() == ["", "manual"]


def test_a_manual_label_by_path_reaches_a_frame_that_is_not_the_peak(tmp_path):
    root = write_ckplus(tmp_path / "ck", {"S005/002": (3, None)})
    path = "images/S005/002/S005_002_00000002.png"
    labels = write_csv(tmp_path / "labels.csv", [(path, "fear")], "path,emotion")
    table = inventory(tmp_path / "data" / "all", root, labels=labels, frames="all")
    assert table["emotion"].tolist() == ["", "fear", ""]
    with pytest.raises(InputError, match="--frames leaves it out"):
        write_inventory(tmp_path / "data" / "peak", root, labels=labels)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("sequence,emotion", ("S777/001", "fear"), "S777/001"),
        ("sequence,emotion", ("", "fear"), "not in the data set"),
        ("sequence,emotion", ("S005/001", "fear"), "disgust in the data set already"),
        ("sequence,emotion", ("S005/002", "grumpy"), r"labels\.csv: unknown emotion 'grumpy'"),
        ("sequence,label", ("S005/002", "fear"), "needed are emotion"),
        ("sequence,emotion", ("S005/002", "fear\nS005/002,anger"), "two labels"),
    ],
)
def test_manual_labels_that_do_not_fit_are_refused(tmp_path, header, row, said):
    root = write_ckplus(tmp_path / "ck", CKPLUS)
    with pytest.raises(InputError, match=said):
        write_inventory(tmp_path / "data" / "ck", root, labels=write_csv(tmp_path / "labels.csv", [row], header))
    assert not (tmp_path / "data" / "ck").exists()


# ---- refusals


def fer2013_with(row: tuple, header: str = "emotion,pixels,Usage"):
    return lambda folder: write_csv(folder / "fer2013.csv", [*fer2013_rows()[:1], row], header)


def tar_cut_after(blocks: int, then: bytes = b""):
    """Make a tar file of two images (a header and a block each) that ends, or goes on otherwise, after some blocks."""

    def make(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w", format=tarfile.USTAR_FORMAT) as packed:
            for name in ("angry/1.png", "happy/2.png"):
                member, content = tarfile.TarInfo(name), cv2.imencode(".png", random_gray(0, 12))[1].tobytes()
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
        whole = (folder / "a.tar").read_bytes()
        assert whole[1024 + 257 :].startswith(b"ustar")
        return write_bytes(folder / "a.tar", whole[: blocks * 512] + then + whole[blocks * 512 + 512 :] * bool(then))

    return make


def truncated(pack, name: str):
    def make(folder: Path) -> Path:
        whole = pack(write_kaggle_folders(folder / "tree"), folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
        return folder / name

    return make


def zip_with(*names: str):
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.zip", "w") as packed:
            for name in names:
                packed.writestr(name, b"x")
        return folder / "a.zip"

    return make


def tar_that_climbs(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as packed:
        packed.addfile(tarfile.TarInfo("angry/../../../evil.png"), io.BytesIO())
    return folder / "a.tar"


def damaged_zip(folder: Path) -> Path:
    file = zip_folder(write_kaggle_folders(folder / "tree"), folder / "a.zip")
    content = bytearray(file.read_bytes())
    content[120] ^= 255
    file.write_bytes(content)
    return file


def tree_with_file_name(name: bytes):
    def make(folder: Path) -> Path:
        tree = write_kaggle_folders(folder / "tree")
        try:
            next(tree.rglob("*.png")).rename(os.fsdecode(os.fsencode(tree) + b"/" + name))
        except OSError:
            pytest.skip("this file system takes no such name")
        return tree

    return make


def tree_with(name: str):
    def make(folder: Path) -> Path:
        write_image(write_kaggle_folders(folder / "tree") / name, random_gray(0, 12))
        return folder / "tree"

    return make


SQUARE = pixels(random_gray(9))
REFUSED = {
    "missing source": (lambda folder: folder / "nowhere.csv", "nowhere.csv does not exist"),
    "no pixels": (lambda folder: write_csv(folder / "fer2013.csv", [(0, 1)], "emotion,Usage"), "'pixels'"),
    "no rows": (lambda folder: write_csv(folder / "fer2013.csv", []), "no rows"),
    "2303 pixels": (fer2013_with((0, SQUARE.rsplit(" ", 1)[0], "Training")), "row 1 (line 3) has 2,303 pixels"),
    "value 256": (
        fer2013_with((0, "256" + SQUARE[SQUARE.index(" ") :], "Training")),
        "row 1 (line 3) has the pixel 256",
    ),
    "value -1": (fer2013_with((0, "-1" + SQUARE[SQUARE.index(" ") :], "Training")), "the pixel -1"),
    "no number": (fer2013_with((0, "1x" + SQUARE[SQUARE.index(" ") :], "Training")), "the pixel '1x'"),
    "a fraction": (fer2013_with((0, SQUARE[: SQUARE.rindex(" ")] + " 1.5", "Training")), "the pixel '1.5'"),
    "code 7": (fer2013_with((7, SQUARE, "Training")), "emotion '7'"),
    "unknown Usage": (fer2013_with((1, SQUARE, "Practice")), "'Practice'"),
    "truncated table": (lambda folder: cut(write_csv(folder / "fer2013.csv", fer2013_rows()[:2])), "row 1"),
    "no table at all": (lambda folder: write_bytes(folder / "fer2013.csv", bytes(range(256))), "not a readable CSV"),
    "a pixel without end": (fer2013_with((0, "x" * 9999, "Training")), "the pixel '" + 40 * "x" + "'"),
    "columns without names": (
        lambda folder: write_csv(folder / "fer2013.csv", [(1,)], "x" * 9999),
        "columns: " + 200 * "x" + ")",
    ),
    "tar cut between files": (tar_cut_after(2), "a.tar is damaged"),
    "tar with a damaged header": (tar_cut_after(2, b"x" * 512), "a.tar is damaged"),
    "file name in Latin-1": (tree_with_file_name(b"train/\xe9.png"), "rename the file"),
    "file name with a carriage return": (tree_with_file_name(b"train/a\rb.png"), "rename the file"),
    "zip with a file where a folder is": (zip_with("angry/1.png", "angry"), "angry"),
    "truncated zip": (truncated(zip_folder, "a.zip"), "a.zip is damaged"),
    "truncated tar.gz": (truncated(tar_folder, "a.tar.gz"), "a.tar.gz is damaged"),
    "truncated zip inside": (truncated(zip_in_zip, "b.zip"), "b.zip is damaged"),
    "damaged zip": (damaged_zip, "a.zip is damaged"),
    "text named zip": (lambda folder: write_bytes(folder / "a.zip", b"<html>"), "a.zip is damaged"),
    "zip that climbs out": (zip_with("angry/../../../evil.png"), "leave the folder"),
    "zip with an absolute path": (zip_with("/tmp/evil.png"), "leave the folder"),
    "zip with a drive": (zip_with("C:\\angry\\evil.png"), "leave the folder"),
    "tar that climbs out": (tar_that_climbs, "leave the folder"),
    "unknown emotion folder": (tree_with("train/grumpy/1.png"), "'grumpy'"),
    "image in no folder": (tree_with("1.png"), "1.png"),
    "nothing known": (zip_with("readme.txt"), "no known data set"),
}


def cut(file: Path) -> Path:
    return write_bytes(file, file.read_bytes()[:-5000])


def write_bytes(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_with_status_2_and_nothing_left(tmp_path, monkeypatch, capsys, case):
    make, said = REFUSED[case]
    (tmp_path / "raw").mkdir()
    (tmp_path / "data").mkdir()
    source = make(tmp_path / "raw")
    status = run_here(monkeypatch, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert all_files(tmp_path / "data") == set()
    assert not list(tmp_path.rglob("evil.png"))


def test_the_command_as_a_user_types_it(tmp_path, run_step):
    source = write_csv(tmp_path / "fer2013.csv", [(0, "1 2 3", "Training")])
    done = run_step("preprocessing.step1_inventory", "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: fer2013.csv: row 0 (line 2) has 3 pixels, not 2,304; download it again\n"
    assert not (tmp_path / "data" / "x").exists()


@pytest.mark.parametrize("case", ["value 256", "truncated zip", "unknown emotion folder"])
def test_a_refused_source_leaves_an_earlier_inventory_as_it_was(tmp_path, case):
    folder = tmp_path / "data" / "x"
    inventory(folder, write_csv(tmp_path / "first" / "fer2013.csv", fer2013_rows()))
    before = {name: (folder / name).stat().st_mtime_ns for name in all_files(folder)}
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError):
        write_inventory(folder, REFUSED[case][0](tmp_path / "raw"))
    assert {name: (folder / name).stat().st_mtime_ns for name in all_files(folder)} == before
    assert names_in(tmp_path / "data") == ["x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "fer2013"], "needs --source"),
        (["--dataset", "../x", "--source", "SOURCE"], "not a plain name"),
        (["--dataset", "x", "--source", "SOURCE", "--frames", "last:0"], "last:0"),
        (["--dataset", "x", "--source", "SOURCE", "--frames", "last:2"], "CK+ sequences"),
        (["--dataset", "x", "--source", "SOURCE", "--neutral-first"], "CK+ sequences"),
        (["--dataset", "x", "--source", "SOURCE", "--votes", "none.csv"], "none.csv does not exist"),
        (["--dataset", "x", "--source", "SOURCE", "--labels", "none.csv"], "none.csv does not exist"),
        (["--dataset", "x", "--source", "DATA"], "keep the download in its own folder"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "data").mkdir()
    places = {"SOURCE": write_csv(tmp_path / "fer2013.csv", fer2013_rows()), "DATA": tmp_path / "data"}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert run_here(monkeypatch, *arguments, "--data", tmp_path / "data") == 2
    assert said in capsys.readouterr().err
    assert all_files(tmp_path / "data") == set()


def test_votes_for_folders_are_refused(tmp_path):
    votes = write_csv(tmp_path / "fer2013new.csv", votes_rows(), VOTES_HEADER)
    with pytest.raises(InputError, match="--votes is for a FER2013 table"):
        write_inventory(tmp_path / "data" / "x", write_kaggle_folders(tmp_path / "tree"), votes=votes)


# ---- running again, being killed


def test_the_second_run_on_unchanged_input_does_nothing_and_says_so(tmp_path, monkeypatch, capsys):
    source = write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    arguments = ["--dataset", "x", "--source", source, "--data", tmp_path / "data"]
    assert run_here(monkeypatch, *arguments) == 0
    assert "wrote" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*") if file.is_file()}
    assert run_here(monkeypatch, *arguments) == 0
    assert "unchanged" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content"), [("inventory.csv", "path,emotion\n1.png,grumpy\n"), ("inventory.json", "{")]
)
def test_a_damaged_table_or_record_is_written_again(tmp_path, name, content):
    folder, source = tmp_path / "data" / "x", write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    table = inventory(folder, source)
    (folder / name).write_text(content)
    pd.testing.assert_frame_equal(inventory(folder, source), table)


def test_changed_input_and_changed_options_replace_images_and_table(tmp_path):
    folder, root = tmp_path / "data" / "ck", write_ckplus(tmp_path / "ck", CKPLUS)
    assert len(inventory(folder, root, frames="all")) == 16
    assert len(inventory(folder, root)) == 5
    assert len(list(folder.rglob("*.png"))) == 5
    (root / "cohn-kanade-images/S005/001/S005_001_00000004.png").unlink()
    assert inventory(folder, root)["frame"][0] == "3"
    assert write_inventory(folder, root) is None


KILLED = """
import os, signal, sys
from pathlib import Path
import {module} as module

calls, original = 0, getattr(module, "{name}")

def dying(*arguments):
    global calls
    calls += 1
    if calls > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

module.{name} = dying
from preprocessing.inventory import write_inventory
write_inventory(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def killed_run(folder: Path, source: Path, module: str, name: str, after: int) -> None:
    """Run step 1 in a process that kills itself when a function is called for one time more than `after`."""
    code = KILLED.format(module=module, name=name, after=after)
    killed = subprocess.run([sys.executable, "-c", code, folder, source], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL


needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX's")


@needs_sigkill
def test_a_run_killed_while_writing_images_shows_nothing_and_starts_again_cleanly(tmp_path):
    folder, source = tmp_path / "data" / "x", write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    killed_run(folder, source, "preprocessing.datasets.fer2013", "write_png", 4)
    assert names_in(tmp_path / "data") == [".x.part", "x"] and names_in(folder) == [".lock"]
    assert list((tmp_path / "data" / ".x.part").rglob("*.png"))
    table = inventory(folder, source)
    pd.testing.assert_frame_equal(table, inventory(tmp_path / "data" / "never_killed", source))
    assert all_files(folder) == all_files(tmp_path / "data" / "never_killed")
    assert names_in(tmp_path / "data") == ["never_killed", "x"]


@needs_sigkill
@pytest.mark.parametrize(
    ("module", "name"),
    [("preprocessing.datasets.fer2013", "write_png"), ("preprocessing.step1_inventory", "write_provenance")],
)
def test_a_run_killed_over_an_earlier_inventory_is_done_again(tmp_path, module, name):
    folder, source = tmp_path / "data" / "x", write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    earlier = inventory(folder, write_kaggle_folders(tmp_path / "tree"))
    killed_run(folder, source, module, name, 0)
    if name == "write_png":
        pd.testing.assert_frame_equal(read_table(folder, "inventory.csv"), earlier)
        assert all((folder / path).is_file() for path in earlier["path"])
    table = inventory(folder, source)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == sorted(table["path"])
    assert names_in(tmp_path / "data") == ["x"]


# ---- the audit


def audit_by_hand(table: pd.DataFrame) -> dict:
    """Count the slow way: one dictionary of copies, plain loops."""
    duplicates = defaultdict(list)
    for row in table.to_dict("records"):
        if row["pixel_hash"]:
            duplicates[row["pixel_hash"]].append(row)
    crossing = [rows for rows in duplicates.values() if len({row["usage"] for row in rows}) > 1]
    crossing_rows: dict[str, int] = defaultdict(int)
    for row in (row for rows in crossing for row in rows):
        crossing_rows[row["usage"]] += 1
    return {
        "rows": len(table),
        "unlabelled": [*table["emotion"]].count(""),
        "constant": [*table["status"]].count("constant"),
        "unreadable": [*table["status"]].count("unreadable"),
        "distinct": len(duplicates),
        "duplicates": sum(len(rows) - 1 for rows in duplicates.values()),
        "crossing_groups": len(crossing),
        "crossing_rows": dict(crossing_rows),
        "conflicting_groups": sum(len({row["emotion"] for row in rows} - {""}) > 1 for rows in duplicates.values()),
        "subjects": len({row["subject"] for row in table.to_dict("records") if row["subject"]}),
        "sequences": len({row["sequence"] for row in table.to_dict("records") if row["sequence"]}),
        "labelled_sequences": len(
            {row["sequence"] for row in table.to_dict("records") if row["sequence"] and row["emotion"]}
        ),
        "unnamed": [*table["ferplus_name"]].count("") if "ferplus_name" in table.columns else None,
    }


def random_table(seed: int) -> pd.DataFrame:
    """A table with every oddity, and many copies."""
    choose = np.random.default_rng(seed).choice
    table = pd.DataFrame(
        {
            "emotion": choose(["anger", "fear", "neutral", ""], 200),
            "usage": choose(["Training", "PublicTest", "PrivateTest"], 200),
            "pixel_hash": choose([f"{number:x}" for number in range(120)], 200),
            "status": choose(["ok", "constant", "unreadable"], 200),
            "subject": choose(["", "S001", "S002"], 200),
            "sequence": choose(["", *(f"S001/{number:03d}" for number in range(90))], 200),
            "ferplus_name": choose(["fer.png", ""], 200),
        }
    )
    table.loc[table["status"] == "unreadable", "pixel_hash"] = ""
    return table


@pytest.mark.parametrize("seed", range(3))
def test_the_audit_agrees_with_counting_by_hand(seed):
    table = random_table(seed)
    counts = audit(table)
    assert counts == audit_by_hand(table)
    assert counts["crossing_groups"] > 0
    assert counts["conflicting_groups"] > 0


def test_images_are_counted_per_emotion_and_usage():
    table = random_table(0)
    counts = count_images(table, "usage")
    assert counts.index.tolist() == ["anger", "fear", "neutral", "(unlabelled)", "all"]
    assert counts.loc["all", "all"] == 200
    fear_in_training = sum(table["emotion"].eq("fear") & table["usage"].eq("Training"))
    assert counts.loc["fear", "Training"] == fear_in_training > 0


def test_the_command_prints_the_audit(tmp_path, monkeypatch, capsys):
    source = write_csv(tmp_path / "fer2013.csv", fer2013_rows())
    run_here(monkeypatch, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "Training PublicTest PrivateTest all" in lines
    assert "neutral 1 1 0 2" in lines
    assert "exact copies 1 (5 distinct images)" in lines
    assert "groups of copies across the data set's own splits 1 (images: 1 of Training, 1 of PublicTest)" in lines
    assert "groups of copies with conflicting labels 1" in lines
    assert "constant images 1" in lines


def test_the_audit_of_the_real_fer2013(tmp_path, shared_data):
    writer = shared_data / "fer2013" / "write_csv.py"
    subprocess.run([sys.executable, writer, tmp_path], check=True, stdout=subprocess.DEVNULL)
    votes = tmp_path / "fer2013new.csv"
    assert write_inventory(tmp_path / "data" / "fer", tmp_path / "fer2013.csv", votes=votes) is Kind.FER2013
    counts = audit(read_table(tmp_path / "data" / "fer", "inventory.csv"))
    assert counts | {"crossing_rows": counts["crossing_rows"]["PublicTest"]} == {
        "rows": 32_298,
        "unlabelled": 0,
        "constant": 12,
        "unreadable": 0,
        "distinct": 30_766,
        "duplicates": 1_532,
        "crossing_groups": 270,
        "crossing_rows": 280,
        "conflicting_groups": 47,
        "subjects": 0,
        "sequences": 0,
        "labelled_sequences": 0,
        "unnamed": 158,
    }


# ---- the sample, and what comes after


def test_without_options_the_sample_is_made_once_and_inventoried_as_ckplus(tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, "--data", tmp_path) == 0
    assert "recognised: CK+ sequences" in capsys.readouterr().out
    table = read_table(tmp_path / SAMPLE_NAME, "inventory.csv")
    assert table["subject"].nunique() == SAMPLE.subjects
    assert table["sequence"].is_unique
    assert sum(table["emotion"] == "") == SAMPLE.unlabelled
    assert set(table["frame"]) == {str(SAMPLE.frames)}
    assert set(table["status"]) == {"ok"}
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert run_here(monkeypatch, "--data", tmp_path) == 0
    assert "unchanged" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_the_sample_takes_no_folder_of_other_things(tmp_path, monkeypatch, capsys):
    write_image(tmp_path / SAMPLE_NAME / "raw" / "mine.png", random_gray(0))
    assert run_here(monkeypatch, "--data", tmp_path) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / SAMPLE_NAME / "raw" / "mine.png").is_file()


def test_usable_rows_feed_keras_own_generator(tmp_path):
    import tensorflow as tf

    folder = tmp_path / "data" / "fer"
    rows = usable(inventory(folder, write_csv(tmp_path / "fer2013.csv", fer2013_rows())))
    batches = tf.keras.preprocessing.image.ImageDataGenerator().flow_from_dataframe(
        rows, directory=folder, x_col="path", y_col="emotion", target_size=(48, 48), color_mode="grayscale",
        shuffle=False, batch_size=8,
    )  # fmt: skip
    images, one_hot = next(batches)
    assert len(images) == len(rows) == 5
    assert sorted(batches.class_indices) == sorted(set(rows["emotion"]))
    np.testing.assert_array_equal(images[1, :, :, 0], random_gray(1))
    assert one_hot[1].argmax() == batches.class_indices["happiness"]


def test_archives_that_differ_by_their_ending_alone_stay_apart(tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    for seed, pack in enumerate((zip_folder, tar_folder)):
        write_image(tmp_path / str(seed) / "happy" / "1.png", random_gray(seed, 12))
        pack(tmp_path / str(seed), both / ("a.zip" if pack is zip_folder else "a.tar.gz"))
    table = inventory(tmp_path / "data" / "both", both)
    assert table["path"].nunique() == table["pixel_hash"].nunique() == 2
