"""Every step in a row, by its command line."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pandas as pd
import pytest
from raw_data import pixels, random_gray, write_csv

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
    metrics = json.loads((root / "reports/people/baseline_project1/test-labels/metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["n"] == (usable(table)["split"] == "test").sum()

    frames = sorted((tmp_path / "raw" / "cohn-kanade-images").glob("S001/001/*.png"))[0].parent
    model, log = root / "models" / "people" / "baseline_project1.keras", tmp_path / "log.csv"
    outputs = ("--no-window", "--record", tmp_path / "out.mp4", "--log", log)
    done = run_step("realtime.webcam", "--source", frames, "--model", model, *outputs)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(log)
    assert rows["frame"].tolist() == [0, 1, 2] and set(rows["label"]) <= set(metrics["labels"])
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_fer2013_table_passes_every_step(run_all, tmp_path):
    usages = ["Training"] * 42 + ["PublicTest"] * 14 + ["PrivateTest"] * 14
    rows = [(number % 7, pixels(random_gray(number)), usage) for number, usage in enumerate(usages)]
    root = run_all("fer2013", write_csv(tmp_path / "fer2013.csv", rows))
    predictions = pd.read_csv(root / "reports" / "fer2013" / "baseline_project1" / "test-labels" / "predictions.csv")
    assert len(predictions) == 14 and predictions["path"].str.startswith("images/PrivateTest/").all()
    assert set(predictions["truth"]) == set(FER2013_CODES)
    card = json.loads((root / "models" / "fer2013" / "baseline_project1.json").read_text())
    assert card["training_images"] == 42 and card["dev_images"] == 14
    assert any("FER2013" in line for line in card["caveats"])
