import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_data import (
    all_files,
    encoded,
    names_in,
    random_gray,
    tar_folder,
    write_image,
    write_kaggle_folders,
    zip_folder,
    zip_in_zip,
)  # fmt: skip

from preprocessing.datasets import archives
from preprocessing.inventory import write_inventory
from preprocessing.tables import read_table

STEP1 = "preprocessing.step1_inventory"
MEGABYTE = bytes(1_000_000)


def png(seed: int) -> bytes:
    return encoded(random_gray(seed, 12))


def zip_of(file: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            with pytest.warns(UserWarning, match="Duplicate name") if name in packed.namelist() else io.BytesIO():
                packed.writestr(name, content)
    return file


def tar_of(file: Path, *members: tuple) -> Path:
    """Write a tar file of (name, content) and (name, b"", link type, target)."""
    mode: Any = {".gz": "w:gz", ".xz": "w:xz"}.get(file.suffix, "w")
    with tarfile.open(file, mode, format=tarfile.USTAR_FORMAT) as packed:
        for name, content, *link in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type, member.linkname = link or (tarfile.REGTYPE, "")
            packed.addfile(member, io.BytesIO(content))
    return file


def inventory_of(run_step, source: Path):
    data = source.parent / "data"
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", data)
    return done, data / "x"


@pytest.mark.parametrize("pack", [zip_folder, tar_folder, zip_in_zip])
def test_every_packing_gives_the_same_rows(tmp_path, pack):
    download = write_kaggle_folders(tmp_path / "download")
    (download / "__MACOSX").mkdir()
    (download / "__MACOSX" / "._x.png").write_bytes(b"system file")
    packed = pack(download, tmp_path / ("a.tar.gz" if pack is tar_folder else "a.zip"))
    tables = []
    for name, source in (("packed", packed), ("plain", download)):
        write_inventory(tmp_path / "data" / name, source)
        tables.append(read_table(tmp_path / "data" / name, "inventory.csv"))
    columns = ["emotion", "usage", "pixel_hash", "status"]
    assert tables[0][columns].equals(tables[1][columns]) and len(tables[0]) == 4
    assert all((tmp_path / "data" / "packed" / path).is_file() for path in tables[0]["path"])
    assert names_in(tmp_path / "data") == ["packed", "plain"]


def test_archives_that_differ_only_in_their_suffix_stay_apart(tmp_path):
    (tmp_path / "both").mkdir()
    for seed, pack in enumerate((zip_folder, tar_folder)):
        write_image(tmp_path / str(seed) / "happy" / "1.png", random_gray(seed, 12))
        pack(tmp_path / str(seed), tmp_path / "both" / ("a.zip" if pack is zip_folder else "a.tar.gz"))
    write_inventory(tmp_path / "data" / "x", tmp_path / "both")
    table = read_table(tmp_path / "data" / "x", "inventory.csv")
    assert table["path"].nunique() == table["pixel_hash"].nunique() == 2


# Each unpacks to 12 MB, where LIMIT bytes are allowed.
LIMIT = 10_000_000
MANY = [(f"happy/{number}.png", MEGABYTE) for number in range(12)]
LINKS = [(f"happy/{number}.png", b"", tarfile.LNKTYPE, "happy/0.png") for number in range(1, 120)]
BOMBS = {
    "many members of a zip": lambda folder: zip_of(folder / "a.zip", *MANY),
    "one member of a tar.gz": lambda folder: tar_of(folder / "a.tar.gz", ("happy/1.png", 12 * MEGABYTE)),
    "many members of a tar.xz": lambda folder: tar_of(folder / "a.tar.xz", *MANY),
    "hard links in a tar": lambda folder: tar_of(folder / "a.tar", ("happy/0.png", MEGABYTE), *LINKS),
    "a zip in a zip": lambda folder: zip_of(folder / "a.zip", ("b.zip", zip_of(folder / "b.zip", *MANY).read_bytes())),
    "hidden files in a tar.gz": lambda folder: tar_of(folder / "a.tar.gz", ("happy/.x", 12 * MEGABYTE)),
}


@pytest.mark.parametrize("case", BOMBS)
def test_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, run_step, case, monkeypatch):
    monkeypatch.setattr(archives, "MIN_LIMIT", LIMIT)
    done, folder = inventory_of(run_step, BOMBS[case](tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert " unpacks to more than " in done.stderr and done.stderr.endswith("program and give the folder\n")
    assert not folder.exists()


def test_well_compressed_small_archive_is_unpacked(tmp_path, run_step):
    flat = encoded(np.full((1500, 1500), 9, np.uint8), ".bmp")  # 2 MB, compressed to a 500th
    done, folder = inventory_of(run_step, zip_of(tmp_path / "a.zip", ("happy/flat.bmp", flat), ("sad/1.png", png(1))))
    assert done.returncode == 0 and read_table(folder, "inventory.csv")["status"].tolist() == ["constant", "ok"]


@pytest.mark.parametrize("target", ["./happy/1.png", ".cache/1.png"])
def test_hard_link_becomes_a_copy_of_its_target(tmp_path, run_step, target):
    links = [("sad/2.png", b"", tarfile.LNKTYPE, target), ("sad/3.png", b"", tarfile.LNKTYPE, "sad/2.png")]
    members = [("./happy/1.png", png(1)), (".cache/1.png", png(1)), *links]
    done, folder = inventory_of(run_step, tar_of(tmp_path / "a.tar.gz", *members))
    assert done.returncode == 0
    paths = read_table(folder, "inventory.csv")["path"].tolist()
    assert paths == ["images/happy/1.png", "images/sad/2.png", "images/sad/3.png"]
    assert {(folder / path).read_bytes() for path in paths} == {png(1)}
    assert {(folder / path).stat().st_nlink for path in paths} == {1}


def tar_with_link(target: str):
    link = ("sad/2.png", b"", tarfile.LNKTYPE, target)
    return lambda folder: tar_of(folder / "a.tar", ("happy/1.png", png(1)), link)


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_last_of_members_with_the_same_name_is_used(tmp_path, run_step, pack):
    members = [("happy/1.png", png(1)), ("sad/2.png", png(2)), ("happy/1.png", png(3))]
    done, folder = inventory_of(run_step, pack(tmp_path / ("a.zip" if pack is zip_of else "a.tar"), *members))
    assert done.returncode == 0 and "1 file (happy/1.png) is in it more than once" in done.stdout
    assert (folder / "images/happy/1.png").read_bytes() == png(3)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_symbolic_links_are_skipped_and_counted(tmp_path, run_step, name):
    secret = str(tmp_path / "secret.png")
    Path(secret).write_bytes(png(5))
    if name == "a.zip":
        link = zipfile.ZipInfo("sad/2.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(zip_of(tmp_path / name, ("happy/1.png", png(1))), "a") as packed:
            packed.writestr(link, secret)
    else:
        tar_of(tmp_path / name, ("happy/1.png", png(1)), ("sad/2.png", b"", tarfile.SYMTYPE, secret))
    done, folder = inventory_of(run_step, tmp_path / name)
    assert done.returncode == 0 and "1 file (sad/2.png) is not unpacked" in done.stdout
    assert read_table(folder, "inventory.csv")["path"].tolist() == ["images/happy/1.png"]


def cut_tar(blocks: int, then: bytes = b""):
    """Write a tar file of two images (a header and a block each) that is cut, or overwritten, after some blocks."""

    def make(folder: Path) -> Path:
        file = tar_of(folder / "a.tar", ("angry/1.png", png(0)), ("happy/2.png", png(0)))
        whole = file.read_bytes()
        file.write_bytes(whole[: blocks * 512] + then + whole[blocks * 512 + 512 :] * bool(then))
        return file

    return make


def damaged(pack, name: str, cut: bool = True):
    def make(folder: Path) -> Path:
        content = bytearray(pack(write_kaggle_folders(folder / "tree"), folder / name).read_bytes())
        content[120] ^= 0 if cut else 255
        (folder / name).write_bytes(content[: len(content) * 2 // 3] if cut else content)
        return folder / name

    return make


def without_start(folder: Path) -> Path:
    """Write a zip file that lacks its first 81 bytes, so that its index points before its start."""
    file = zip_folder(write_kaggle_folders(folder / "tree"), folder / "a.zip")
    file.write_bytes(file.read_bytes()[81:])
    return file


def encrypted_zip(folder: Path) -> Path:
    """Write a zip file whose member is marked as encrypted, in both of its headers."""
    file = zip_of(folder / "a.zip", ("angry/1.png", png(1)))
    content = bytearray(file.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    file.write_bytes(content)
    return file


def zip_without_name(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as packed, packed.open(zipfile.ZipInfo(""), "w") as stream:
        stream.write(b"x")
    return folder / "a.zip"


def zip_with_invalid_utf8(folder: Path) -> Path:
    """Write a zip file with a name that is marked as UTF-8 and is not."""
    file = zip_of(folder / "a.zip", ("angry/\u00e9.png", b"x"))
    file.write_bytes(file.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    return file


REFUSED = {
    "tar cut between files": (cut_tar(2), "a.tar is damaged"),
    "tar with a damaged header": (cut_tar(2, b"x" * 512), "a.tar is damaged"),
    "zip without its start": (without_start, "a.zip is damaged"),
    "cut tar.gz": (damaged(tar_folder, "a.tar.gz"), "a.tar.gz is damaged"),
    "cut zip inside": (damaged(zip_in_zip, "b.zip"), "b.zip is damaged"),
    "zip with a wrong byte": (damaged(zip_folder, "a.zip", cut=False), "a.zip is damaged"),
    "file and folder of one name": (
        lambda folder: zip_of(folder / "a.zip", ("angry/1.png", b"x"), ("angry", b"x")),
        "angry",
    ),
    "path upwards in a zip": (lambda folder: zip_of(folder / "a.zip", ("angry/../../../evil.png", b"x")), "leads out"),
    "path upwards in a tar": (lambda folder: tar_of(folder / "a.tar", ("angry/../../../evil.png", b"x")), "leads out"),
    "absolute path": (lambda folder: zip_of(folder / "a.zip", ("/tmp/evil.png", b"x")), "leads out"),
    "path with a drive": (lambda folder: zip_of(folder / "a.zip", ("C:\\angry\\evil.png", b"x")), "leads out"),
    "hard link upwards": (tar_with_link("../outside.png"), "a.tar is damaged"),
    "hard link to no file": (tar_with_link("happy/none.png"), "a.tar is damaged"),
    "hard link to a folder": (tar_with_link("happy"), "a.tar is damaged"),
    "absolute path in a tar": (lambda folder: tar_of(folder / "a.tar", ("/tmp/evil.png", b"x")), "leads out"),
    "password": (encrypted_zip, "a.zip is encrypted; unpack it with its password"),
    "file without a name": (zip_without_name, "a.zip is damaged or incomplete (a file without a name)"),
    "name that is not UTF-8": (zip_with_invalid_utf8, "a.zip is damaged"),
    "name too long for the disk": (
        lambda folder: zip_of(folder / "a.zip", ("angry/" + "\u65e5" * 300 + ".png", b"x")),
        "a.zip: a file name in it is too long for this disk; unpack it",
    ),
    "no data set": (lambda folder: zip_of(folder / "a.zip", ("readme.txt", b"x")), "no known data set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_or_dangerous_archive_is_refused_in_one_line(tmp_path, run_step, case):
    make, expected = REFUSED[case]
    (tmp_path / "raw" / "data").mkdir(parents=True)
    (tmp_path / "raw" / "outside.png").write_bytes(png(2))
    done, folder = inventory_of(run_step, make(tmp_path / "raw"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert all_files(folder.parent) == set() and not list(tmp_path.rglob("evil.png"))
