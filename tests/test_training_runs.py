import json
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import files_of_at_most, spoil_longest_member
from tiny_training import TINY, build_tiny, fit, history_of

from common.errors import InputError
from common.processes import exclusive_lock
from configuration import NO_AUGMENTATION, TrainingConfig
from inference.lineage import hashes_file
from inference.model_card import card_path
from training import models
from training.runs import saving


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", build_tiny)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:30])


DAMAGES = (
    lambda run: cut(run / "run.json"),
    lambda run: (run / "run.json").write_text("{}"),
    lambda run: (run / "history.csv").write_text("epoch,val_accuracy,val_loss\n" + "1,0.5,1\n" * 6),
    lambda run: cut(*run.glob("state-*")),
    lambda run: spoil_longest_member(*run.glob("state-*")),
    lambda run: spoil_longest_member(*run.glob("best-*")),
    lambda run: next(run.glob("best-*")).write_bytes(next(run.glob("state-*")).read_bytes()),
    lambda run: next(run.glob("best-*")).unlink(),
)


def test_refuses_a_run_folder_that_is_damaged_or_in_use(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    fit(folder, model_file)
    model_file.unlink()
    (run,) = tmp_path.glob("models/runs/best-*")
    shutil.copytree(run, tmp_path / "whole")
    with exclusive_lock(run), pytest.raises(InputError, match=r"in use by process .* another --output"):
        fit(folder, model_file)
    for damage in DAMAGES:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "whole", run)
        damage(run)
        with pytest.raises(InputError, match=r"the run in .*best-.* is damaged .*; remove that folder"):
            fit(folder, model_file)
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "whole", run)
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"backend": "torch"}))
    with pytest.raises(InputError, match=r"started with Keras on torch, .* set KERAS_BACKEND=torch"):
        fit(folder, model_file)


@pytest.mark.figures
def test_run_ends_like_an_uninterrupted_one_after_full_disks_and_a_kill(
    make_dataset, tmp_path, monkeypatch, capsys
):  # with `capsys`, what is printed is in no file that the limit concerns
    folder, model_file = make_dataset(), tmp_path / "resumed" / "best.keras"
    config = replace(TINY, epochs=3)
    fit(folder, tmp_path / "straight" / "best.keras", config)
    replace_file = Path.replace

    def die_before_rename(file, target):
        if target.name.startswith("state-0002"):
            raise KeyboardInterrupt  # between writing and renaming the state
        return replace_file(file, target)

    def fill_the_disk(size: int, name: str) -> None:
        with files_of_at_most(size), pytest.raises(OSError, match="File too large") as caught:
            fit(folder, model_file, config)
        assert Path(caught.value.filename).name == name and not list(tmp_path.glob("resumed/**/.*"))
        assert not model_file.exists() and not card_path(model_file).exists()

    fill_the_disk(500, "run.json")
    fill_the_disk(2500, "state-0001.npz")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_before_rename)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, model_file, config)
    fill_the_disk(30_000, "curves.png")
    assert fit(folder, model_file, config)
    for row, expected in zip(history_of(tmp_path / "resumed"), history_of(tmp_path / "straight"), strict=True):
        assert {n: float(v) for n, v in row.items()} == pytest.approx({n: float(v) for n, v in expected.items()}), row


def test_full_disk_keeps_an_earlier_network_and_card(tiny_model):
    file = tiny_model()
    files = [file, card_path(file), hashes_file(file)]
    before = [path.read_bytes() for path in files]
    for size, failing in ((file.stat().st_size // 2, file), (100, card_path(file))):
        with files_of_at_most(size), pytest.raises(OSError, match="File too large") as caught:
            tiny_model(labels=("fear", "anger", "disgust"))
        assert caught.value.filename == str(failing)
    assert [path.read_bytes() for path in files] == before and len(list(file.parent.iterdir())) == 3


def test_forced_training_starts_again_and_resumes_after_interruption(make_dataset, tmp_path, monkeypatch, capsys):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"

    def train(**options) -> bool:
        return fit(folder, model_file, replace(TINY, epochs=1), **options)

    train()
    assert not train()
    old = card_path(model_file).read_bytes()
    replace_file = Path.replace

    def fail_at_the_end(file, target):
        if target == model_file:
            raise KeyboardInterrupt
        return replace_file(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_at_the_end)
        capsys.readouterr()
        with pytest.raises(KeyboardInterrupt):
            train(force=True)
    assert "5/5 - " in (printed := capsys.readouterr().out) and "resuming" not in printed
    assert train() and "resuming after epoch 1 of 1" in (printed := capsys.readouterr().out)
    assert "\n1 epoch (" in printed
    new = json.loads(card_path(model_file).read_text())
    assert new["run"] == json.loads(old)["run"] and new["started"] > json.loads(old)["started"]
    assert not train()


@pytest.mark.parametrize(
    ("tau", "rate", "metric", "sign"), [(0.0, TINY.learning_rate, "val_accuracy", 1), (1.0, 0.2, "val_loss", -1)]
)
def test_early_stopping_by_patience(make_dataset, tmp_path, tau, rate, metric, sign):
    folder = make_dataset()
    config = replace(
        TINY, epochs=60, patience=3, augmentation=NO_AUGMENTATION, logit_adjustment=tau, learning_rate=rate
    )
    fit(folder, tmp_path / "models" / "best.keras", config)
    merits = [sign * float(row[metric]) for row in history_of(tmp_path / "models")]
    assert len(merits) < 60 and len(merits) - 1 - int(np.argmax(merits)) == 3


def test_diverged_training_saves_nothing(make_dataset, tmp_path, monkeypatch):
    def build_diverging(input_shape, classes):
        inputs = keras.Input(input_shape, dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.Rescaling(1e30)(inputs))
        return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", dtype="float32")(x))

    monkeypatch.setitem(models.NETWORKS, "diverging", build_diverging)
    config = TrainingConfig(network="diverging", epochs=2, optimizer="sgd", learning_rate=9.0, precision="float32")
    with pytest.raises(InputError, match=r"diverged.*smaller learning rate"):
        fit(make_dataset(), tmp_path / "models" / "best.keras", config)
    assert not list((tmp_path / "models").glob("*.keras"))


def test_runs_with_one_output_do_not_save_at_the_same_time(tmp_path):
    from filelock import FileLock, Timeout

    with saving(tmp_path / "best.keras"), pytest.raises(Timeout):
        FileLock(tmp_path / "runs" / "best.lock").acquire(timeout=0.1)
