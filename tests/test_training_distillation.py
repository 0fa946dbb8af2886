import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from cards import model_card

from configuration import NO_AUGMENTATION, STUDENT, TrainingConfig
from evaluation.sections.provenance import protocol
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import ModelCard, read_card
from preprocessing.tables import read_table, split_hash, write_table
from training import step3_best_model, teachers
from training.data.splits import read_batches
from training.distillation import StudentModel, Teachers, assumed_prior, class_prior, teacher_priors
from training.models import build
from training.pretrained import PretrainedNetwork
from training.settings import read_settings
from training.trainer import build_trainer

SILENT: Any = 0  # Keras types it as text


@pytest.fixture
def teacher(make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    return folder, table, tiny_model(name="teacher.keras", trained_on=folder, split_hash=split_hash(table))


def protocol_of(card: dict[str, Any]) -> str:
    predictions: Any = SimpleNamespace(
        card=ModelCard.from_json(card, Path("card.json")), scored_by_majority=False, fold_column=""
    )
    return protocol(predictions)


def test_targets_are_the_mean_of_teachers_without_their_priors(teacher, tiny_model):
    classes = ("anger", "happiness", "neutral")
    files = [str(teacher[2]), str(tiny_model(name="second.keras", labels=classes[:2]))]
    second: Any = keras.models.load_model(files[1])
    second.layers[-1].set_weights([-3 * weight for weight in second.layers[-1].get_weights()])
    save(second, read_card(Path(files[1])), Path(files[1]))
    priors, log_prior = [np.array([0.2, 0.3, 0.5]), np.array([0.9, 0.1])], np.log([0.5, 0.4, 0.1])
    images = np.random.default_rng(3).integers(0, 256, (6, 24, 24, 1)).astype(np.uint8)
    teachers = Teachers(files, classes, any_size=False, seed=1, priors=priors, log_prior=log_prior)
    assert np.asarray(teachers(images)).tolist() == [[0.0] * 3] * 6  # no predictions outside training
    assert not teachers.trainable_variables
    sides = [np.ascontiguousarray(side) for side in (images, images[:, :, ::-1])]
    first, other = ([EmotionClassifier.load(Path(file)).predict(side) for side in sides] for file in files)

    def normalised(weights: np.ndarray) -> np.ndarray:
        return weights / weights.sum(axis=1, keepdims=True)

    def expected(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        one, two = normalised(one / priors[0]), normalised(two / priors[1])
        mean = np.column_stack([np.sqrt(one[:, 0] * two[:, 0]), np.sqrt(one[:, 1] * two[:, 1]), one[:, 2]])
        return normalised(mean * np.exp(log_prior))

    possible = np.stack([expected(one, two) for one in first for two in other])
    predicted = np.stack([np.asarray(teachers(images, training=True)) for _ in range(60)])
    distance = np.abs(predicted[:, None] - possible).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    chosen = distance.argmin(axis=1)  # of the four combinations of an image and its mirror image
    assert {tuple(np.unique(chosen[:, image])) for image in range(6)} == {(0, 1, 2, 3)}
    assert len(np.unique(chosen[0])) > 1  # drawn per image


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_loss_mixes_adjusted_labels_and_teachers(tau):
    weight, random = 0.3, np.random.default_rng(5)
    values, predicted = random.normal(size=(8, 4)).astype(np.float32), random.dirichlet([1] * 3, 8).astype(np.float32)
    labels, prior = np.eye(3, dtype=np.float32)[random.integers(0, 3, 8)], np.array([0.6, 0.3, 0.1])
    dev_factors = np.array([0.2, 0.3, 0.5])
    inputs: Any = keras.Input((7,))
    predictions = keras.layers.Dense(3, activation="softmax")(inputs[:, :4])
    model = StudentModel(inputs, [predictions, inputs[:, 4:]], weight, 0.1, prior**tau, dev_factors)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    given = np.concatenate([values, predicted], axis=1)
    student = np.asarray(model.predict(given, verbose=SILENT)[0])
    logits = np.log(student) + tau * np.log(prior)  # Menon et al. 2021, equation 10
    adjusted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own, distilled = (0.9 * labels + 0.1 / 3) * adjusted, predicted * np.log(student)
    trained: Any = model.train_on_batch(given, labels, return_dict=True)
    assert trained["loss"] == pytest.approx(-((1 - weight) * own + weight * distilled).sum(1).mean(), abs=1e-5)
    tested: Any = model.test_on_batch(given, labels, return_dict=True)
    on_dev = student * dev_factors / (student * dev_factors).sum(axis=1, keepdims=True)
    assert tested["loss"] == pytest.approx(-(labels * np.log(on_dev)).sum(1).mean(), abs=1e-5)
    right = (student.argmax(1) == labels.argmax(1)).mean()
    assert trained["accuracy"] == tested["accuracy"] == pytest.approx(right)


def test_logit_adjustment_raises_the_predictions_of_a_rare_class(make_dataset):
    folder = make_dataset(emotions=("anger", "happiness"), per_split=(("train", 30), ("dev", 4)))
    table = read_table(folder, "split.csv")
    rare = table.index[(table["emotion"] == "anger") & (table["split"] == "train")][:27]
    table = table.drop(rare)  # 3 of 33
    means = []
    for tau in (0.0, 1.0):
        config = TrainingConfig(
            filters=(4,), schedule="constant", precision="float32", logit_adjustment=tau, dropout=0.0,
            label_smoothing=0.4, augmentation=NO_AUGMENTATION, learning_rate=0.01,
        )  # fmt: skip
        train, _, _ = read_batches(table, folder, config)
        np.testing.assert_allclose(class_prior(train), [3 / 33, 30 / 33])
        keras.utils.set_random_seed(3)
        network, trainer = build_trainer(train, config)
        trainer.fit(train, epochs=20, verbose=SILENT)
        means.append(network.predict(train.images, verbose=SILENT)[:, 0].mean())
    assert means[1] > means[0] + 0.1
    balanced, _, _ = read_batches(table, folder, replace(config, balance="emotion"))
    np.testing.assert_allclose(class_prior(balanced), [0.5, 0.5], atol=1e-6)  # balancing leaves nothing to adjust
    trainer: Any = build_trainer(balanced, config)[1]
    assert np.ptp(trainer.factors) < 1e-6
    np.testing.assert_allclose(trainer.dev_factors, [3 / 33, 30 / 33], rtol=1e-5)  # of dev images, as they are
    np.testing.assert_allclose(assumed_prior(class_prior(train), 1.0), [0.5, 0.5])
    np.testing.assert_allclose(assumed_prior(class_prior(train), 0.0), class_prior(train))


def test_teachers_of_a_training_predict_views_without_noise(teacher):
    folder, table, file = teacher
    noisy = replace(NO_AUGMENTATION, noise=60.0)
    config = TrainingConfig(filters=(4,), precision="float32", batch_size=8, teachers=(str(file),), augmentation=noisy)
    train, _, _ = read_batches(table, folder, config)
    images = np.full((64, *train.images.shape[1:]), 128, np.uint8)  # their mirror images are equal to them
    trainer: Any = build_trainer(train, config)[1]
    student, targets = (np.asarray(part) for part in trainer(images, training=True))
    assert np.ptp(targets, axis=0).max() < 1e-6 and np.ptp(student, axis=0).max() > 1e-4


def test_prior_of_an_adjusted_teacher_is_in_its_card(teacher, tiny_model):
    folder, table, first = teacher
    assumed = {"neutral": 0.2, "anger": 0.5, "happiness": 0.3}
    other = tiny_model(name="b.keras", hyperparameters={"logit_adjustment": 0.5}, assumed_prior=assumed)
    train, _, _ = read_batches(table, folder, TrainingConfig())
    mean, read = teacher_priors(train, [str(first), str(other)])
    np.testing.assert_allclose(mean, EmotionClassifier.load(first).predict(train.images[train.rows]).mean(axis=0))
    np.testing.assert_allclose(read, [0.5, 0.3, 0.2])


def test_student_learns_predictions_of_its_teacher(teacher, tmp_path):
    folder, table, _ = teacher
    keras.utils.set_random_seed(3)
    body = build("vgg", (24, 24, 1), 3, filters=(4,), convolutions=1)
    kernel, bias = body.layers[-2].get_weights()
    body.layers[-2].set_weights([30 * kernel, bias])  # so that its predictions differ
    save(body, model_card(), tmp_path / "teacher.keras")
    config = TrainingConfig(
        filters=(8,), schedule="constant", batch_size=16, precision="float32", distillation_weight=1.0,
        teachers=(str(tmp_path / "teacher.keras"),), augmentation=replace(NO_AUGMENTATION, flip=True, crop=2 / 3),
    )  # fmt: skip
    train, _, _ = read_batches(table, folder, config)
    network, trainer = build_trainer(train, config)
    assert {id(weight) for weight in trainer.trainable_variables} == {id(w) for w in network.trainable_variables}
    distilled: Any = trainer.get_layer("teachers")
    assert not {id(weight) for weight in network.weights} & {id(weight) for weight in distilled.weights}
    before = [np.array(weight) for weight in distilled.get_weights()]
    seen: list[tuple[int, ...]] = []
    first = distilled.networks[0].layers[1]
    call = first.call
    first.call = lambda images, **options: (seen.append(tuple(images.shape[1:3])), call(images, **options))[1]
    trainer.fit(train, epochs=40, verbose=SILENT)
    assert set(seen) == {(16, 16)}  # crops of the student's size
    for old, new in list(zip(before, distilled.get_weights(), strict=True))[:-1]:  # the last is the random state
        np.testing.assert_array_equal(old, new)
    predicted, trained = (
        np.argmax(model.predict(train.images[train.rows], verbose=SILENT), axis=1) for model in (body, network)
    )
    assert len(np.unique(predicted)) > 1 and (trained == predicted).mean() > 0.9
    trainer.save_weights(tmp_path / "state.weights.h5")
    resumed, trainer_again = build_trainer(train, config)
    trainer_again.load_weights(tmp_path / "state.weights.h5")
    np.testing.assert_array_equal(resumed.predict(train.images[train.rows], verbose=SILENT).argmax(axis=1), trained)


def test_card_of_a_distilled_network_names_teachers_and_trains_it_again(teacher, tmp_path, run_step):
    folder, _, first = teacher
    (tmp_path / "quick.json").write_text(json.dumps({"config": {"epochs": 1, "batch_size": 8, "filters": [4]}}))
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    done = run_step(*command, "--settings", tmp_path / "quick.json", "--teacher", first, "--precision", "float32")
    assert done.returncode == 0 and "distilled from teacher.keras\n" in done.stdout, done.stderr
    file = tmp_path / folder.name / "best.json"
    card = json.loads(file.read_text())
    said = "no extra labels, distilled from teacher.keras (trained on stripes (labels))"
    assert protocol_of(card).endswith(said)
    assert read_settings(file).teachers == (str(first),)
    again = run_step(*command, "--settings", file)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    assert PretrainedNetwork.read(file.with_suffix(".keras")).trained_on == ["stripes (labels)"]
    votes = {**card, "teachers": [{**card["teachers"][0], "trained_on": ["stripes (annotator votes)"]}]}
    assert "extra labels, distilled from teacher.keras (trained on stripes (annotator votes))" in protocol_of(votes)


def test_two_commands_train_teachers_and_distil_them(teacher, tmp_path, run_step, monkeypatch, capfd):
    folder, _, _ = teacher
    tiny = TrainingConfig(
        filters=(4,), batch_size=8, epochs=9, warmup_epochs=2, precision="float32", augmentation=NO_AUGMENTATION
    )
    monkeypatch.setattr(teachers, "TEACHERS", (tiny, replace(tiny, filters=(5,), seed=8)))
    monkeypatch.setattr(step3_best_model, "STUDENT", replace(STUDENT, filters=(4, 6), convolutions=1))
    teachers.main(folder.name, folder.parent, tmp_path, "labels", epochs=1)
    printed = capfd.readouterr().out.splitlines()[-1]  # the second command, for the same folders and targets
    options = f"--data {folder.parent}", f"--models {tmp_path}", "--targets labels"
    assert all(option in printed for option in options)
    files = [tmp_path / folder.name / "teachers" / f"{number}.json" for number in (1, 2)]
    cards = [json.loads(file.read_text())["hyperparameters"] for file in files]
    assert sum(json.loads(files[0].read_text())["assumed_prior"].values()) == pytest.approx(1, abs=1e-3)
    assert [(card["filters"], card["seed"], card["epochs"], card["warmup_epochs"]) for card in cards] == [
        ([4], 7, 1, 0),
        ([5], 8, 1, 0),
    ]
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    done = run_step(*command, "--teacher", tmp_path / folder.name / "teachers", "--epochs", 1, "--precision", "float32")
    assert done.returncode == 0 and "distilled from 1.keras, 2.keras\n" in done.stdout, done.stderr
    student = read_settings(tmp_path / folder.name / "best.json")
    assert (student.filters, student.distillation_weight) == ((4, 6), STUDENT.distillation_weight)
    first = tmp_path / folder.name / "teachers" / "1.keras"
    further = [*command, "--teacher", first, "--pretrained", first, "--epochs", 1, "--precision", "float32"]
    done = run_step(*further, "--output", tmp_path / "further.keras")
    assert done.returncode == 0, done.stderr
    student = read_settings(tmp_path / "further.json")  # with the settings of a student, not of fine-tuning
    assert (student.pretrained, student.distillation_weight) == (str(first), STUDENT.distillation_weight)
    (tmp_path / "empty").mkdir()
    done = run_step(*command, "--teacher", tmp_path / "empty")
    assert done.returncode == 2 and "has no .keras file; python -m training.teachers" in done.stderr


def test_refuses_unusable_teachers_in_one_line(teacher, tiny_model, tmp_path, run_step):
    folder, table, first = teacher
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    file = {"file": "older.keras", "sha256": "0"}
    older = file | {"dataset": folder.name, "split_hash": "0"}
    elsewhere = file | {"dataset": "elsewhere", "split_hash": "1", "splits": [["elsewhere", "1"], [folder.name, "0"]]}
    distilled = tiny_model(name="distilled.keras", teachers=[elsewhere], listed=False)
    card = tmp_path / "card.json"
    settings = {"teachers": ["0"], "network": "project1", "epochs": 1, "precision": "float32"}
    older_teacher = file | {"command": "python -m some.step"}
    card.write_text(json.dumps({"hyperparameters": settings, "teachers": [older_teacher]}))
    (tmp_path / "crops.json").write_text(json.dumps({"config": {"augmentation": {"crop": 0.75}}}))
    folds = pd.Series([str(row % 3) for row in range(len(table))], index=table.index)
    write_table(table.assign(fold=folds), folder / "split.csv")
    for arguments, words in (
        (["--teacher", tmp_path / "none.keras"], "none.keras does not exist"),
        (
            ["--teacher", tiny_model(labels=("anger", "fear"), name="fear.keras")],
            "has the classes fear, which the data",
        ),
        (
            ["--teacher", tiny_model(labels=("anger", "happiness"), name="two.keras")],
            "no teacher has the classes neutral",
        ),
        (["--teacher", tiny_model(size=48, name="large.keras")], "takes 48x48 pixels gray"),
        (
            ["--teacher", tiny_model(name="tuned.keras", pretrained=older, listed=False)],
            "tuned.keras was trained on an",
        ),
        (["--teacher", distilled], "distilled.keras was trained on another split"),
        (["--teacher", first, "--output", first], "would replace"),
        (["--pretrained", tmp_path / "none.keras"], "none.keras does not exist"),
        (["--pretrained", tmp_path / "models" / "large.keras"], "takes 48x48 pixels gray"),
        (["--settings", card], "older.keras, which is missing"),
        (["--teacher", first, "--folds", 3], "--folds does not support teachers"),
        (["--pretrained", first, "--folds", 3], f"{first}, or a network in its lineage, was trained"),
        (["--teacher", first, "--settings", tmp_path / "crops.json"], f"teacher {first}: network"),
    ):
        done = run_step(*command, *arguments)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = run_step(*command, "--settings", card, "--teacher", first, "--output", tmp_path / "new.keras")
    assert done.returncode == 0, done.stderr
    predicted = json.loads((tmp_path / "new.json").read_text())
    assert [entry["file"] for entry in predicted["teachers"]] == [str(first)]
    assert predicted["hyperparameters"]["network"] == "project1"
