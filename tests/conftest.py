"""Small synthetic data sets and networks that several test files use."""

import importlib
import json
import os
import signal
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl-C, and so would the programs under test that are to end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2
import numpy as np
import pandas as pd
import pytest
from cards import model_card
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure

from common import command_line
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, read_table, write_table

_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=20, derandomize=True, **_ALWAYS)
settings.register_profile("long", max_examples=1000, **_ALWAYS)
settings.load_profile("quick")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data that developers have beside the project; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _quick_figures(request, monkeypatch) -> None:
    """Build every figure but draw none unless the test is marked `figures`: drawing takes most of a report's time."""

    def savefig(figure: Figure, file: Any, **options: object) -> None:
        content = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
        if hasattr(file, "write"):
            file.write(content)
        else:
            Path(file).write_bytes(content)

    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(Figure, "savefig", savefig)


def own_address() -> str:
    """This machine's address on its network; one that nothing listens on where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.2"
        return probe.getsockname()[0]


def spoil_longest_member(file: Path) -> None:
    """Change a byte of the longest member of a zip file, as a bad disk does."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        longest = max(archive.infolist(), key=lambda member: member.compress_size)
    content[longest.header_offset + longest.compress_size // 2] ^= 255
    file.write_bytes(content)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make every write fail beyond this many bytes of a file, much as a full disk does."""
    resource = pytest.importorskip("resource")  # Python ignores the signal that comes with it
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass(frozen=True)
class Done:
    """What a finished step left behind for its user."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_step(monkeypatch, capfd) -> Callable[..., Done]:
    """Run `python -m MODULE ARGS...` inside this process, by its command line: quick, since Keras is loaded once."""

    def run(module: str, *arguments: object) -> Done:
        main = importlib.import_module(module).main
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        capfd.readouterr()
        try:
            command_line.run(main)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capfd.readouterr())

    return run


def striped_image(emotion_index: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Return a noisy uint8 gray image with one bright bar, whose height tells the class."""
    image = random.integers(0, 60, (size, size)).astype(np.uint8)
    top = emotion_index * size // 8
    image[top : top + size // 8] += 150
    return image


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Make a data set folder with crops and a finished split.csv, whose classes are easy to tell apart."""

    def make(
        emotions: tuple[str, ...] = ("anger", "happiness", "neutral"),
        per_split: tuple[tuple[str, int], ...] = (("train", 12), ("dev", 4), ("test", 4)),
        size: int = 24,
        name: str = "stripes",
    ) -> Path:
        folder = tmp_path / "data" / name
        (folder / "faces").mkdir(parents=True)
        random = np.random.default_rng(3)
        rows = []
        for split, count in per_split:
            for index, emotion in enumerate(emotions):
                for number in range(count):
                    path = f"faces/{split}_{emotion}_{number}.png"
                    cv2.imwrite(str(folder / path), striped_image(index, size, random))
                    row = dict.fromkeys([*INVENTORY_COLUMNS, *FACE_COLUMNS], "")
                    row |= {"path": path, "face_path": path, "emotion": emotion, "pixel_hash": path}
                    rows.append({**row, "status": "ok", "face_status": "whole_image", "split": split})
        write_table(pd.DataFrame(rows), folder / "split.csv")
        crops = {"options": {"size": size, "channels": 1, "align": "landmarks"}}
        (folder / "faces.json").write_text(json.dumps(crops))
        return folder

    return make


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """Save an untrained network of a few hundred parameters with its card, and return its path.

    Its list of training images is empty, or names the train and dev rows of the data set `trained_on`, or is missing.
    """

    def make(
        labels: tuple[str, ...] = ("anger", "happiness", "neutral"),
        size: int = 24,
        name: str = "tiny.keras",
        trained_on: Path | None = None,
        listed: bool = True,
        **card,
    ) -> Path:
        import keras

        from inference.keras_networks import save
        from inference.lineage import ImageHashes

        keras.utils.set_random_seed(5)
        inputs = keras.Input((size, size, 1), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.AveragePooling2D(size // 8)(x)
        x = keras.layers.Flatten()(x)
        outputs = keras.layers.Dense(len(labels), activation="softmax")(x)
        file = tmp_path / "models" / name
        hashes = ImageHashes.of()
        if trained_on:
            rows = read_table(trained_on, "split.csv")
            card = {"dataset": trained_on.name, **card}
            trained, selected = (rows.loc[rows["split"] == part, "pixel_hash"] for part in ("train", "dev"))
            hashes = ImageHashes.of(trained, selected)
        save(
            keras.Model(inputs, outputs),
            model_card(labels=list(labels), input_size=size, **card),
            file,
            hashes if listed else None,
        )
        return file

    return make
