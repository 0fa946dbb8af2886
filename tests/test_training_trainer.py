import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from conftest import ROOT
from tiny_training import TINY, build_tiny, fit, history_of

from common.errors import InputError, missing_package
from configuration import NO_AUGMENTATION, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import RELEASED
from preprocessing.tables import read_table, usable, write_table
from training import models
from training.data import read_crops
from training.data.splits import read_batches
from training.runs import epoch_choice
from training.settings import check_output
from training.trainer import Muon, build_trainer, data_parallel, set_layer_rates


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", build_tiny)


def accuracy_on(folder: Path, model_file: Path, split: str) -> float:
    rows = usable(read_table(folder, "split.csv")).query("split == @split")
    classifier = EmotionClassifier.load(model_file)
    images = read_crops(classifier, folder, rows)
    prediction = np.array(classifier.labels)[classifier.predict(images).argmax(axis=1)]
    return float(np.mean(prediction == rows["emotion"].to_numpy()))


def test_learns_and_saves_best_epoch_with_card_curves_and_history(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    assert fit(folder, model_file, replace(TINY, epochs=12, augmentation=NO_AUGMENTATION))
    assert accuracy_on(folder, model_file, "test") == 1.0
    card = json.loads(model_file.with_suffix(".json").read_text())
    history = history_of(tmp_path / "models")
    best = max(history, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert card["epoch_chosen"] == int(best["epoch"]) and card["epochs_run"] == len(history) == 12
    assert accuracy_on(folder, model_file, "dev") == pytest.approx(float(best["val_accuracy"]))
    assert card["labels"] == ["anger", "happiness", "neutral"] and card["hyperparameters"]["learning_rate"] == 0.02
    assert card["command"] == "python -m some.step" and card["dataset"] == folder.name and card["scores"] == []
    assert any("bias by any of these is not measured" in line and "race" in line for line in card["caveats"])
    assert float(history[0]["learning_rate"]) > float(history[-1]["learning_rate"]) >= 0  # cosine


def test_logit_adjusted_training_keeps_the_epoch_with_the_lowest_loss(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    assert fit(folder, model_file, replace(TINY, epochs=6, logit_adjustment=1.0))
    card = json.loads(model_file.with_suffix(".json").read_text())
    losses = [float(row["val_loss"]) for row in history_of(tmp_path / "models")]
    assert card["epoch_chosen"] == 1 + int(np.argmin(losses)) and card["chosen_by"].startswith("lowest dev loss")
    frequent, rare = ({"val_accuracy": a, "val_loss": loss} for a, loss in ((0.9, 1.0), (0.8, 0.5)))
    for tau, chosen in ((0.0, frequent), (0.5, rare)):
        merit, _ = epoch_choice(replace(TINY, logit_adjustment=tau))
        assert max((frequent, rare), key=merit) is chosen


def test_finished_run_is_repeated_only_with_other_settings_crops_or_code(make_dataset, tmp_path, monkeypatch, capsys):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    config = replace(TINY, epochs=1)
    assert fit(folder, model_file, config)
    written = model_file.stat().st_mtime_ns
    network: Any = keras.models.load_model(model_file, safe_mode=True)  # custom layers would be refused here
    assert not [layer.name for layer in network.layers if "random" in layer.name or "augmentation" in layer.name]
    assert network.count_params() == 8 * 8 * 3 + 3
    assert not fit(folder, model_file, config)
    assert "nothing to do" in capsys.readouterr().out and model_file.stat().st_mtime_ns == written
    model_file.write_bytes(model_file.read_bytes()[:30])
    assert fit(folder, model_file, config)  # a damaged network is written again
    EmotionClassifier.load(model_file)

    def stop(*_):
        raise KeyboardInterrupt

    def runs_after_start(folder: Path = folder, config: TrainingConfig = config) -> int:
        with pytest.raises(KeyboardInterrupt):
            fit(folder, model_file, config)
        return len([run for run in tmp_path.glob("models/runs/best-*") if run.is_dir()])

    monkeypatch.setattr("training.trainer.build_trainer", stop)
    assert runs_after_start(config=replace(config, seed=8)) == runs_after_start(config=replace(config, seed=8)) == 2
    assert runs_after_start(make_dataset(size=48, name="larger")) == 3
    crops = json.loads((folder / "faces.json").read_text())
    for number, change in enumerate(({"align": "box"}, {"detect": True}), 4):
        crops["options"] |= change
        (folder / "faces.json").write_text(json.dumps(crops))
        assert runs_after_start() == number
    for number, module in enumerate(("models", "augmentation", "data.batches", "distillation", "trainer"), 6):
        monkeypatch.setattr(f"training.{module}.VERSION", 1_000)
        assert runs_after_start() == number


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_muon_moves_convolutions_by_orthogonal_matrices_and_others_as_adamw(precision):
    rng = np.random.default_rng(2)
    kernels = [
        rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 4, 8), (1, 1, 4, 16), (3, 3, 1, 8), (3, 3, 8, 1))
    ]
    gradients = [rng.normal(size=kernel.shape).astype(np.float32) for kernel in kernels]
    keras.config.set_dtype_policy(precision)
    try:
        optimizer = Muon(0.01, weight_decay=0.0)
    finally:
        keras.config.set_dtype_policy("float32")
    variables = [keras.Variable(kernel) for kernel in kernels]
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients], variables)
    moves = [(old - new.numpy()) / 0.01 for old, new in zip(kernels, variables, strict=True)]
    for move, gradient in zip(moves[2:], gradients[2:], strict=True):  # the first step of AdamW
        np.testing.assert_allclose(move, np.sign(gradient), rtol=0.01)
    for move, gradient in zip(moves[:2], gradients[:2], strict=True):
        left, _, right = np.linalg.svd(gradient.reshape(-1, gradient.shape[-1]), full_matrices=False)
        nearest = (left @ right).ravel()  # the nearest orthogonal matrix
        assert np.corrcoef(move.ravel(), nearest)[0, 1] > 0.97
        assert 0.2 * 0.6 < np.sqrt((move**2).mean()) < 0.2 * 1.2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_layers_learn_at_rates_that_grow_by_equal_ratios(make_dataset, optimizer):
    folder, decay = make_dataset(), 0.5
    config = replace(
        TrainingConfig(), filters=(4, 8), convolutions=1, optimizer=optimizer, schedule="constant", learning_rate=0.1,
        weight_decay=decay, precision="float32", dropout=0.0, augmentation=NO_AUGMENTATION,
    )  # fmt: skip
    train, _, _ = read_batches(read_table(folder, "split.csv"), folder, config)
    steps = []
    for first in (1.0, 0.25):
        keras.utils.set_random_seed(3)
        network, trainer = build_trainer(train, replace(config, first_layer_rate=first))
        before = [variable.numpy() for variable in network.trainable_variables]
        trainer.train_on_batch(*train[0])
        kept = 1 - 0.1 * decay if optimizer != "sgd" else 1  # weight decay is the same for all layers
        steps.append([new.numpy() - kept * old for new, old in zip(network.trainable_variables, before, strict=True)])
    rates = [0.25] * 3 + [0.5] * 3 + [1.0] * 2  # kernel, gamma and beta of two convolutions; kernel and bias
    for plain, scaled, rate in zip(*steps, rates, strict=True):
        assert np.abs(plain).max() > 1e-4
        np.testing.assert_allclose(scaled, rate * plain, atol=1e-6)


