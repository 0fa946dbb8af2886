import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import yaml
from conftest import ROOT

from configuration import PATHS
from inference.crops import read_image_rgb
from inference.keras_networks import load_network
from inference.model_card import read_card
from preprocessing.datasets.sample import PORTRAIT
from realtime import analyze

SCORES = [
    {
        "dataset": "fer2013",
        "split": "test",
        "protocol": "one crop: no TTA",
        "n": 3589,
        "accuracy": 0.7,
        "macro_f1": 0.6,
    },
    {"dataset": "fer2013", "split": "dev", "protocol": "flip", "accuracy": 0.71},
]


def by_litert(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(file))
    (given,), (returned,) = network.get_input_details(), network.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        network.resize_tensor_input(given["index"], images.shape)
        network.allocate_tensors()
        network.set_tensor(given["index"], images)
        network.invoke()
        return network.get_tensor(returned["index"])

    return run


def by_onnx(file: Path) -> Callable[[np.ndarray], Any]:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file))
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def by_tensorflow(folder: Path) -> Callable[[np.ndarray], Any]:
    import tensorflow as tf

    network: Any = tf.saved_model.load(str(folder))  # type: ignore[attr-defined]
    return lambda images: np.asarray(network.serve(images))


RUN = {"litert": (by_litert, "tiny.tflite"), "onnx": (by_onnx, "tiny.onnx"), "tf_saved_model": (by_tensorflow, "tiny")}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (100, 24, 24, 1)).astype(np.uint8)


@pytest.mark.parametrize("kind", RUN)
def test_exported_network_gives_what_keras_gives(tiny_model, tmp_path, run_step, images, kind):
    model, output, (load, name) = tiny_model(temperature=1.7), tmp_path / "exported", RUN[kind]
    done = run_step("inference.export", "--model", model, "--format", kind, "--output", output)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert sorted(file.name for file in output.iterdir()) == sorted([name, "tiny.json"])
    network: Any = keras.saving.load_model(model)
    np.testing.assert_allclose(load(output / name)(images), network.predict(images, verbose=0), atol=1e-4)
    card = json.loads((output / "tiny.json").read_text())
    assert (card["labels"], card["temperature"]) == (["anger", "happiness", "neutral"], 1.7)
    assert card["preprocessing"]["input"] == "uint8 (n, 24, 24, 1), gray, black 0, white 255"
    assert np.shape(card["preprocessing"]["template"]) == (5, 2)
    again = run_step("inference.export", "--model", model, "--format", kind, "--output", output)
    assert again.returncode == 2 and f"{name} exists already" in again.stderr


def test_exported_float_network_takes_pixels(tmp_path, run_step, images):
    inputs = keras.Input((24, 24, 1))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(inputs))
    network: Any = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    network.save(tmp_path / "own.keras")
    card = {"labels": ["anger", "neutral"], "input_size": 24, "channels": 1, "input_range": [-1, 1], "align": "box"}
    (tmp_path / "own.json").write_text(json.dumps({**card, "temperature": 1.0}))
    command = ["inference.export", "--model", tmp_path / "own.keras", "--output", tmp_path / "out", "--format"]
    assert run_step(*command, "onnx").returncode == 0
    expected = network.predict(images / np.float32(127.5) - 1, verbose=0)
    np.testing.assert_allclose(by_onnx(tmp_path / "out" / "own.onnx")(images), expected, atol=1e-4)
    written = json.loads((tmp_path / "out" / "own.json").read_text())
    assert "input_range" not in written and "template" not in written["preprocessing"]


