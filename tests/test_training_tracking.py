from pathlib import Path
from typing import Any

import keras
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TINY, build_tiny, fit, history_of

from training import models


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    for name in ("tiny", "project1"):
        monkeypatch.setitem(models.NETWORKS, name, build_tiny)


def epochs_of(log: Path) -> list[int]:
    """Return the epochs of a log for TensorBoard, in the order of writing."""
    events = EventAccumulator(str(log))
    events.Reload()
    return [event.step for event in events.Tensors("epoch_accuracy")]


class Interruption(keras.callbacks.Callback):
    """Ends the process at an epoch, and remembers the runs and epochs."""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch, self.seen = epoch, []

    def on_epoch_end(self, epoch, logs=None):
        model: Any = self.model
        self.seen.append((model.name, epoch))
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_callbacks_see_the_remaining_epochs_of_a_resumed_run_and_do_not_change_it(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "tracked" / "best.keras"
    fit(folder, tmp_path / "plain" / "best.keras")
    first, second = Interruption(2), Interruption(99)
    with pytest.raises(KeyboardInterrupt):
        fit(folder, model_file, callbacks=[first])
    fit(folder, model_file, callbacks=[second])
    (run,) = (tmp_path / "tracked" / "runs").glob("best-*/")
    assert first.seen + second.seen == [(run.name, epoch) for epoch in range(TINY.epochs)]
    for row, expected in zip(history_of(tmp_path / "tracked"), history_of(tmp_path / "plain"), strict=True):
        assert {n: float(v) for n, v in row.items()} == pytest.approx({n: float(v) for n, v in expected.items()})


def test_run_has_its_log_for_tensorboard(make_dataset, tmp_path, run_step):
    folder = make_dataset()
    command = ["training.step1_baseline", "--dataset", folder.name, "--data", folder.parent]
    command += ["--models", tmp_path / "models", "--epochs", 2]
    done = run_step(*command, "--tensorboard", tmp_path / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "models" / folder.name / "runs").glob("baseline_project1-*/")
    assert [log.name for log in (tmp_path / "logs").iterdir()] == [run.name]
    assert all(epochs_of(tmp_path / "logs" / run.name / part) == [0, 1] for part in ("train", "validation"))
    (tmp_path / "file").touch()
    done = run_step(*command, "--tensorboard", tmp_path / "file", "--force")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("step", "function"),
    [
        ("training.step2_tuning", "training.tuning.tune"),
        ("training.step3_best_model", "training.trainer.train_network"),
        ("training.step3_best_model --folds 3", "training.step3_best_model.fit_folds"),
        ("training.step4_sequence_model", "training.sequences.trainer.fit_sequences"),
        ("training.step4_sequence_model --folds 3", "training.sequences.trainer.fit_sequence_folds"),
        ("training.teachers", "training.trainer.train_network"),
    ],
)
def test_every_training_command_hands_the_log_over(make_dataset, tmp_path, run_step, monkeypatch, step, function):
    given: list[Any] = []
    module, *options = step.split()
    monkeypatch.setattr(function, lambda *args, **named: given.append([*args, named.get("callbacks")]))
    monkeypatch.setattr(f"{module}.check_number", lambda *_: None, raising=False)
    folder = make_dataset()
    done = run_step(module, "--dataset", folder.name, "--data", folder.parent, "--tensorboard", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert given and all([c.folder for c in (call[-1] or call[-2])] == [tmp_path] for call in given)
