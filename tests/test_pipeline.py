"""Every step in a row, by its command line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from common.emotions import FER2013_CODES
from preprocessing.datasets.sample import SAMPLE, write_raw
from preprocessing.tables import read_table, usable


@pytest.fixture
def run_all(run_step, tmp_path):
    """Run step 1 on a source, then every later step; return the folder that holds data, models and reports."""

    def run(dataset: str, source: Path, *options: object) -> Path:
        data, models = ("--data", tmp_path / "data"), ("--models", tmp_path / "models")
        model = tmp_path / "models" / dataset / "baseline_project1.keras"
        for module, *arguments in (
            ("preprocessing.step1_inventory", *data, "--source", source, *options),
            ("preprocessing.step2_face_crops", *data),
            ("preprocessing.step3_split", *data),
            ("training.step1_baseline", *data, *models, "--epochs", 1),
            ("evaluation.model_evaluation", *data, "--reports", tmp_path / "reports", "--model", model),
        ):
            done = run_step(module, "--dataset", dataset, *arguments)
            assert done.returncode == 0, (module, done.stderr)
        return tmp_path

    return run


def test_ckplus_tree_passes_every_step_with_each_subject_in_one_split(run_all, run_step, tmp_path):
    write_raw(tmp_path / "raw", replace(SAMPLE, subjects=4, unlabelled=3, frames=3))
    root = run_all("people", tmp_path / "raw", "--neutral-first")
    table = read_table(root / "data" / "people", "split.csv")
    assert (table["subject"] != "").all() and (table["sequence"].nunique() == 4 * 7 + 3)
    subjects_of = {split: set(rows["subject"]) for split, rows in usable(table).groupby("split")}
    assert set(subjects_of) == {"train", "dev", "test"}
    assert not subjects_of["train"] & subjects_of["dev"]
    assert not (subjects_of["train"] | subjects_of["dev"]) & subjects_of["test"]
    assert (table["split"][table["emotion"] == ""] == "").all() and (table["emotion"] == "").sum() == 3
    metrics = json.loads(
        (root / "reports" / "people" / "baseline_project1" / "test-labels" / "metrics.json").read_text()
    )
    assert metrics["split"] == "test" and metrics["n"] == (usable(table)["split"] == "test").sum()

    frames = sorted((tmp_path / "raw" / "cohn-kanade-images").glob("S001/001/*.png"))[0].parent
    model, log = root / "models" / "people" / "baseline_project1.keras", tmp_path / "log.csv"
    recorded = tmp_path / "out.mp4"
    done = run_step(
        "realtime.webcam", "--source", frames, "--model", model, "--no-window", "--record", recorded, "--log", log
    )
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(log)
    assert len(rows) == 3 and rows["frame"].tolist() == [0, 1, 2] and set(rows["label"]) <= set(metrics["labels"])
    video = cv2.VideoCapture(str(recorded))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_fer2013_table_passes_every_step(run_all, tmp_path):
    random = np.random.default_rng(0)
    source = tmp_path / "fer2013.csv"
    with source.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", "pixels", "Usage"])
        for number in range(70):
            usage = "Training" if number < 42 else "PublicTest" if number < 56 else "PrivateTest"
            rows.writerow([number % 7, " ".join(map(str, random.integers(0, 256, 48 * 48))), usage])
    root = run_all("fer2013", source)
    predictions = pd.read_csv(root / "reports" / "fer2013" / "baseline_project1" / "test-labels" / "predictions.csv")
    assert len(predictions) == 14 and predictions["path"].str.startswith("images/PrivateTest/").all()
    assert set(predictions["truth"]) == set(FER2013_CODES)
    card = json.loads((root / "models" / "fer2013" / "baseline_project1.json").read_text())
    assert card["training_images"] == 42 and card["dev_images"] == 14
    assert any("FER2013" in line for line in card["caveats"])