def test_hub_folder_is_read_by_keras_and_has_the_metadata_of_the_hub(tiny_model, tmp_path, run_step, images):
    known = {**SCORES[1], "split": "train", "held_out": False, "banner": "NOT A HELD-OUT SCORE"}
    model = tiny_model(scores=[*SCORES, known], caveats=["Only: a test."])
    done = run_step("inference.export", "--model", model, "--format", "hub", "--output", tmp_path / "hub")
    assert done.returncode == 0 and not done.stderr, done.stderr
    folder = tmp_path / "hub" / "tiny"
    expected = load_network(model).predict_on_batch(images)
    for network in (folder / "tiny.keras", folder):  # Keras reads the folder where it is given hf://USER/tiny
        loaded: Any = keras.saving.load_model(network)
        np.testing.assert_array_equal(loaded.predict_on_batch(images), expected)
    assert read_card(folder / "tiny.keras").network_hash == read_card(model).network_hash
    _, header, text = re.split(r"^---\n", (folder / "README.md").read_text(encoding="utf-8"), maxsplit=2, flags=re.M)
    metadata = yaml.safe_load(header)
    assert {name: metadata[name] for name in ("library_name", "license", "pipeline_tag")} == {
        "library_name": "keras",
        "license": "other",
        "pipeline_tag": "image-classification",
    }
    (entry,) = metadata["model-index"]
    assert entry["name"] == "tiny" and [r["dataset"]["split"] for r in entry["results"]] == ["test", "dev"]
    assert entry["results"][0]["dataset"]["args"] == {"protocol": "one crop: no TTA", "n": 3589}
    assert [(m["type"], m["value"]) for m in entry["results"][0]["metrics"]] == [("accuracy", 0.7), ("f1", 0.6)]
    assert text.count("NOT A HELD-OUT SCORE") == 1  # and not in the metadata
    assert "- Only: a test." in text and "EU AI Act" in text and "anger, happiness, neutral" in text


def test_hub_folder_of_a_network_without_scores_has_no_results(tiny_model, tmp_path, run_step):
    done = run_step("inference.export", "--model", tiny_model(), "--format", "hub", "--output", tmp_path)
    assert done.returncode == 0 and "model-index" not in (tmp_path / "tiny" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "coreml"], "--format coreml is not one of litert, onnx, tf_saved_model, hub"),
        (["--format", "onnx", "--int8"], "--int8 needs --format litert"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tiny_model, tmp_path, run_step, options, message):
    done = run_step("inference.export", "--model", tiny_model(), "--output", tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "out").exists()


def test_another_card_is_not_replaced_and_a_damaged_network_is_refused(tiny_model, run_step, tmp_path):
    model = tiny_model()
    before = model.with_suffix(".json").read_bytes()
    done = run_step("inference.export", "--model", model, "--format", "litert", "--output", model.parent)
    assert done.returncode == 2 and "another card" in done.stderr and model.with_suffix(".json").read_bytes() == before
    model.write_bytes(model.read_bytes()[:-50])
    for kind in ("hub", "onnx"):
        done = run_step("inference.export", "--model", model, "--format", kind, "--output", tmp_path / kind)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.system
def test_released_network_is_exported_and_the_documented_example_runs(tmp_path, run_step):
    """The example of docs/deploy.md runs in a folder without the project, and agrees with it."""
    gray = cv2.cvtColor(read_image_rgb(PORTRAIT), cv2.COLOR_RGB2GRAY)
    steps = [(x, y, side) for x in range(100, 180, 16) for y in range(0, 60, 12) for side in (200, 230, 260, 290)]
    crops = [cv2.resize(gray[y : y + s, x : x + s], (48, 48), interpolation=cv2.INTER_AREA) for x, y, s in steps]
    images = np.stack(crops)[..., None]
    assert len(images) == 100
    network: Any = keras.saving.load_model(PATHS.pretrained)
    expected = network.predict(images, verbose=0)
    for kind, (load, name) in RUN.items():
        done = run_step("inference.export", "--format", kind, "--output", tmp_path / kind)
        assert done.returncode == 0, done.stderr
        found = load(tmp_path / kind / name.replace("tiny", "pretrained"))(images)
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=kind)
    done = run_step("inference.export", "--format", "litert", "--int8", "--output", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    quantised = by_litert(tmp_path / "exported" / "pretrained.tflite")(images)
    np.testing.assert_allclose(quantised, expected, atol=0.05)
    first, second = np.sort(expected)[:, -1], np.sort(expected)[:, -2]
    same = quantised.argmax(axis=1) == expected.argmax(axis=1)
    certain = first - second > 0.05  # closer emotions may change places
    assert certain.sum() >= 60 and same[certain].all() and same.mean() >= 0.9

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.S)
    shutil.copyfile(PORTRAIT, tmp_path / "photo.jpg")
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    probabilities = json.loads(run.stdout.replace("'", '"'))
    (face,) = analyze(PORTRAIT)
    assert probabilities == pytest.approx(face.probabilities, abs=0.05)
