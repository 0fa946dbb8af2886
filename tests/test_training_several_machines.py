"""Processes that share one tuning study in PostgreSQL, as several machines do."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT

from training.settings import read_settings
from training.tuning.report import FINISHED

PASSWORD = "hunter2"
GRACE = 3  # seconds after which a trial without a heartbeat is stale, instead of three minutes
TIMEOUT = 900  # seconds: each process imports TensorFlow and traces its trials
TUNE = f"""
import sys, time
from pathlib import Path
import keras
from common.command_line import run
from training import step2_tuning
from training.tuning import search

started, goes_on = Path(sys.argv[1]), Path(sys.argv[2])

class Wait(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        started.touch()
        while not goes_on.exists():
            time.sleep(0.1)

search.HEARTBEAT = {GRACE} / 3
search.choose_precision = lambda *_: "float32"  # some processors take minutes to time a precision that they lack
step2_tuning.tensorboard = lambda _: [Wait()]
sys.argv = ["step2_tuning", *sys.argv[3:]]
run(step2_tuning.main)
"""


@pytest.fixture
def database() -> Iterator[str]:
    """Start a PostgreSQL server in a temporary folder, and return the URL of its database."""
    program = shutil.which("pg_ctl") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), None)
    if program is None:
        pytest.skip("needs PostgreSQL: make test-system")
    owner: Any = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to others
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        (Path(folder) / "password").write_text(PASSWORD)
        for path in (folder, f"{folder}/password"):
            shutil.chown(path, **owner or {"user": os.geteuid()})
        options = f"-A scram-sha-256 -U tuner --pwfile={folder}/password --encoding=UTF8 --locale=C"
        server = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

        def control(*arguments: str) -> None:
            command = [program, "-D", f"{folder}/data", *arguments]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120, **owner)

        control("initdb", "-o", options)
        free.close()
        control("start", "-w", "-l", f"{folder}/log", "-o", server)
        try:
            yield f"postgresql+psycopg://tuner:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            control("stop", "-m", "immediate")


@pytest.fixture
def ended_later() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.system
def test_study_in_postgresql_survives_the_kill_of_one_of_two_processes(tmp_path, database, ended_later, run_step):
    data, models = tmp_path / "data", tmp_path / "models"
    for step in ("step1_inventory", "step2_face_crops", "step3_split"):
        assert run_step(f"preprocessing.{step}", "--data", data).returncode == 0
    goes_on = tmp_path / "goes_on"
    budget = ["--trials", 3, "--epochs", 1, "--train-images", 40]
    places = ["--data", data, "--models", models, "--storage", database]

    def tune(name: str) -> subprocess.Popen[bytes]:
        """Start a process, and return when it is in the middle of a trial."""
        command = [sys.executable, "-c", TUNE, tmp_path / name, goes_on, *places, *budget]
        with (tmp_path / f"{name}.log").open("w") as log:
            process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=log, stderr=log)
        ended_later.callback(process.kill)
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / name).exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / f"{name}.log").read_text()
            time.sleep(0.1)
        return process

    killed, other = tune("killed"), tune("other")
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    study = optuna.load_study(study_name="sample-labels", storage=database)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING"]
    time.sleep(GRACE + 1)
    goes_on.touch()
    printed = (tmp_path / "other.log").read_text
    assert other.wait(TIMEOUT) == 0, printed()

    trials = study.get_trials()
    assert [trial.state.name for trial in trials].count("FAIL") == 1 and trials[0].state.name == "FAIL"
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert len(finished) == 3 and len(trials) == 4
    assert len({json.dumps(trial.params, sort_keys=True) for trial in finished}) == 3
    assert [trial.params for trial in trials].count(trials[0].params) == 2  # tried again, by the other process
    tuned = models / "sample" / "tuned.json"
    found = json.loads(tuned.read_text())["found"]
    best = trials[found["best_trial"]]
    assert best.value == study.best_value == found["dev_accuracy"] == max(trial.value or 0 for trial in finished)
    assert read_settings(tuned).learning_rate == pytest.approx(best.params["learning_rate"])
    assert found["trials"]["complete"] + found["trials"]["pruned"] == 3 and found["trials"]["fail"] == 1
    assert PASSWORD not in printed() + tuned.read_text()
