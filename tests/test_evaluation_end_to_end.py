import json
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
import pytest
from cards import model_card

from common.errors import InputError
from common.images import pixel_hash
from configuration import EVALUATION, FACES
from evaluation.sections import end_to_end
from evaluation.sections.end_to_end import MISSED, end_to_end_section, labelled_images
from inference.crops import network_input, read_image_rgb
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import build_detector
from inference.faces import Face, choose_face
from inference.lineage import UNKNOWN, ImageHashes
from preprocessing.datasets.sample import PORTRAIT
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, read_table, write_table


class Always:
    """A classifier that predicts the same for every face, and keeps the crops."""

    faces = FACES

    def __init__(self, label: str, labels: tuple[str, ...] = ("anger", "happiness", "neutral"), **card):
        self.labels = labels
        self.card = model_card(**{"labels": list(labels), "dataset": "elsewhere", "split_hash": "0"} | card)
        self.predicted = labels.index(label)
        self.shown: list[np.ndarray] = []

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.shown += list(images)
        return np.eye(len(self.labels), dtype=np.float32)[[self.predicted] * len(images)]


@pytest.fixture(scope="module")
def detector():
    return build_detector("mtcnn")


@pytest.fixture(scope="module")
def portrait_bgr() -> np.ndarray:
    return cv2.cvtColor(read_image_rgb(PORTRAIT), cv2.COLOR_RGB2BGR)


@pytest.fixture
def pictures(tmp_path, portrait_bgr) -> Path:
    """Two happy faces found, one missed; an angry one found; and a file that is no picture."""
    wide_bgr = cv2.copyMakeBorder(portrait_bgr, 40, 40, 200, 100, cv2.BORDER_CONSTANT, value=(90, 120, 60))
    empty, mirrored = np.full((200, 300, 3), 120, np.uint8), portrait_bgr[:, ::-1]
    files = {"happy/1.png": portrait_bgr, "happy/2.jpg": wide_bgr, "happy/3.png": empty, "angry/1.png": mirrored}
    folder = write_images(tmp_path / "pictures", files)
    (folder / "angry" / "broken.png").write_bytes(b"no picture")
    return folder


def write_images(folder: Path, files: dict[str, Any]) -> Path:
    for name, image_bgr in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image_bgr)
    return folder


def run(classifier: Any, detector, source: Path, report: Path):
    return end_to_end_section(cast(EmotionClassifier, classifier), detector, source, report)


def test_missed_face_counts_as_incorrect_and_crops_are_those_of_step_2(pictures, detector, tmp_path):
    classifier = Always("happiness")
    section = run(classifier, detector, pictures, tmp_path / "report")
    values = section.values
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["images"] == 4 and values["unreadable"] == 1
    found = [values[name]["value"] for name in ("accuracy", "missed", "accuracy_where_found")]
    assert found == [2 / 4, 1 / 4, 2 / 3]
    table = pd.read_csv(tmp_path / "report" / "end_to_end_images.csv", keep_default_na=False).set_index("path")
    outcomes = {"happy/1.png": "correct", "happy/2.jpg": "correct", "happy/3.png": MISSED, "angry/1.png": "incorrect"}
    assert table["outcome"].to_dict() == outcomes | {"angry/broken.png": "unreadable"}
    assert table.loc["happy/3.png", "prediction"] == "" == table.loc["happy/3.png", "p_anger"]
    assert "50.0" in section.sentences[0] and "25.0" in section.sentences[0] and "66.7" in section.sentences[0]
    assert "angry/broken.png" in " ".join(section.sentences)
    happy = next(row for row in values["per_emotion"] if row["emotion"] == "happiness")
    assert happy["images"] == 3 and happy["correct"] == 2 / 3 and happy["missed"] == 1 / 3
    assert [figure.shows_faces for figure in section.figures] == [False, True]
    counts = pd.read_csv(section.figures[0].file.with_suffix(".csv"), index_col=0)
    assert counts.loc["happiness"].to_dict() == {"correct": 2, "incorrect": 0, MISSED: 1}

    expected = []  # the crops of step 2 and the webcam
    for name in ("angry/1.png", "happy/1.png", "happy/2.jpg"):
        image_rgb = read_image_rgb(pictures / name)
        expected.append(network_input(image_rgb, choose_face(detector.detect(image_rgb), image_rgb.shape), FACES))
    np.testing.assert_array_equal(np.stack(classifier.shown), np.stack(expected))