def test_layer_of_several_kernels_has_one_rate():
    inputs = keras.Input((8, 8, 1))
    axes: Any = (1, 2, 3)
    x = keras.layers.SeparableConv2D(4, 3)(keras.layers.LayerNormalization(axes)(inputs))
    x = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.PReLU()])(x)
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    factors: dict[str, float] = {}

    class Optimizer:
        def update_step(self, gradient, variable, learning_rate):
            factors[variable.path] = learning_rate

        def _get_variable_index(self, variable):
            return [id(v) for v in variables].index(id(variable))

    variables, optimizer = network.trainable_variables[::-1], Optimizer()  # in another order than the network has
    set_layer_rates(SimpleNamespace(optimizer=optimizer, trainable_variables=variables), network, 0.01)
    for variable in variables:
        optimizer.update_step(None, variable, 1.0)
    found = [round(factors[variable.path], 6) for variable in network.trainable_variables]
    assert found == [0.01] * 5 + [0.1] * 3 + [1.0] * 2


@pytest.mark.parametrize("released", RELEASED, ids=lambda file: file.name)
def test_refuses_every_spelling_of_a_released_name(tmp_path, monkeypatch, released):
    (tmp_path / "link").symlink_to(released.parent)
    (tmp_path / "link.keras").symlink_to(released)
    monkeypatch.chdir(ROOT / "tests")
    for file in (
        released,
        Path(os.path.relpath(released)),
        released.parent / ".." / "models" / released.name,
        released.with_name(released.name.replace("e", "E", 1)),
        tmp_path / "link" / released.name,
        tmp_path / "link.keras",
    ):
        with pytest.raises(InputError, match=f"would replace the released network {released.name}; give another name"):
            check_output(file)
    check_output(tmp_path / released.name)
    check_output(released.with_name("mine.keras"))


