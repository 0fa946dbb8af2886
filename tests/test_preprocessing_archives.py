import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.datasets import archives
from preprocessing.tables import read_table

STEP1 = "preprocessing.step1_inventory"
MEGABYTE = bytes(1_000_000)


def png(value: int) -> bytes:
    image = np.random.default_rng(value).integers(0, 256, (12, 12), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def tar_member(
    packed: tarfile.TarFile, name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, to: str = ""
):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, to
    packed.addfile(member, io.BytesIO(content))


def zip_of(file: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, content in members:
            with pytest.warns(UserWarning, match="Duplicate name") if name in packed.namelist() else io.BytesIO():
                packed.writestr(name, content)
    return file


def tar_of(file: Path, *members: tuple) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w:xz" if file.suffix == ".xz" else "w") as packed:
        for name, content, *link in members:
            tar_member(packed, name, content, kind=link[0] if link else tarfile.REGTYPE, to=link[1] if link else "")
    return file


def inner_zip(size: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("happy/1.png", bytes(size))
    return content.getvalue()


# Each packs 12 MB of zeros, where SMALL bytes are allowed.
SMALL = 10_000_000
BOMBS = {
    "one member of a zip": lambda folder: zip_of(folder / "a.zip", [("happy/1.png", 12 * MEGABYTE)]),
    "many members of a zip": lambda folder: zip_of(
        folder / "a.zip", [(f"happy/{number}.png", MEGABYTE) for number in range(12)]
    ),
    "one member of a tar.gz": lambda folder: tar_of(folder / "a.tar.gz", ("happy/1.png", 12 * MEGABYTE)),
    "many members of a tar.xz": lambda folder: tar_of(
        folder / "a.tar.xz", *((f"happy/{number}.png", MEGABYTE) for number in range(12))
    ),
    "hard links in a tar": lambda folder: tar_of(
        folder / "a.tar",
        ("happy/0.png", MEGABYTE),
        *((f"happy/{number}.png", b"", tarfile.LNKTYPE, "happy/0.png") for number in range(1, 120)),
    ),
    "zips in a zip": lambda folder: zip_of(
        folder / "a.zip", [(f"{number}.zip", inner_zip(1_000_000)) for number in range(12)]
    ),
    "hidden files in a tar.gz": lambda folder: tar_of(folder / "a.tar.gz", ("happy/.x", 12 * MEGABYTE)),
}


@pytest.mark.parametrize("case", BOMBS)
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, run_step, case, monkeypatch):
    written = []
    monkeypatch.setattr(archives, "MIN_LIMIT", SMALL)
    monkeypatch.setattr(
        archives.shutil, "copyfileobj", lambda packed, file, _: written.append(file.write(packed.read()))
    )
    source = BOMBS[case](tmp_path)
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    limit = max(SMALL, archives.MAX_RATIO * source.stat().st_size)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert f" unpacks to more than {limit / 1e6:.0f} MB, from " in done.stderr
    assert done.stderr.endswith("unpack it with another program and give the folder\n")
    assert not (tmp_path / "data").exists()
    refused_at_once = case.startswith("one member") or case.endswith(("members of a zip", "hidden files in a tar.gz"))
    assert sum(written) <= (0 if refused_at_once else limit)


def test_the_limits_as_they_are_refuse_a_bomb(tmp_path, run_step):
    bomb = zip_of(tmp_path / "a.zip", [("happy/1.png", bytes(120_000_000))])
    done = run_step(STEP1, "--dataset", "x", "--source", bomb, "--data", tmp_path / "data")
    assert done.returncode == 2 and "a.zip unpacks to more than 100 MB, from 0.1 MB" in done.stderr


def test_real_images_and_small_archives_that_pack_well_are_unpacked(tmp_path, run_step):
    flat = cv2.imencode(".bmp", np.full((1500, 1500), 9, np.uint8))[1].tobytes()  # 2 MB, 500 times as much as packed
    source = zip_of(tmp_path / "a.zip", [("happy/flat.bmp", flat), ("sad/1.png", png(1))])
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert done.returncode == 0
    assert read_table(tmp_path / "data" / "x", "inventory.csv")["status"].tolist() == ["constant", "ok"]


def test_the_limit_lets_affectnet_pass():
    assert archives.MAX_LIMIT > 4 * 125_000_000_000
    assert archives.MAX_RATIO > 4 * 20  # what images that are stored without compression pack to


@pytest.mark.parametrize("target", ["./happy/1.png", "happy/1.png", ".cache/1.png"])
def test_a_hard_link_in_a_tar_becomes_a_file_of_its_own(tmp_path, run_step, target):
    source = tar_of(
        tmp_path / "a.tar.gz",
        ("./happy/1.png", png(1)),
        (".cache/1.png", png(1)),
        ("sad/2.png", b"", tarfile.LNKTYPE, target),
        ("sad/3.png", b"", tarfile.LNKTYPE, "sad/2.png"),
    )
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert done.returncode == 0
    folder = tmp_path / "data" / "x"
    assert read_table(folder, "inventory.csv")["path"].tolist() == [
        f"images/{n}" for n in ("happy/1.png", "sad/2.png", "sad/3.png")
    ]
    for path in ("images/happy/1.png", "images/sad/2.png", "images/sad/3.png"):
        assert (folder / path).read_bytes() == png(1)
        assert (folder / path).stat().st_nlink == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/etc/passwd", "leave the folder"),
        ("../outside.png", "leave the folder"),
        ("happy/none.png", "names 'happy/none.png', which is not before it"),
        ("happy", "names 'happy', which is not before it"),
    ],
)
def test_a_hard_link_to_what_is_not_in_the_archive_is_refused(tmp_path, run_step, target, said):
    (tmp_path / "outside.png").write_bytes(png(2))
    source = tar_of(tmp_path / "a.tar", ("happy/1.png", png(1)), ("sad/2.png", b"", tarfile.LNKTYPE, target))
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_members_with_the_same_name_the_last_is_taken_and_a_line_says_so(tmp_path, run_step, kind):
    members = [
        ("happy/1.png", png(1)),
        ("sad/2.png", png(2)),
        ("./happy//1.png" if kind == "tar" else "happy/1.png", png(3)),
    ]
    source = zip_of(tmp_path / "a.zip", members) if kind == "zip" else tar_of(tmp_path / "a.tar", *members)
    done = run_step(STEP1, "--dataset", "x", "--source", source, "--data", tmp_path / "data")
    assert done.returncode == 0
    assert f"{source.name}: 1 file ({members[-1][0]}) is in it more than once; the last one" in done.stdout
    assert (tmp_path / "data/x/images/happy/1.png").read_bytes() == png(3)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_symbolic_links_in_an_archive_are_not_followed_and_are_counted(tmp_path, run_step, kind):
    (tmp_path / "secret.png").write_bytes(png(5))
    if kind == "zip":
        link = zipfile.ZipInfo("sad/2.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
            packed.writestr("happy/1.png", png(1))
            packed.writestr(link, os.fspath(tmp_path / "secret.png"))
    else:
        secret = os.fspath(tmp_path / "secret.png")
        links = [("sad/2.png", b"", tarfile.SYMTYPE, secret), ("sad/3.png", b"", tarfile.LNKTYPE, "sad/2.png")]
        tar_of(tmp_path / "a.tar", ("happy/1.png", png(1)), *links)
    done = run_step(STEP1, "--dataset", "x", "--source", tmp_path / f"a.{kind}", "--data", tmp_path / "data")
    assert done.returncode == 0
    assert "no regular files (links, devices) and not unpacked" in done.stdout
    assert "(sad/2.png" in done.stdout
    assert read_table(tmp_path / "data" / "x", "inventory.csv")["path"].tolist() == ["images/happy/1.png"]