def test_face_crop_is_enlarged_for_the_detector(tmp_path, detector, portrait_bgr):
    small_bgr = cv2.resize(portrait_bgr[60:320, 130:390], (40, 40), interpolation=cv2.INTER_AREA)
    folder = write_images(tmp_path / "pictures", {"happy/1.png": small_bgr, "angry/1.png": small_bgr})
    searched = []

    class Spy:
        def detect(self, image_rgb: np.ndarray) -> list[Face]:
            searched.append(image_rgb.shape)
            return detector.detect(image_rgb)

    section = run(Always("happiness"), Spy(), folder, tmp_path / "report")
    assert searched == [(160, 160, 3)] * 2
    assert section.values["missed"]["value"] == 0 and section.values["accuracy"]["value"] == 0.5


def test_label_sets_are_related_by_a_rule_and_few_failures_are_shown(pictures, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "MAX_FAILURES", 2)
    (pictures / "contempt").mkdir()
    (pictures / "contempt" / "1.png").write_bytes((pictures / "happy" / "1.png").read_bytes())
    section = run(Always("neutral"), detector, pictures, tmp_path)
    assert "the data has no neutral" in section.sentences[1]
    assert "model has no contempt: those images are excluded (1 images)" in section.sentences[1]
    assert section.values["left_out"] == 1 and section.values["images"] == 4
    assert section.figures[1].caption.startswith("2 of 3 failures")
    with pytest.raises(InputError, match="do not fit"):
        run(Always("neutral", ("neutral", "sadness")), detector, pictures, tmp_path)


def test_inventory_gives_its_usable_images(pictures):
    rows = [{**dict.fromkeys(INVENTORY_COLUMNS, ""), "path": f"happy/{n}", "status": "ok"} for n in ("1.png", "2.jpg")]
    rows[0] |= {"emotion": "sadness", "subject": "S1"}
    write_table(pd.DataFrame(rows), pictures / "inventory.csv")
    found, folder = labelled_images(pictures)
    assert found[["path", "emotion", "subject"]].to_numpy().tolist() == [["happy/1.png", "sadness", "S1"]]
    assert folder == pictures


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "is no folder"),
        ([], "holds no labelled image"),
        (["holiday/1.png"], "is no emotion"),
        (["happy/1.png", "angry/1.png"], "none of its 2 images can be read"),
    ],
)
def test_folders_without_readable_labelled_images_are_refused(tmp_path, files, words):
    if files is not None:
        (tmp_path / "mine").mkdir()
    for name in files or []:
        (tmp_path / "mine" / name).parent.mkdir()
        (tmp_path / "mine" / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=words):
        run(Always("happiness"), Nothing(), tmp_path / "mine", tmp_path / "report")


class Nothing:
    """A detector that finds no face."""

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        return []


@pytest.fixture
def data_set(tmp_path) -> Path:
    """A data set of gray pictures, four in training and two in dev, and colour ones, two in test."""
    folder, random, images, rows = tmp_path / "data" / "small", np.random.default_rng(2), {}, []
    for number, split in enumerate(["train"] * 4 + ["dev"] * 2 + ["test"] * 2):
        emotion = ("anger", "happiness")[number % 2]
        path, size = f"{emotion}/{split}{number}.png", (60, 120, 3) if split == "test" else (48, 48)
        images[path] = random.integers(0, 255, size).astype(np.uint8)
        row = dict.fromkeys([*INVENTORY_COLUMNS, *FACE_COLUMNS], "") | {"path": path, "emotion": emotion}
        row |= {"split": split, "status": "ok", "face_status": "whole_image"}
        rows.append(row | {"pixel_hash": pixel_hash(images[path])})
    write_images(folder, images)
    for name in ("split.csv", "inventory.csv"):
        write_table(pd.DataFrame(rows), folder / name)
    return folder


