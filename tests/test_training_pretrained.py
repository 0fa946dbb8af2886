import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from common.errors import InputError
from configuration import NO_AUGMENTATION, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import labels_hash, read_card
from preprocessing.tables import read_table
from training.pretrained import build_from
from training.trainer import train_network

QUICK = TrainingConfig(epochs=1, batch_size=8, learning_rate=0.01, precision="float32", augmentation=NO_AUGMENTATION)
SEVEN = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
EIGHT = (*SEVEN, "contempt")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def features_of(images: np.ndarray) -> np.ndarray:
    """What the tiny network's dense layer sees: means of 3x3 cells, by hand."""
    n = len(images)
    return images.reshape(n, 8, 3, 8, 3).mean(axis=(2, 4)).reshape(n, 64) / 255


@pytest.mark.parametrize(("old", "new"), [(SEVEN, EIGHT), (EIGHT, SEVEN), (SEVEN, SEVEN), (SEVEN[::3], SEVEN[1:])])
def test_last_layer_keeps_weights_of_shared_emotions(tiny_model, old, new):
    file = tiny_model(labels=old)
    images = np.random.default_rng(1).integers(0, 256, (5, 24, 24, 1)).astype(np.uint8)
    before = EmotionClassifier.load(file).predict(images)
    network = build_from(file, new)
    weights, bias = network.layers[-1].get_weights()
    logits = features_of(images) @ weights + bias
    np.testing.assert_allclose(np.asarray(network(images)), softmax(logits), atol=1e-5)
    shared = [label for label in new if label in old]
    kept = softmax(logits[:, [new.index(label) for label in shared]])
    own = before[:, [old.index(label) for label in shared]]
    np.testing.assert_allclose(kept, own / own.sum(axis=1, keepdims=True), atol=1e-5)
    for label in set(new) - set(old):
        assert np.abs(weights[:, new.index(label)]).max() > 0 and bias[new.index(label)] == 0


def test_log_and_card_describe_the_pretrained_network(make_dataset, tiny_model, tmp_path, run_step):
    folder = make_dataset()
    start = tiny_model(labels=("anger", "happiness", "contempt"), dataset="elsewhere", targets="votes",
                       caveats=["Its pictures are old."])  # fmt: skip
    roots = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    settings = ["--pretrained", start, "--epochs", "2", "--precision", "mixed_bfloat16"]
    command = ["training.step3_best_model", *roots, *settings]
    done = run_step(*command, "--cutout-max-size", "4", "--balance", "emotion", "--seed", "3")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("pretrained:")]
    assert "last layer kept for anger, happiness; new for neutral; dropped contempt" in line
    card = json.loads((tmp_path / "models" / folder.name / "best.json").read_text())
    assert card["pretrained"]["trained_on"] == ["elsewhere (annotator votes)"]
    assert card["pretrained"]["file"].endswith("tiny.keras") and len(card["pretrained"]["sha256"]) == 16
    assert any("Its pictures are old" in line for line in card["caveats"])
    assert "filters" not in card["hyperparameters"] and card["hyperparameters"]["learning_rate"] == 3e-4
    assert card["parameters"] == 64 * 3 + 3  # of the tiny network, not of the configured one
    again = run_step(*command, "--cutout-max-size", "4", "--balance", "emotion", "--seed", "3")
    assert "nothing to do" in again.stdout


def test_run_is_identified_by_content_of_pretrained_network(make_dataset, tiny_model, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "out" / "best.keras"
    table, start = read_table(folder, "split.csv"), tiny_model()

    def fit(start, **changes) -> bool:
        return train_network(table, folder, model_file, replace(QUICK, pretrained=str(start), **changes), "a step")

    assert fit(start)
    moved = tmp_path / "elsewhere.keras"
    for suffix in (".keras", ".json"):
        shutil.copy(start.with_suffix(suffix), moved.with_suffix(suffix))
    assert not fit(moved)
    assert not fit(start, filters=(8, 8), network="cifar10")  # ignored: the file has the architecture
    assert fit(tiny_model(labels=SEVEN, name="other.keras"))


def test_frozen_layers_inside_another_model_are_trained(tiny_model):
    file = tiny_model(SEVEN[:3])
    inputs = keras.Input((24, 24, 1), dtype="uint8")
    base = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])
    base.trainable = False
    save(keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(base(inputs))), read_card(file), file)
    assert len(build_from(file, SEVEN).trainable_variables) == 4


def test_refuses_network_without_last_dense_layer_for_other_classes(tiny_model):
    file = tiny_model(SEVEN[:3])
    inputs = keras.Input((24, 24, 1), dtype="uint8")
    maps = keras.layers.Conv2D(3, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    predictions = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(maps))
    save(keras.Model(inputs, predictions), read_card(file), file)
    with pytest.raises(InputError, match="does not end with a dense layer of 3 units"):
        build_from(file, SEVEN)
    card = json.loads(file.with_suffix(".json").read_text())
    four = {"labels": list(SEVEN[:4]), "labels_hash": labels_hash(SEVEN[:4])}
    file.with_suffix(".json").write_text(json.dumps({**card, **four}))
    with pytest.raises(InputError, match=r"tiny\.json does not describe tiny\.keras"):
        build_from(file, SEVEN)