@pytest.mark.parametrize("step", ["step1_baseline", "step3_best_model --folds 3", "step4_sequence_model"])
def test_every_training_step_refuses_a_released_name(make_dataset, tmp_path, monkeypatch, run_step, step):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    write_table(table.assign(fold=[str(n % 3) for n in range(len(table))]), folder / "split.csv")
    released = tmp_path / "models" / folder.name / "baseline_project1.keras"
    released.parent.mkdir(parents=True)
    released.write_bytes(b"kept")
    monkeypatch.setattr("inference.keras_networks.RELEASED", (released,))
    module, *options = f"training.{step}".split()
    output = [] if "step1" in step else ["--output", released]
    places = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    done = run_step(module, *places, *options, *output)
    assert done.returncode == 2 and "would replace the released network" in done.stderr, done.stderr
    assert [file.name for file in released.parent.iterdir()] == [released.name] and released.read_bytes() == b"kept"


def test_refuses_output_names_before_training(make_dataset, tmp_path):
    folder = make_dataset()
    (tmp_path / "models" / "folder.keras").mkdir(parents=True)
    (tmp_path / "models" / "mine.json").write_text('{"config": {}}')
    messages = dict.fromkeys(("best.h5", "best", "folder.keras"), r"is not the name of a \.keras file")
    messages |= {f"{name}.keras": f"{name}.json, a file of settings" for name in ("tuned", "mine")}
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            fit(folder, tmp_path / "models" / name)
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == ["folder.keras", "mine.json"]


@pytest.mark.parametrize("devices", [4, 8])
def test_images_repeated_for_devices_change_neither_weights_nor_accuracy(make_dataset, devices):
    folder = make_dataset(per_split=(("train", 9), ("dev", 5)))
    table = read_table(folder, "split.csv").drop(index=[0, 1])  # 25 and 15 images; unequal emotions
    network = {"optimizer": "sgd", "dropout": 0.0, "augmentation": NO_AUGMENTATION}
    config = replace(TINY, **network, balance="emotion", mixup=0.3)

    def trained(devices: int) -> tuple[list[np.ndarray], dict[str, list[float]]]:
        train, dev, _ = read_batches(table, folder, config)
        train.devices = dev.devices = devices
        assert {len(part) % devices for batches in (train, dev) for batch in batches for part in batch} == {0}
        keras.utils.set_random_seed(3)
        network, trainer = build_trainer(train, config)
        silent: Any = 0
        fitted: Any = trainer.fit(train, validation_data=dev, epochs=4, shuffle=False, verbose=silent)
        return network.get_weights(), fitted.history

    (weights, alone), (shared_weights, shared) = trained(1), trained(devices)
    for one, other in zip(weights, shared_weights, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    assert shared["accuracy"] == alone["accuracy"] and shared["val_accuracy"] == alone["val_accuracy"]
    np.testing.assert_allclose(shared["val_loss"], alone["val_loss"], rtol=1e-5)
    # Keras weights the last batch, of one image, by its size with the repeated images.
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=0.2)


def test_refuses_devices_that_cannot_share_a_batch(make_dataset, tmp_path, run_step, monkeypatch):
    folder = make_dataset()
    places = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    done = run_step("training.step3_best_model", *places, "--devices", 2)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "--devices 2 needs Keras on JAX, not on tensorflow; set KERAS_BACKEND=jax" in done.stderr
    without_jax = missing_package(ModuleNotFoundError("No module named 'jax'", name="jax")) or ""
    assert "needs JAX" in without_jax and "-r requirements-distributed.txt" in without_jax
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    monkeypatch.setattr("keras.distribution.list_devices", lambda: ["gpu:0", "gpu:1", "gpu:2", "gpu:3"])
    with pytest.raises(InputError, match="--devices 5: JAX finds gpu:0, gpu:1, gpu:2, gpu:3; give at most --devices 4"):
        data_parallel(5, 128)
    with pytest.raises(InputError, match="--devices 4 does not divide the batch size, 50 images; give --devices 2, or"):
        fit(folder, tmp_path / "models" / "best.keras", replace(TINY, batch_size=50), devices=4)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("content", [None, "{", '{"options": {"size": 24}}'])