def scored_on(source: Path, hashes: ImageHashes):
    classifier = cast(EmotionClassifier, Always("anger"))
    return end_to_end_section(classifier, Nothing(), source, source.parent / "report", EVALUATION, hashes)


@pytest.mark.parametrize("source", ["the data set", "its pictures", "renamed", "copies in colour"])
def test_training_and_selection_images_are_counted_and_named(data_set, tmp_path, source):
    table = read_table(data_set, "split.csv")
    trained, selected = (table.loc[table["split"] == split, "pixel_hash"] for split in ("train", "dev"))
    hashes = ImageHashes.of(trained, selected)
    folder = data_set
    if source == "its pictures":
        (data_set / "inventory.csv").rename(tmp_path / "inventory.csv")
    elif source == "renamed":
        folder = data_set.rename(data_set.with_name("another"))
    elif source == "copies in colour":
        files = {f"{file.parent.name}/copy_{file.name}": file for file in data_set.rglob("*.png")}
        folder = write_images(tmp_path / "mine", {name: cv2.imread(str(file)) for name, file in files.items()})
    section = scored_on(folder, hashes)
    values = section.values
    assert (values["training_images"], values["selection_images"], values["images"]) == (4, 2, 8)
    assert values["held_out"] is False and values["without_known"]["images"] == 2
    assert "NOT A HELD-OUT SCORE: 4 of the 8 full images are training images" in section.warnings[0]
    assert "2 of the 8 full images were used to select" in section.warnings[1]
    assert "NOT A HELD-OUT SCORE" in section.figures[0].caption
    known = pd.read_csv(tmp_path / ("data" if source != "copies in colour" else "") / "report/end_to_end_images.csv")
    names = known["path"].str.extract("(train|dev|test)")[0]
    expected = names.map({"train": "training", "dev": "selection", "test": ""})
    assert known["known"].fillna("").tolist() == expected.tolist()


def test_new_images_are_held_out_only_with_a_list_of_training_images(data_set):
    assert scored_on(data_set, ImageHashes.of()).values["held_out"] is True
    section = scored_on(data_set, UNKNOWN)
    assert section.values["held_out"] is None and not section.warnings
    assert "has no complete list of them" in " ".join(section.sentences)


def test_full_images_are_classified_in_float32(make_dataset, tiny_model, run_step, tmp_path, portrait_bgr, detector):
    images = {"happy": portrait_bgr, "angry": portrait_bgr[:, ::-1], "neutral": portrait_bgr // 2}
    write_images(tmp_path / "pictures", {f"{name}/1.png": image for name, image in images.items()})
    folder, model = make_dataset(), tiny_model()
    roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--dataset", folder.name, "--quick"]
    done = run_step("evaluation.model_evaluation", *roots, "--model", model, "--pictures", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "reports").rglob("end_to_end_images.csv")
    assert report.parent.name == f"test-labels-pictures-{tmp_path.name}-pictures-quick"
    found, classifier = pd.read_csv(report).set_index("path"), EmotionClassifier.load(model)
    for path, row in found.iterrows():
        image_rgb = read_image_rgb(tmp_path / "pictures" / str(path))
        crop = network_input(image_rgb, choose_face(detector.detect(image_rgb), image_rgb.shape), classifier.faces)
        expected = classifier.predict(crop[None])[0]
        assert row[[f"p_{label}" for label in classifier.labels]].tolist() == pytest.approx(expected, abs=2e-6)
