"""The steps that `benchmarks.kill_test` kills, on small generated data, and what may differ from run to run."""

import io
import json
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pandas as pd

from benchmarks.common import write_portrait_video

TOLERANCE = 1e-5  # largest difference of a trained weight or metric, absolute and relative

Files = dict[str, bytes]  # content by path; a folder's path ends with "/" and has none
Compare = Callable[[bytes, bytes], str]  # takes the content and the expected one, and returns what is wrong, or ""


@dataclass(frozen=True)
class Step:
    """A command that is killed. `{work}` in a command is the folder of all its files.

    Attributes:
        command: Arguments of Python.
        before: What prepares the folder: arguments of Python, or functions of the folder.
        compare: Comparisons of files whose bytes differ from run to run, by glob pattern.
        grows: Glob patterns of tables that grow by rows; others are replaced as a whole.
        check_killed: Takes the files after a kill and the expected ones, and returns what is wrong.
        user: Operates the running program and ends it. Takes the process, the file of its output, and what earlier runs
            of the round left in the dictionary; its entry `problems` lists what is wrong.
    """

    command: str
    before: tuple[str | Callable[[Path], object], ...] = ()
    compare: Mapping[str, Compare] = field(default_factory=dict)
    grows: tuple[str, ...] = ()
    check_killed: Callable[[Files, Files], list[str]] = lambda files, expected: []
    user: Callable[[subprocess.Popen, Path, dict[str, Any]], object] | None = None


# ---- comparisons