def test_refuses_crops_without_options(make_dataset, tmp_path, content):
    folder = make_dataset()
    (folder / "faces.json").unlink()
    if content is not None:
        (folder / "faces.json").write_text(content)
    with pytest.raises(InputError, match=r"faces\.json.*missing or damaged.*step2_face_crops"):
        fit(folder, tmp_path / "models" / "best.keras")


def test_refuses_emotions_without_images_and_missing_votes(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    with pytest.raises(InputError, match="show anger; at least two"):
        fit(make_dataset(emotions=("anger",), name="anger"), model_file)
    with pytest.raises(InputError, match="votes"):
        fit(folder, model_file, replace(TINY, targets="votes"))
    table = read_table(folder, "split.csv")
    table.loc[(table["emotion"] == "happiness") & (table["split"] == "train"), "split"] = ""
    write_table(table, folder / "split.csv")
    with pytest.raises(InputError, match="no training image shows happiness"):
        fit(folder, model_file)
    assert not model_file.parent.exists()


def with_votes(folder: Path, by_emotion: dict[str, dict[str, int]]) -> None:
    """Add annotator votes by the label of each image."""
    table = read_table(folder, "split.csv")
    for answer in ("anger", "happiness", "neutral", "contempt", "unknown", "nf"):
        table[f"votes_{answer}"] = [by_emotion[emotion].get(answer, 0) for emotion in table["emotion"]]
    write_table(table, folder / "split.csv")


def test_votes_are_targets_and_dev_accuracy_uses_their_majority(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    # The votes disagree with the labels: the majority calls anger contempt.
    with_votes(folder, {"anger": {"contempt": 8, "anger": 2}, "happiness": {"happiness": 9, "nf": 1},
                        "neutral": {"neutral": 6, "anger": 4}})  # fmt: skip
    settings = {"targets": "votes", "epochs": 40, "learning_rate": 0.1, "augmentation": NO_AUGMENTATION}
    assert fit(folder, model_file, replace(TINY, **settings))
    classifier = EmotionClassifier.load(model_file)
    assert classifier.labels == ("anger", "happiness", "neutral", "contempt") and classifier.card.targets == "votes"
    last = history_of(tmp_path / "models")[-1]
    assert float(last["val_accuracy"]) == 1.0  # of the majorities: contempt, happiness, neutral
    # The entropy of the votes is the smallest possible loss.
    entropy = np.mean([-np.sum(shares * np.log(shares)) for shares in ([0.8, 0.2], [1.0], [0.6, 0.4])])
    assert float(last["val_loss"]) == pytest.approx(entropy, abs=0.05)


def test_votes_are_balanced_by_their_majority_and_changed_weights_are_another_run(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    with_votes(
        folder, {"anger": {"happiness": 9}, "happiness": {"happiness": 9}, "neutral": {"neutral": 7, "anger": 3}}
    )
    table = read_table(folder, "split.csv")
    config = replace(TINY, targets="votes", balance="emotion", epochs=1)
    train, _, _ = read_batches(table, folder, config)
    assert train.weights is not None and train.labels is not None
    is_neutral = train.labels[:, train.classes.index("neutral")] > 0.5
    assert train.weights[is_neutral].sum() == pytest.approx(train.weights[~is_neutral].sum())
    table["gender"] = ["f", "m", "m", "m"] * (len(table) // 4) + ["f"] * (len(table) % 4)
    write_table(table, folder / "split.csv")
    config = replace(config, targets="labels", balance="gender")
    assert fit(folder, model_file, config) and not fit(folder, model_file, config)
    table["gender"] = table["gender"].replace("m", "x").iloc[::-1].to_numpy()
    write_table(table, folder / "split.csv")
    assert fit(folder, model_file, config)


def test_images_without_votes_for_an_emotion_are_left_out(make_dataset):
    folder = make_dataset()
    with_votes(folder, {"anger": {"nf": 9}, "happiness": {"happiness": 9}, "neutral": {"neutral": 5, "anger": 5}})
    train, dev, _ = read_batches(read_table(folder, "split.csv"), folder, replace(TINY, targets="votes"))
    assert (len(train.rows), len(dev.rows), len(train.classes)) == (24, 4, 4)  # for dev more than half must agree
