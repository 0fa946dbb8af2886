import json

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from preprocessing.image_tables import read_table, write_table
from training.datasets import read_image
from training.emotion_classifier import EmotionClassifier


@pytest.fixture
def evaluate(run_step, make_dataset, tiny_model, tmp_path):
    """Evaluate an untrained network on a small data set, by the command line."""

    def run(*options, folder=None, model=None):
        folder = folder or make_dataset()
        model = model or tiny_model()
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports"]
        command = ["evaluation.model_evaluation", "--dataset", folder.name, "--model", model, *roots, *options]
        return run_step(*command), folder, model, tmp_path / "reports" / folder.name / model.stem

    return run


def test_reports_the_held_out_split(evaluate):
    done, folder, model, report = evaluate("--update-card")
    assert done.returncode == 0, done.stderr
    assert str(report) in done.stdout
    rows = read_table(folder, "split.csv").query("split == 'test'")
    predictions = pd.read_csv(report / "predictions.csv")
    assert predictions["path"].tolist() == rows["path"].tolist()
    assert predictions["truth"].tolist() == rows["emotion"].tolist()

    classifier = EmotionClassifier.load(model)
    images = np.stack([read_image(folder / path, (24, 24), "grayscale") for path in rows["face_path"]])
    probabilities = classifier.predict(images)
    columns = [f"p_{label}" for label in classifier.labels]
    np.testing.assert_allclose(predictions[columns].to_numpy(), probabilities, atol=2e-6)
    assert predictions["prediction"].tolist() == [classifier.labels[i] for i in probabilities.argmax(axis=1)]

    metrics = json.loads((report / "metrics.json").read_text())
    accuracy = float((predictions["truth"] == predictions["prediction"]).mean())
    assert metrics["accuracy"] == pytest.approx(accuracy) and metrics["split"] == "test" and metrics["n"] == 12
    matrix = pd.read_csv(report / "confusion_matrix.csv", index_col="truth")
    assert np.trace(matrix) / matrix.to_numpy().sum() == pytest.approx(accuracy)
    assert matplotlib.image.imread(report / "confusion_matrix.png").shape[0] > 300
    assert "macro avg" in (report / "classification_report.txt").read_text()
    (score,) = json.loads(model.with_suffix(".json").read_text())["scores"]
    assert score["accuracy"] == pytest.approx(accuracy, abs=1e-4) and score["split"] == "test"


def test_a_second_run_does_nothing_and_says_so_until_something_changes(evaluate):
    _, folder, model, report = evaluate("--update-card")
    written = (report / "predictions.csv").stat().st_mtime_ns
    again = evaluate("--update-card", folder=folder, model=model)[0]
    assert "unchanged" in again.stdout and (report / "predictions.csv").stat().st_mtime_ns == written
    assert len(json.loads(model.with_suffix(".json").read_text())["scores"]) == 1
    dev = evaluate("--split", "dev", folder=folder, model=model)[0]
    assert "unchanged" not in dev.stdout and json.loads((report / "metrics.json").read_text())["split"] == "dev"


def test_without_a_test_split_dev_is_used_under_a_banner(evaluate, make_dataset):
    done, _, _, report = evaluate(folder=make_dataset(per_split=(("train", 3), ("dev", 2))))
    assert "no test split" in done.stdout
    assert json.loads((report / "metrics.json").read_text())["split"] == "dev"


def test_a_score_on_the_training_split_carries_a_warning(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    done = evaluate("--split", "train", folder=folder, model=tiny_model(dataset=folder.name))[0]
    assert "NOT A HELD-OUT SCORE" in done.stdout


def test_related_label_sets_are_mapped_and_the_rule_printed(evaluate, tiny_model, make_dataset):
    model = tiny_model(labels=("anger", "happiness", "neutral", "contempt"))
    done, _, _, report = evaluate(model=model)
    assert "the data has no contempt" in done.stdout
    assert "p_contempt" not in pd.read_csv(report / "predictions.csv").columns


def test_images_of_a_class_that_the_model_does_not_know_are_left_out_and_counted(evaluate, make_dataset):
    folder = make_dataset(emotions=("anger", "happiness", "neutral", "contempt"), name="eight")
    done, _, _, report = evaluate(folder=folder)
    metrics = json.loads((report / "metrics.json").read_text())
    assert "does not know contempt" in done.stdout and metrics["left_out"] == 4 and metrics["n"] == 12


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    return True


def test_mistakes_end_in_one_line_and_status_2(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    folder, model = make_dataset(), tiny_model()
    assert refused(evaluate("--split", "validation", folder=folder, model=model)[0], "'validation'", "train, dev, test")
    assert refused(evaluate(folder=folder, model=tmp_path / "none.keras")[0], "none.keras", "step3_best_model")
    other = tiny_model(labels=("fear", "surprise", "sadness"), name="other.keras")
    assert refused(evaluate(folder=folder, model=other)[0], "do not fit", "fear")
    missing = run_step("evaluation.model_evaluation", "--dataset", "nowhere", "--data", folder.parent)
    assert refused(missing, "split.csv", "step3_split")
    assert refused(run_step("evaluation.model_evaluation", "--spilt", "test"), "--spilt")
    table = read_table(folder, "split.csv")
    table.loc[0, "face_path"] = "../../secret.png"
    write_table(table, folder / "split.csv")
    assert refused(evaluate(folder=folder, model=model)[0], "leaves the data folder")
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("name", ["predictions.csv", "classification_report.txt", "metrics.json"])
def test_a_report_that_lost_a_file_is_made_again(evaluate, name):
    _, folder, model, report = evaluate()
    (report / name).unlink()
    again = evaluate(folder=folder, model=model)[0]
    assert again.returncode == 0 and "unchanged" not in again.stdout and (report / name).is_file()
    (report / "metrics.json").write_text("{")
    assert "unchanged" not in evaluate(folder=folder, model=model)[0].stdout


def test_other_crops_of_the_same_rows_are_evaluated_anew(evaluate):
    _, folder, model, _ = evaluate()
    crops = json.loads((folder / "faces.json").read_text())
    crops["options"]["align"] = "box"
    (folder / "faces.json").write_text(json.dumps(crops))
    again = evaluate(folder=folder, model=model)[0]
    assert "unchanged" not in again.stdout and "crops are aligned by box" in again.stdout
    (folder / "faces.json").unlink()
    assert refused(evaluate(folder=folder, model=model)[0], "faces.json", "step2_face_crops")


def test_an_emotion_that_the_split_does_not_show_is_named_beside_the_scores(evaluate, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table.loc[(table["emotion"] == "neutral") & (table["split"] == "test"), "split"] = "train"
    write_table(table, folder / "split.csv")
    done, _, _, report = evaluate(folder=folder)
    assert "no image shows neutral" in done.stdout
    metrics = json.loads((report / "metrics.json").read_text())
    recalls = [metrics["per_emotion"][label]["recall"] for label in ("anger", "happiness")]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