def _close(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str:
    if list(actual) != list(expected):
        return "has other entries"
    for name, array in expected.items():
        if array.shape != actual[name].shape:
            return f"{name} has another shape"
        if array.dtype.kind == "f" and not np.allclose(actual[name], array, TOLERANCE, TOLERANCE):
            return f"{name} differs by {np.abs(actual[name] - array).max():.2g}"
        if array.dtype.kind != "f" and not np.array_equal(actual[name], array):
            return f"{name} differs"
    return ""


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a `.npz` file, or the weights of a `.keras` file."""
    import h5py

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if "model.weights.h5" not in archive.namelist():
            with np.load(io.BytesIO(content)) as arrays:
                return dict(arrays)
        found: dict[str, np.ndarray] = {}
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
            weights.visititems(lambda name, entry: found.update({name: entry[()]} if hasattr(entry, "shape") else {}))
        return found


def _compare_arrays(actual: bytes, expected: bytes) -> str:
    """Compare all arrays but the hash of the network file, which has times."""
    return _close(*({**_arrays(content), "belongs_to": np.array(0)} for content in (actual, expected)))


def _compare_numbers(actual: bytes, expected: bytes) -> str:
    tables = [pd.read_csv(io.BytesIO(content)) for content in (actual, expected)]
    first, second = ({str(name): table[name].to_numpy() for name in table} for table in tables)
    return _close(first, second)


def _compare_entries(actual: bytes, expected: bytes) -> str:
    """Compare a JSON object, which has times and hashes of networks, by its keys."""
    return "" if json.loads(actual).keys() == json.loads(expected).keys() else "has other entries"


def _compare_labels(actual: bytes, expected: bytes) -> str:
    first, second = (pd.read_csv(io.BytesIO(content)).drop(columns="time") for content in (actual, expected))
    return "" if first.equals(second) else "has other labels"


def _compare_trials(actual: bytes, expected: bytes) -> str:
    """Compare how many trials are finished: a trial that a kill ended is repeated with other parameters."""
    tables = [pd.read_csv(io.BytesIO(content)) for content in (actual, expected)]
    finished = [int(table["state"].isin(["complete", "pruned"]).sum()) for table in tables]
    return "" if finished[0] >= finished[1] else f"has {finished[0]} finished trials, not {finished[1]}"


def _check_database(actual: bytes, expected: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        Path(file.name).write_bytes(actual)
        with closing(sqlite3.connect(file.name)) as database:
            return database.execute("PRAGMA integrity_check").fetchone()[0].removeprefix("ok")


def _check_picture(actual: bytes, expected: bytes) -> str:
    return "" if cv2.imdecode(np.frombuffer(actual, np.uint8), cv2.IMREAD_COLOR) is not None else "is no picture"


TRAINED: dict[str, Compare] = {
    "*.keras": _compare_arrays,
    "*.npz": _compare_arrays,
    "history.csv": _compare_numbers,
    "curves.png": _check_picture,
    "models/*/*.json": _compare_entries,
    "run.json": _compare_entries,
}
TUNED: dict[str, Compare] = {
    "trials.csv": _compare_trials,
    "tuning.db": _check_database,
    "tuned.json": _compare_entries,
    "tuned.hashes.npz": _compare_arrays,
    "tuning/*.png": _check_picture,
}

# ---- the webcam


def _write_video(work: Path) -> None:
    (work / "out").mkdir()
    write_portrait_video(work / "clip.avi", 150)


def _frames(content: bytes) -> list[np.ndarray]:
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        Path(file.name).write_bytes(content)
        video = cv2.VideoCapture(file.name)
        return [frame_bgr for is_read, frame_bgr in iter(video.read, (False, None)) if is_read]


def _compare_videos(actual: bytes, expected: bytes) -> str:
    """Compare the frames, which show how many were recognized per second."""
    first, second = _frames(actual), _frames(expected)
    if len(first) != len(second):
        return f"has {len(first)} frames, not {len(second)}"
    change = max(float(cv2.absdiff(*pair).mean()) for pair in zip(first, second, strict=True))
    return f"differs by {change:.1f} gray levels" if change > 1 else ""


def _check_recording(files: Files, expected: Files) -> list[str]:
    """Check that the log is cut at the end of a row, and that the video plays and lacks at most a second."""
    log, rows = files.get("out/log.csv", b""), expected["out/log.csv"]
    problems = [] if rows.startswith(log) and log[-1:] in (b"", b"\n") else ["log.csv is no part of the whole log"]
    frames, lines = len(_frames(files.get("out/video.mp4", b""))), log.splitlines()
    logged = int(lines[-1].split(b",")[1]) + 1 if len(lines) > 1 else 0
    return problems + ([f"video.mp4 has {frames} of {logged} frames"] if frames < logged - 31 else [])


# ---- the labelling page


def _label(process: subprocess.Popen, output: Path, seen: dict[str, Any]) -> None:
    """Choose an emotion for each sequence without one, as a user does, and end the program with Ctrl-C."""
    while process.poll() is None and not (found := re.search(r"open (http\S+)", output.read_text(errors="replace"))):
        time.sleep(0.02)
    try:
        state = json.loads(urlopen(found[1] + "state", timeout=30).read()) if process.poll() is None and found else None
        if state is None:
            return
        choices = {sequence["name"]: sequence["choice"] for sequence in state["sequences"]}
        confirmed = seen.setdefault("confirmed", {})
        if lost := [name for name in confirmed if choices[name] != confirmed[name]]:
            seen.setdefault("problems", []).append(f"the confirmed choice of {lost[0]} is lost")
        for number, name in enumerate(choices):
            if not choices[name]:
                emotion = ("anger", "fear", "unsure")[number % 3]
                body = json.dumps({"sequence": name, "emotion": emotion, "seen": ""}).encode()
                with urlopen(Request(found[1] + "choose", body, {"Content-Type": "application/json"}), timeout=30):
                    confirmed[name] = emotion
        process.send_signal(signal.SIGINT)
    except (URLError, OSError, ValueError):
        pass  # the program was killed


# ---- the steps


def _write_settings(work: Path) -> None:
    settings = {"filters": [4], "convolutions": 1, "batch_size": 8, "precision": "float32"}
    (work / "settings.json").write_text(json.dumps({"config": settings}))


DATA, MODELS = "--data {work}/data", "--models {work}/models"
INVENTORY = f"-m preprocessing.step1_inventory {DATA}"
CROPS = f"-m preprocessing.step2_face_crops {DATA}"
SPLIT = f"-m preprocessing.step3_split {DATA}"
CROPPED = (INVENTORY, f"{CROPS} --no-detect", SPLIT)
STEPS = {
    "step1_inventory": Step(INVENTORY, compare={"inventory.json": _compare_entries}),  # has times of the sample's files
    "step2_face_crops": Step(CROPS, (INVENTORY,)),
    "step3_split": Step(SPLIT, CROPPED[:2]),
    "label_peaks": Step(
        f"-m preprocessing.label_peaks --annotator ann {DATA}",
        (INVENTORY,),
        {"labels/*.csv": _compare_labels},
        user=_label,
    ),
    "webcam": Step(
        "-m realtime.webcam --source {work}/clip.avi --no-window --overwrite --log {work}/out/log.csv "
        "--segments {work}/out/segments.csv --summary {work}/out/summary.html --record {work}/out/video.mp4",
        (_write_video,),
        {"out/video.mp4": _compare_videos},
        grows=("out/*.csv",),
        check_killed=_check_recording,
    ),
    "batch": Step(
        "-m realtime.batch {work}/data/sample/images {work}/clip.avi --output {work}/results",
        (INVENTORY, _write_video),
        grows=("results/*.jsonl", "results/*.csv"),
    ),
    "step1_baseline": Step(f"-m training.step1_baseline {DATA} {MODELS} --epochs 3", CROPPED, TRAINED),
    "step2_tuning": Step(f"-m training.step2_tuning {DATA} {MODELS} --trials 2 --epochs 1", CROPPED, TUNED),
    "step3_best_model": Step(
        f"-m training.step3_best_model {DATA} {MODELS} --settings {{work}}/settings.json --epochs 4",
        (*CROPPED, _write_settings),
        TRAINED,
    ),
    "step4_sequence_model": Step(
        f"-m training.step4_sequence_model {DATA} {MODELS} --epochs 4",
        (f"{INVENTORY} --frames all", f"{CROPS} --no-detect", SPLIT),
        TRAINED,
    ),
}
