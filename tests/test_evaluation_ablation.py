import json
from pathlib import Path

import cv2
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from report_helpers import change_split, images_of, metrics_of

from configuration import NO_AUGMENTATION, TrainingConfig
from evaluation import ablation
from evaluation.metrics.paired import holm
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import read_table
from training.data import read_image

SMALL = TrainingConfig(filters=(4,), convolutions=1, batch_size=16, precision="float32", augmentation=NO_AUGMENTATION)


def with_borders(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Save every crop with a border, as the full image from which it was taken."""
    for path in table["path"]:
        picture = np.pad(read_image(folder / path, (24, 24), "grayscale")[..., 0], ((9, 9), (20, 20)))
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / path), picture)
    return table.assign(path="images/" + table["path"], face_status="found")


@pytest.fixture
def ablate(run_step, make_dataset, tiny_model, tmp_path, monkeypatch):
    """Run the ablation on a small data set whose images are larger than its crops."""
    monkeypatch.setattr(ablation, "BEST", SMALL)
    monkeypatch.setattr(ablation, "FINE_TUNING", SMALL)

    def run(*options, **start):
        folder = tmp_path / "data" / "stripes"
        if not folder.is_dir():
            change_split(make_dataset(), lambda table: with_borders(table, folder))
        file = tmp_path / "models" / "tiny.keras"
        if start or not file.is_file():
            file = tiny_model(**({"dataset": "elsewhere"} | start))
        roots = ["--data", tmp_path / "data", "--models", tmp_path / "models", "--reports", tmp_path / "reports"]
        done = run_step("evaluation.ablation", "--dataset", "stripes", *roots, "--pretrained", file, *options)
        part = "folds" if "--folds" in options else "test"
        return done, folder, file, tmp_path / "reports" / "stripes" / "ablation" / part

    return run


@pytest.mark.figures
def test_variants_are_compared_on_the_same_images(ablate):
    done, folder, start, reports = ablate("--epochs", "1")
    assert done.returncode == 0, done.stderr
    variants = pd.read_csv(reports / "ablation.csv").set_index("variant")
    assert variants.index.tolist() == ["baseline", "tuned-full-images", "tuned-crops", "fine-tuned", "pretrained"]
    assert variants[["n", "dataset", "split"]].drop_duplicates().to_numpy().tolist() == [[12, "stripes", "test split"]]
    rows = read_table(folder, "split.csv").query("split == 'test'")
    images = images_of(folder, rows["face_path"])
    for variant, file in {
        "pretrained": start,
        "tuned-crops": start.parent / "stripes" / "ablation" / "tuned-crops.keras",
    }.items():
        classifier = EmotionClassifier.load(file)
        right = np.array(classifier.labels)[classifier.predict(images).argmax(axis=1)] == rows["emotion"]
        assert variants.loc[variant, "accuracy"] == pytest.approx(right.mean())
    found = json.loads((reports / "ablation.json").read_text())
    for step in found["differences"]:
        expected = variants.loc[step["to"], "accuracy"] - variants.loc[step["from"], "accuracy"]
        assert step["accuracy"]["value"] == pytest.approx(expected)
    p_values = [step["mcnemar_p_value"] for step in found["differences"]]
    assert [step["adjusted_p_value"] for step in found["differences"]] == pytest.approx(holm(p_values))
    assert (found["differences"][-1]["from"], found["differences"][-1]["to"]) == ("pretrained", "fine-tuned")
    assert "extra data: initialised from tiny.keras (trained on elsewhere" in variants["protocol"]["fine-tuned"]
    assert "trained on elsewhere only" in variants["protocol"]["pretrained"]
    assert matplotlib.image.imread(reports / "ablation.png").shape[0] > 300

    whole = read_table(folder / "whole" / "stripes", "split.csv")
    assert whole["path"].tolist() == read_table(folder, "split.csv")["path"].tolist()
    shown = read_image(folder / "whole" / "stripes" / whole["face_path"].iloc[0], (24, 24), "grayscale")
    assert shown.mean() < images[0].mean()  # with its border: not the crop

    again, *_ = ablate("--epochs", "1")
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 4 and "Epoch" not in again.stdout


@pytest.mark.system
def test_each_fold_is_predicted_by_its_own_network_and_crops_have_no_variant_on_full_images(ablate, make_dataset):
    folder = make_dataset()
    change_split(folder, lambda table: table.assign(fold=[str(row % 3) for row in range(len(table))]))
    done, _, start, reports = ablate("--epochs", "1", "--folds")
    assert done.returncode == 0, done.stderr
    assert "no variant on full images" in done.stdout and not (folder / "whole").exists()
    variants = pd.read_csv(reports / "ablation.csv").set_index("variant")
    assert "tuned-full-images" not in variants.index
    assert set(variants["n"]) == {60} and set(variants["split"]) == {"3 folds"}
    assert len([*(start.parent / "stripes" / "ablation" / "fine-tuned-folds").glob("[0-2].keras")]) == 3
    assert variants["protocol"]["tuned-crops"].startswith("one network per fold")


def test_input_is_checked_before_training(ablate, tmp_path):
    done, *_ = ablate(size=48, name="large.keras")
    assert done.returncode == 2 and "takes 48x48 pixels gray" in done.stderr
    done, *_ = ablate("--folds")
    assert done.returncode == 2 and "no folds" in done.stderr
    assert not (tmp_path / "models" / "stripes").exists()


def test_a_fine_tuned_network_is_reported_beside_its_start(make_dataset, tiny_model, run_step, tmp_path):
    folder, start = make_dataset(), tiny_model(dataset="elsewhere")
    roots = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    train = ["--pretrained", start, "--epochs", "2", "--precision", "float32"]
    assert run_step("training.step3_best_model", *roots, *train).returncode == 0
    report = tmp_path / "reports" / folder.name / "best" / "test-labels-quick"
    command = ["evaluation.model_evaluation", *roots, "--reports", tmp_path / "reports", "--quick"]
    done = run_step(*command)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(report)
    found = metrics["cross_dataset"]
    change = metrics["accuracy"] - found["cross-dataset"]["accuracy"]
    assert found["difference"]["accuracy"]["value"] == pytest.approx(change)
    assert "extra data: initialised from tiny.keras" in metrics["protocol"]
    start.write_bytes(start.read_bytes() + b" ")
    gone = run_step(*command)
    assert gone.returncode == 0
    assert "cross-dataset accuracy was not measured" in gone.stdout and "restore it" in gone.stdout
