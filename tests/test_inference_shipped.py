"""Networks that come with the project, converted for LiteRT, and a machine without TensorFlow."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common.errors import InputError
from configuration import PATHS
from inference.emotion_classifier import EmotionClassifier, converted_classifier
from inference.keras_networks import RELEASED
from inference.model_card import read_card
from inference.mtcnn_networks import network_files


def test_shipped_networks_belong_to_their_sources(tmp_path):
    files = [converted_classifier(model_file, read_card(model_file), tmp_path) for model_file in RELEASED]
    files += network_files(tmp_path)
    assert set(files) == set(PATHS.shipped.glob("*.tflite")), "run `make litert`, and commit models/litert"


def test_own_network_needs_tensorflow_once(tiny_model, tmp_path, monkeypatch):
    model_file = tiny_model()
    monkeypatch.setitem(sys.modules, "keras", None)  # as if it were not installed
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(InputError, match=r"tiny is not converted .* needs TensorFlow; .*pip install -e \"\.\[all\]\""):
        EmotionClassifier.load_litert(model_file, folder=tmp_path)


def test_command_that_needs_the_rest_says_so(tmp_path):
    (tmp_path / "pandas.py").write_text("raise ModuleNotFoundError(name='pandas')")
    command = [sys.executable, "-m", "evaluation.model_evaluation"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: this needs pandas, which is not installed; ")
    assert len(done.stderr.splitlines()) == 1 and 'python -m pip install -e ".[all]"' in done.stderr
