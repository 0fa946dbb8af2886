import cv2
import numpy as np
import pandas as pd
import pytest

from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import read_table, write_table


@pytest.fixture
def dataset(make_dataset):
    """A data set whose dev images have no label, one of them without a face either."""
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table.loc[table["split"] == "dev", "emotion"] = ""
    table.loc[table.index[table["split"] == "dev"][0], "face_status"] = "not_found"
    write_table(table.drop(columns="split"), folder / "faces.csv")
    return folder


def run(run_step, dataset, tmp_path, model):
    places = ("--data", dataset.parent, "--reports", tmp_path / "reports", "--model", model)
    return run_step("evaluation.suggestions", "--dataset", dataset.name, *places)


def test_unlabelled_faces_are_predicted(dataset, tiny_model, run_step, tmp_path):
    done = run(run_step, dataset, tmp_path, tiny_model())
    assert done.returncode == 0, done.stderr
    assert "11 images without a label" in done.stdout
    guesses = pd.read_csv(tmp_path / "reports" / dataset.name / "tiny" / "guesses.csv")
    table = read_table(dataset, "faces.csv")
    expected_rows = table[(table["emotion"] == "") & (table["face_status"] != "not_found")]
    assert guesses["path"].tolist() == expected_rows["path"].tolist()
    classifier = EmotionClassifier.load(tiny_model())
    for row in guesses.to_dict("records"):
        image = cv2.imread(str(dataset / row["path"]), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        expected = classifier.predict(image[None, :, :, None])[0]
        assert [row[f"p_{label}"] for label in classifier.labels] == pytest.approx(expected.tolist(), abs=2e-6)
        assert row["prediction"] == classifier.labels[int(np.argmax(expected))]


def test_missing_model_and_labelled_data_are_refused(dataset, make_dataset, tiny_model, run_step, tmp_path):
    done = run(run_step, dataset, tmp_path, tmp_path / "none.keras")
    assert done.returncode == 2 and "none.keras" in done.stderr
    labelled = make_dataset(name="labelled")
    write_table(read_table(labelled, "split.csv").drop(columns="split"), labelled / "faces.csv")
    done = run(run_step, labelled, tmp_path, tiny_model())
    assert done.returncode == 2 and "without a label" in done.stderr
