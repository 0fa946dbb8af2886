import json

import cv2
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from configuration import NO_AUGMENTATION, TrainingConfig
from evaluation import ablation as ladder
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import read_table, write_table
from training.data import read_image

SMALL = TrainingConfig(filters=(4,), convolutions=1, batch_size=16, precision="float32", augmentation=NO_AUGMENTATION)


@pytest.fixture
def climb(run_step, make_dataset, tiny_model, tmp_path, monkeypatch):
    """Run the ladder on a small data set whose pictures are larger than its crops."""
    monkeypatch.setattr(ladder, "BEST", SMALL)
    monkeypatch.setattr(ladder, "FINE_TUNING", SMALL)

    def run(*options, pictures=True, **start):
        folder = tmp_path / "data" / "stripes"
        if not folder.is_dir():
            folder = make_dataset()
            table = read_table(folder, "split.csv")
            if pictures:
                for path in table["path"]:
                    picture = np.pad(read_image(folder / path, (24, 24), "grayscale")[..., 0], ((9, 9), (20, 20)))
                    (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(folder / "images" / path), picture)
                table = table.assign(path="images/" + table["path"], face_status="found")
            write_table(table, folder / "split.csv")
        file = tmp_path / "models" / "tiny.keras"
        if start or not file.is_file():
            file = tiny_model(**({"dataset": "elsewhere"} | start))
        roots = ["--data", tmp_path / "data", "--models", tmp_path / "models", "--reports", tmp_path / "reports"]
        done = run_step("evaluation.ablation", "--dataset", "stripes", *roots, "--pretrained", file, *options)
        part = "folds" if "--folds" in options else "test"
        return done, folder, file, tmp_path / "reports" / "stripes" / "ladder" / part

    return run


def test_every_rung_answers_for_the_same_images_and_steps_are_their_differences(climb):
    done, folder, start, reports = climb("--epochs", "1")
    assert done.returncode == 0, done.stderr
    rungs = pd.read_csv(reports / "ladder.csv").set_index("rung")
    assert rungs.index.tolist() == ["baseline", "tuned-whole", "tuned", "fine-tuned", "zero-shot"]
    assert set(rungs["n"]) == {12} and set(rungs["dataset"]) == {"stripes"} and set(rungs["split"]) == {"test split"}
    rows = read_table(folder, "split.csv").query("split == 'test'")
    images = np.stack([read_image(folder / path, (24, 24), "grayscale") for path in rows["face_path"]])
    for rung, file in {"zero-shot": start, "tuned": start.parent / "stripes" / "ladder" / "tuned.keras"}.items():
        classifier = EmotionClassifier.load(file)
        right = np.array(classifier.labels)[classifier.predict(images).argmax(axis=1)] == rows["emotion"]
        assert rungs.loc[rung, "accuracy"] == pytest.approx(right.mean())
    told = json.loads((reports / "ladder.json").read_text())
    for step in told["steps"]:
        expected = rungs.loc[step["to"], "accuracy"] - rungs.loc[step["from"], "accuracy"]
        assert step["accuracy"]["value"] == pytest.approx(expected)
    assert (told["steps"][-1]["from"], told["steps"][-1]["to"]) == ("zero-shot", "fine-tuned")
    assert "extra data: initialised from tiny.keras (trained on elsewhere" in rungs["protocol"]["fine-tuned"]
    assert "nothing of stripes" in rungs["protocol"]["zero-shot"]
    assert matplotlib.image.imread(reports / "ladder.png").shape[0] > 300

    whole = read_table(folder / "whole" / "stripes", "split.csv")
    assert whole["path"].tolist() == read_table(folder, "split.csv")["path"].tolist()
    shown = read_image(folder / "whole" / "stripes" / whole["face_path"].iloc[0], (24, 24), "grayscale")
    assert shown.mean() < images[0].mean()  # with its border: not the crop

    again, *_ = climb("--epochs", "1")
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 4 and "Epoch" not in again.stdout


def test_face_crops_have_no_rung_on_whole_images(climb):
    done, folder, _, reports = climb("--epochs", "1", pictures=False)
    assert done.returncode == 0, done.stderr
    assert "no rung on whole images" in done.stdout and not (folder / "whole").exists()
    assert "tuned-whole" not in pd.read_csv(reports / "ladder.csv")["rung"].tolist()


def test_with_folds_every_image_is_answered_by_the_network_of_its_fold(climb, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    write_table(table.assign(fold=[str(row % 3) for row in range(len(table))]), folder / "split.csv")
    done, _, start, reports = climb("--epochs", "1", "--folds")
    assert done.returncode == 0, done.stderr
    rungs = pd.read_csv(reports / "ladder.csv").set_index("rung")
    assert set(rungs["n"]) == {len(table)} and set(rungs["split"]) == {"3 folds"}
    assert sorted((start.parent / "stripes" / "ladder" / "fine-tuned-folds").glob("[0-2].keras"))
    assert rungs["protocol"]["tuned"].startswith("one network per fold")


def test_mistakes_are_told_before_anything_is_trained(climb, tmp_path):
    done, *_ = climb(size=48, name="large.keras")
    assert done.returncode == 2 and "takes 48x48 pixels gray" in done.stderr
    done, *_ = climb("--folds")
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
    metrics = json.loads((report / "metrics.json").read_text())
    found = metrics["cross_dataset"]
    assert found["difference"]["accuracy"]["value"] == pytest.approx(
        metrics["accuracy"] - found["cross-dataset"]["accuracy"]
    )
    assert "extra data: initialised from tiny.keras" in metrics["protocol"]
    start.write_bytes(start.read_bytes() + b" ")
    gone = run_step(*command)
    assert (
        gone.returncode == 0
        and "cross-dataset accuracy was not measured" in gone.stdout
        and "restore it" in gone.stdout
    )
