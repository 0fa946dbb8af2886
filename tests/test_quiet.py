"""No command prints the logs of TensorFlow or LiteRT; warnings and errors come through."""

import os
import subprocess
import sys

import pytest
from conftest import PORTRAIT, ROOT


def run_command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process, as a user does: this process has started TensorFlow already."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_training_prints_no_native_log(make_dataset, tmp_path):
    folder = make_dataset()
    options = ["--data", folder.parent, "--dataset", folder.name, "--models", tmp_path / "models", "--epochs", 1]
    assert run_command("training.step1_baseline", *options).stderr == ""


def test_evaluation_prints_no_native_log(make_dataset, tiny_model, tmp_path):
    folder = make_dataset()
    options = ["--data", folder.parent, "--dataset", folder.name, "--reports", tmp_path, "--model", tiny_model()]
    assert run_command("evaluation.model_evaluation", *options, "--quick").stderr == ""


@pytest.mark.parametrize("converted", [False, True])
def test_camera_prints_no_native_log(tiny_model, tmp_path, converted):
    done = run_command("realtime.webcam", "--source", PORTRAIT, "--no-window", "--model", tiny_model())
    assert done.stderr == ""
