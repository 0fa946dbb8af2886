import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configuration import Fitting
from evaluation.honesty import protocol
from preprocessing.image_tables import read_table, split_hash, write_table
from training.distillation import card_entries, read_teachers, teach
from training.emotion_classifier import EmotionClassifier
from training.fine_tuning import Start
from training.fitting import read_batches
from training.settings import read_settings


@pytest.fixture
def teacher(make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    return folder, table, tiny_model(name="teacher.keras", dataset=folder.name, split_hash=split_hash(table))


def protocol_of(card: dict[str, Any]) -> str:
    answers: Any = SimpleNamespace(card=card, by_crowd=False, fold_column="")
    return protocol(answers)


def test_targets_are_labels_and_the_mean_of_the_teachers_answers_to_both_mirror_images(teacher, tiny_model):
    folder, table, first = teacher
    second = tiny_model(name="second.keras", dataset="elsewhere")
    card = json.loads(second.with_suffix(".json").read_text())
    settings = Fitting(teachers=(str(first), str(second)), distillation=0.25)
    train, dev, about = read_batches(table, folder, settings)
    teachers = read_teachers(settings.teachers, train.classes, about)
    teach(train, teachers, settings.distillation, smoothing=0.1)
    plain, plain_dev, _ = read_batches(table, folder, Fitting())
    np.testing.assert_array_equal(train.images, plain.images)
    second.with_suffix(".json").write_text(json.dumps({**card, "temperature": 2.0}))
    taught_later, _, _ = read_batches(table, folder, settings)
    teach(taught_later, [Start.read(file) for file in (first, second)], settings.distillation, smoothing=0.1)
    np.testing.assert_array_equal(np.asarray(taught_later.labels), np.asarray(train.labels))
    second.with_suffix(".json").write_text(json.dumps(card))
    told = [
        EmotionClassifier.load(file).predict(images)
        for file in (first, second)
        for images in (plain.images, np.ascontiguousarray(plain.images[:, :, ::-1]))
    ]
    smooth = 0.9 * np.eye(3)[np.asarray(plain.labels)] + 0.1 / 3
    expected = 0.75 * smooth + 0.25 * np.mean(told, axis=0)
    targets, judged, expected_judged = map(np.asarray, (train.labels, dev.labels, plain_dev.labels))
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_array_equal(judged, expected_judged)  # judged by labels alone
    assert [entry["file"].rpartition("/")[2] for entry in card_entries(teachers)["teachers"]] == [
        "teacher.keras",
        "second.keras",
    ]


def test_a_distilled_network_says_so_and_its_card_makes_it_again(teacher, tmp_path, run_step):
    folder, _, first = teacher
    (tmp_path / "quick.json").write_text(json.dumps({"fitting": {"epochs": 1, "batch_size": 8, "widths": [4]}}))
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    done = run_step(*command, "--settings", tmp_path / "quick.json", "--teacher", first, "--precision", "float32")
    assert done.returncode == 0 and "asking teacher.keras" in done.stdout, done.stderr
    file = tmp_path / folder.name / "best.json"
    card = json.loads(file.read_text())
    said = "no extra labels, distilled from teacher.keras, which learnt from stripes (labels)"
    assert protocol_of(card).endswith(said)
    assert read_settings(file).teachers == (str(first),)
    again = run_step(*command, "--settings", file)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    assert Start.read(file.with_suffix(".keras")).learnt == ["stripes (labels)"]
    votes = {**card, "teachers": [{**card["teachers"][0], "learnt": ["stripes (crowd votes)"]}]}
    assert "extra labels, distilled from teacher.keras, which learnt from stripes (crowd votes)" in protocol_of(votes)


def test_teachers_that_cannot_be_learnt_from_are_refused_in_one_line(teacher, tiny_model, tmp_path, run_step):
    folder, table, first = teacher
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    file = {"file": "older.keras", "sha256": "0"}
    older = file | {"dataset": folder.name, "split_hash": "0"}
    elsewhere = file | {"dataset": "elsewhere", "split_hash": "1", "splits": [["elsewhere", "1"], [folder.name, "0"]]}
    wrong = {
        tmp_path / "none.keras": "none.keras does not exist",
        tiny_model(labels=("anger", "happiness"), name="two.keras"): "knows anger, happiness; it must know",
        tiny_model(size=48, name="large.keras"): "takes 48x48 pixels gray",
        tiny_model(name="old.keras", dataset=folder.name, split_hash="0"): "learnt from another split of stripes",
        tiny_model(name="tuned.keras", start_from=older): "tuned.keras learnt from another split of stripes",
        tiny_model(name="taught.keras", teachers=[elsewhere]): "taught.keras learnt from another split of stripes",
    }
    for file, words in wrong.items():
        done = run_step(*command, "--teacher", file)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    done = run_step(*command, "--teacher", first, "--output", first)
    assert done.returncode == 2 and "would replace" in done.stderr and "--output" in done.stderr and first.is_file()
    taught = {"file": "gone.keras", "sha256": "0", "command": "python -m some.step"}
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"hyperparameters": {"teachers": ["0"], "network": "project1", "epochs": 1},
                                "teachers": [taught]}))  # fmt: skip
    done = run_step(*command, "--settings", card)
    assert done.returncode == 2 and "gone.keras, which is gone" in done.stderr
    assert "it was made by: python -m some.step" in done.stderr
    done = run_step(*command, "--settings", card, "--teacher", first, "--output", tmp_path / "new.keras")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "new.json").read_text())
    assert [entry["file"] for entry in told["teachers"]] == [str(first)]
    assert told["hyperparameters"]["network"] == "project1"
    folds = pd.Series([str(row % 3) for row in range(len(table))], index=table.index)
    write_table(table.assign(fold=folds), folder / "split.csv")
    done = run_step(*command, "--teacher", first, "--folds", "3")
    assert done.returncode == 2 and "teachers do not go with --folds" in done.stderr
