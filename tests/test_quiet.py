"""No command prints the logs of TensorFlow or LiteRT; warnings and errors come through."""

import os
import subprocess
import sys
import warnings
from threading import Event, Thread

import pytest
from conftest import ROOT

from common.logging import quiet_start
from preprocessing.datasets.sample import PORTRAIT

NATIVE = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795876892.066114   11739 cudart_stub.cc:31] Could not find cuda drivers on your machine
2026-11-28 14:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795876892.349108   11739 cpu_feature_guard.cc:227] This TensorFlow binary is optimized
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow
E0000 00:00:1795876937.308013   11739 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
"""


def start_libraries() -> None:
    with quiet_start():
        os.write(2, NATIVE.encode())
        warnings.warn("a real warning", stacklevel=1)
        print("a real error", file=sys.stderr)


def test_only_native_logs_are_removed(capfd):
    with pytest.warns(UserWarning, match="a real warning"):
        start_libraries()
    assert capfd.readouterr().err == "a real error\n"


def test_native_logs_can_be_turned_on(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with pytest.warns(UserWarning):
        start_libraries()
    assert capfd.readouterr().err == f"{NATIVE}a real error\n"


def test_threads_restore_standard_error(capfd):
    entered, joined, left = Event(), Event(), Event()

    def first() -> None:
        with quiet_start():
            entered.set()
            joined.wait(0.3)  # seconds: until the other thread starts a library too, or waits for this one
        left.set()

    thread = Thread(target=first)
    thread.start()
    entered.wait()
    with quiet_start():
        joined.set()
        left.wait()
    os.write(2, b"a later error\n")
    thread.join()
    assert capfd.readouterr().err == "a later error\n"


def run_command(module: str, *arguments: object) -> str:
    """Run a command in a process of its own, where native libraries start anew, and return its standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_camera_prints_no_native_log():
    assert run_command("realtime.webcam", "--source", PORTRAIT, "--no-window") == ""


def test_face_crops_print_no_native_log(tmp_path):
    folder = tmp_path / "data" / "mine" / "raw" / "happiness"
    folder.mkdir(parents=True)
    (folder / "portrait.jpg").write_bytes(PORTRAIT.read_bytes())
    options = ["--data", tmp_path / "data", "--dataset", "mine"]
    assert run_command("preprocessing.step1_inventory", *options, "--source", folder.parent) == ""
    assert run_command("preprocessing.step2_face_crops", *options) == ""


@pytest.mark.system
def test_conversion_prints_no_native_log(tiny_model):
    assert run_command("realtime.webcam", "--source", PORTRAIT, "--no-window", "--model", tiny_model()) == ""


@pytest.mark.system
def test_training_prints_no_native_log(make_dataset, tmp_path):
    folder = make_dataset()
    options = ["--data", folder.parent, "--dataset", folder.name, "--models", tmp_path / "models", "--epochs", 1]
    assert run_command("training.step1_baseline", *options) == ""


@pytest.mark.system
def test_evaluation_prints_no_native_log(make_dataset, tiny_model, tmp_path):
    folder = make_dataset()
    options = ["--data", folder.parent, "--dataset", folder.name, "--reports", tmp_path, "--model", tiny_model()]
    assert run_command("evaluation.model_evaluation", *options, "--flip") == ""
