"""Readers get damaged files: each one reads them or refuses them in one line, and fails in no other way.

A long run: python -m pytest tests/test_fuzzing.py --hypothesis-profile long
"""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from cards import ENTRIES
from hypothesis import event, given
from hypothesis import strategies as st
from raw_data import (
    encoded,
    random_gray,
    tar_folder,
    write_ckplus,
    write_csv,
    write_fer2013,
    write_kaggle_folders,
    zip_folder,
)  # fmt: skip
from realtime_fakes import write_video

from common.errors import InputError
from common.images import read_image
from inference.lineage import ImageHashes, read_hashes, write_hashes
from inference.model_card import read_card
from preprocessing.inventory import write_inventory
from preprocessing.labelling.store import read_labels
from preprocessing.tables import crop_options, read_provenance, read_table
from realtime.sources import open_source
from training.settings import read_settings


class Reader(NamedTuple):
    """Reads a file in a folder of its own; `write` makes a valid one there."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def read_download(file: Path) -> None:
    write_inventory(file.parent / "data" / "x", file)


def read_emotion_file(file: Path) -> None:
    write_inventory(file.parent / "data" / "x", write_ckplus(file.parent / "CK+", {"S005/001": (2, None)}))


def read_votes(file: Path) -> None:
    table = write_csv(file.parent / "plain" / "fer2013.csv", [("", " ".join(["7"] * 2304), "Training")])
    write_inventory(file.parent / "data" / "x", table, votes=file)


def write_card(file: Path) -> None:
    file.with_suffix(".keras").touch()
    file.write_text(json.dumps(ENTRIES | {"hyperparameters": {"filters": [4]}, "scores": []}))


def read_video(file: Path) -> None:
    with closing(open_source(str(file))) as source:
        for _ in source:
            pass


def zip_of_folders(file: Path) -> None:
    zip_folder(write_kaggle_folders(file.parent / "tree"), file)


def tar_of_folders(file: Path) -> None:
    tar_folder(write_kaggle_folders(file.parent / "tree"), file)


def network(hashes: Path) -> Path:
    return hashes.with_name("x.keras")


VOTES = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
COLUMNS = "path,emotion,label_source,subject,sequence,frame,usage,pixel_hash,status\nimages/1.png,fear,,,,,,a,ok\n"
CROPS = json.dumps({"options": {"size": 48, "channels": 1, "align": "box"}})
HASHES = ImageHashes.of(["00000000000000aa"], ["00000000000000bb"])
READERS = [
    *(
        Reader(f"image{suffix}", lambda file: file.write_bytes(encoded(random_gray(1), file.suffix)), read_image)
        for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp", ".pgm", ".jp2", ".avif")
    ),
    Reader("fer2013.csv", lambda file: write_fer2013(file.parent), read_download),
    Reader("votes.csv", lambda file: write_csv(file, [("Training", "a.png", *[1] * 10)], VOTES), read_votes),
    Reader("labels.csv", lambda file: file.write_text("path,emotion\na,fear\n"), lambda file: read_labels([file])),
    Reader("a.zip", zip_of_folders, read_download),
    Reader("a.tar.gz", tar_of_folders, read_download),
    Reader("inventory.csv", lambda file: file.write_text(COLUMNS), lambda file: read_table(file.parent, file.name)),
    Reader("faces.json", lambda file: file.write_text(CROPS), lambda file: crop_options(file.parent)),
    Reader("split.json", lambda f: f.write_text(CROPS), lambda f: read_provenance(f.parent, "split.csv")),
    Reader("own.json", write_card, lambda file: read_card(file.with_suffix(".keras"))),
    Reader("settings.json", lambda f: f.write_text('{"config": {"filters": [4], "epochs": 3}}'), read_settings),
    Reader("card.json", write_card, read_settings),
    Reader("x.hashes.npz", lambda f: write_hashes(network(f), HASHES), lambda f: read_hashes(network(f))),
    Reader("clip.mp4", write_video, read_video),
]  # fmt: skip


@st.composite
def damages(draw: st.DrawFn) -> list[tuple]:
    """Changes of a file: (kind, place as a share of its length, bytes, length)."""
    kinds = st.sampled_from(["replace", "insert", "cut", "repeat", "remove"])
    words = st.binary(min_size=1, max_size=8) | st.sampled_from(
        [b"\0", b",", b"\n", b'"', b"-1", b"1e999", b"nan", b"null", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"../"]
    )
    return draw(st.lists(st.tuples(kinds, st.floats(0, 1), words, st.integers(1, 64)), min_size=1, max_size=4))


def damaged(content: bytes, changes: list[tuple]) -> bytes:
    for kind, share, word, length in changes:
        place = int(share * len(content))
        before, after = content[:place], content[place:]
        content = {
            "replace": before + word + after[len(word) :],
            "insert": before + word + after,
            "cut": before,
            "repeat": before + after[:length] * 2 + after[length:],
            "remove": before + after[length:],
        }[kind]
    return content


@pytest.fixture(scope="module", params=READERS, ids=lambda reader: reader.name)
def reader(request, tmp_path_factory) -> tuple[Reader, Path, bytes]:
    """A reader, its folder and the valid content, which it accepts."""
    file = tmp_path_factory.mktemp("fuzzing") / request.param.name
    request.param.write(file)
    request.param.read(file)
    return request.param, file, file.read_bytes()


@given(changes=damages())
def test_damaged_file_is_read_or_refused_in_one_line(reader, capfd, changes):
    each, file, content = reader
    for folder in ("data", "CK+"):
        shutil.rmtree(file.parent / folder, ignore_errors=True)
    file.write_bytes(damaged(content, changes))
    try:
        each.read(file)
        event("read")
    except InputError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        event("refused")
    capfd.readouterr()
