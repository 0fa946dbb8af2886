import csv
import json
import shutil
import sqlite3
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import optuna
import pytest
from conftest import files_of_at_most
from optuna.distributions import CategoricalDistribution
from tiny_training import build_tiny, history_of

from common.errors import InputError
from configuration import BEST, TrainingConfig, TuningConfig
from preprocessing.tables import read_table, usable, write_table
from training import models
from training.settings import read_settings, settings_to_json
from training.trainer import train_network
from training.tuning import search as tuning_search
from training.tuning import tune
from training.tuning.report import FINISHED
from training.tuning.search import open_study, search, shown, storage_errors, subsample
from training.tuning.space import SPACE, search_space, settings_of, start_params

QUICK = TuningConfig(trials=3, epochs=4)
BASE = TrainingConfig(network="tiny", batch_size=8, learning_rate=5e-3, precision="float32")


@pytest.fixture(autouse=True)
def tiny_search(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", build_tiny)
    monkeypatch.setitem(SPACE, "batch_size", CategoricalDistribution((8, 16, 128)))


def study_in(folder: Path, **facts) -> optuna.Study:
    return open_study("faces-labels", f"sqlite:///{folder / 'tuning.db'}", BASE, facts)


def run_search(study: optuna.Study, run_trial, tuning: TuningConfig = QUICK) -> None:
    search(study, tuning, search_space(BASE), run_trial, lambda: None)


def accuracy_of(trial: optuna.Trial) -> float:
    trial.report(trial.params["dropout"], 1)
    return trial.params["dropout"]


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def test_search_space_contains_configured_settings():
    params = start_params(BEST)
    assert settings_of(params, BEST) == BEST and set(search_space(BEST)) == set(params)
    assert set(search_space(replace(BEST, targets="votes"))) == set(params) - {"label_smoothing"}
    with pytest.raises(InputError, match=r"dropout 0\.9 is not in the search space"):
        search_space(replace(BEST, dropout=0.9))


def test_factors_scale_configured_augmentation():
    settings = settings_of(start_params(BEST) | {"augmentation": 0.5, "small_erasing": 3, "width": 16}, BEST)
    assert settings.filters == (16, 32, 64, 128)
    found, configured = settings.augmentation, BEST.augmentation
    assert (found.rotation, found.shift, found.brightness) == (5.5, 2.0, 10.0)
    assert found.small_erasing_size == (18, 6) and (found.flip, found.crop) == (True, configured.crop)
    assert settings_of(start_params(BEST) | {"small_erasing": 0}, BEST).augmentation.small_erasing_count == 0


def test_finds_settings_and_writes_them_with_table_and_plots(make_dataset, tmp_path, capsys):
    folder, models_folder = make_dataset(), tmp_path / "models" / "stripes"
    table = read_table(folder, "split.csv")
    tune(table, folder, models_folder, BASE, replace(QUICK, trials=2), "python -m some.step")
    runs: list[str] = []
    names: Any = keras.callbacks.LambdaCallback(on_train_begin=lambda _: runs.append(names.model.name))
    tune(table, folder, models_folder, BASE, QUICK, "python -m some.step", callbacks=[names])
    assert runs == ["trial-2"]
    assert "2 of 3 trials finished" in capsys.readouterr().out
    tuned = json.loads((models_folder / "tuned.json").read_text())
    with (models_folder / "tuning" / "trials.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["dev_accuracy"]))
    found, settings = tuned["found"], read_settings(models_folder / "tuned.json")
    assert found["dev_accuracy"] == pytest.approx(float(best["dev_accuracy"])) and found["dataset"] == "stripes"
    assert sum(found["trials"].values()) == 3 and found["command"] == "python -m some.step"
    chosen = rows[found["best_trial"]]
    assert settings.learning_rate == pytest.approx(float(chosen["learning_rate"]))
    assert (settings.epochs, settings.seed, settings.precision) == (BASE.epochs, BASE.seed, BASE.precision)
    assert len({row["learning_rate"] for row in rows}) == 3
    for plot in ("history", "parallel_coordinates"):
        assert (models_folder / "tuning" / f"{plot}.png").is_file()
    # Trial 0 is the configured network, and trains as the training step does.
    train_network(table, folder, tmp_path / "best.keras", replace(BASE, epochs=QUICK.epochs, seed=QUICK.seed), "python")
    expected = max(float(row["val_accuracy"]) for row in history_of(tmp_path))
    assert float(rows[0]["learning_rate"]) == BASE.learning_rate and rows[0]["state"] == "complete"
    assert float(rows[0]["dev_accuracy"]) == pytest.approx(expected, abs=1 / 12 + 1e-6)  # other random numbers
    with pytest.raises(InputError, match=r"other epochs \(4, not 5\)"):
        tune(table, folder, models_folder, BASE, replace(QUICK, epochs=5), "python")
    table.loc[table.index[0], "split"] = ""
    write_table(table, folder / "split.csv")
    with pytest.raises(InputError, match="other split_hash"):
        tune(table, folder, models_folder, BASE, QUICK, "python")


def test_votes_have_their_own_study_and_passwords_are_not_written(make_dataset, tmp_path, monkeypatch, capsys):
    folder, secret = make_dataset(), "postgresql://me:hunter2@host/tuning?sslpassword=hunter3"
    table, store = read_table(folder, "split.csv"), optuna.storages.InMemoryStorage()
    for emotion in ("anger", "happiness", "neutral"):
        table[f"votes_{emotion}"] = 10 * (table["emotion"] == emotion)
    (tmp_path / "tuned.json").write_text("by labels")
    monkeypatch.setattr(tuning_search, "RDBStorage", lambda *_, **__: store)

    def run() -> None:
        command, once = f"python -m training.step2_tuning --storage '{secret}'", replace(QUICK, trials=1, epochs=1)
        tune(table, folder, tmp_path, replace(BASE, targets="votes"), once, command, secret)

    run()
    assert (tmp_path / "tuned.json").read_text() == "by labels"
    assert read_settings(tmp_path / "tuned-votes.json").targets == "votes"
    written = [(tmp_path / name).read_text() for name in ("tuned-votes.json", "tuning-votes/trials.csv")]
    assert len(written[1].splitlines()) == 2
    assert "--storage 'postgresql://" in json.loads(written[0])["found"]["command"]
    assert not any(word in text for text in (*written, *capsys.readouterr()) for word in ("hunter2", "hunter3"))
    table["votes_neutral"] += 3
    with pytest.raises(InputError, match="other votes_hash"):
        run()


@pytest.mark.parametrize(
    "wrong",
    [{"trials": 0}, {"epochs": 0}, {"train_images": -1}, {"seed": -1}],
)
def test_refuses_budgets_out_of_range(make_dataset, tmp_path, wrong):
    folder = make_dataset()
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        tune(read_table(folder, "split.csv"), folder, tmp_path / "models", BASE, replace(QUICK, **wrong), "python")
    assert not (tmp_path / "models").exists()


def test_subsample_is_reproducible_and_keeps_dev(make_dataset):
    table = read_table(make_dataset(), "split.csv")
    table.loc[table.index[[0, 3]], "face_status"] = "no_face"  # usable rows then have other numbers
    part = subsample(table, 10, seed=3)
    assert usable(part)["split"].value_counts().to_dict() == {"train": 10, "dev": 12, "test": 12}
    assert list(subsample(table, 10, seed=3).index) == list(part.index) != list(subsample(table, 10, seed=4).index)
    assert subsample(table, 0, seed=3) is table and subsample(table, 10_000, seed=3) is table


# ---------------------------------------------------------------- storage


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:///", "nonsense", "sqlite:////no/such/folder/tuning.db"),
        "mysql+none://me:hunter2@host/x?password=hunter2",
    ],
)
def test_refuses_unusable_storage_without_showing_password(url):
    with pytest.raises(InputError, match=r"--storage .* (cannot be used|keeps nothing)") as caught:
        with storage_errors(url):
            open_study("faces-labels", url, BASE, {})
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None and "hunter2" not in shown(url)


def test_study_of_an_earlier_version_goes_on_and_another_one_is_refused_with_the_difference(tmp_path):
    base = settings_to_json(BASE)
    study = study_in(tmp_path, base=base)
    earlier = {name: value for name, value in base.items() if name != "first_layer_rate"}
    study.set_user_attr("facts", study.user_attrs["facts"] | {"base": earlier})
    assert len(study_in(tmp_path, base=base).trials) == 1
    message = r"has other base \(\{'batch_size': 8\}, not \{'batch_size': 16\}\); give the same, or move"
    with pytest.raises(InputError, match=message):
        study_in(tmp_path, base=base | {"batch_size": 16})


def test_missing_driver_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    url = "postgresql+psycopg://me:hunter2@host/tuning"
    with pytest.raises(
        InputError, match=r"needs a driver .*psycopg.*install -r requirements-distributed\.txt"
    ) as caught:
        with storage_errors(url):
            open_study("faces-labels", url, BASE, {})
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_full_disk_or_damaged_database_is_one_line_and_search_continues_later(tmp_path):
    study = study_in(tmp_path)
    run_search(study, accuracy_of, replace(QUICK, trials=1))
    size = (tmp_path / "tuning.db").stat().st_size
    with files_of_at_most(size), pytest.raises(InputError, match=r"cannot be used .*finished trials are kept"):
        with storage_errors("sqlite:///tuning.db"):
            run_search(study_in(tmp_path), lambda trial: trial.set_user_attr("big", "x" * 9000) or accuracy_of(trial))
    run_search(study := study_in(tmp_path), accuracy_of)
    assert len(study.get_trials(states=FINISHED)) == 3
    (tmp_path / "tuning.db").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match="cannot be used"), storage_errors("sqlite:///tuning.db"):
        study_in(tmp_path)


def test_processes_share_one_budget_and_never_repeat_parameters(tmp_path):
    study_in(tmp_path)

    def slow(trial: optuna.Trial) -> float:
        time.sleep(0.1)
        return accuracy_of(trial)

    tuning = replace(QUICK, trials=8)
    threads = [threading.Thread(target=lambda: run_search(study_in(tmp_path), slow, tuning)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finished = study_in(tmp_path).get_trials(states=FINISHED)
    assert 8 <= len(finished) <= 10
    assert len({trial.params["learning_rate"] for trial in finished}) == len(finished)


@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError])
def test_interrupted_trial_0_is_enqueued_again(tmp_path, end):
    def interrupted(trial: optuna.Trial) -> float:
        raise end

    with pytest.raises(end):
        run_search(study_in(tmp_path), interrupted)
    study = study_in(tmp_path)
    assert states(study) == ["FAIL", "WAITING"]
    run_search(study, accuracy_of)
    params = [trial.params for trial in study.get_trials()]
    assert params[1] == params[0] == start_params(BASE) and len(study.get_trials(states=FINISHED)) == 3


def test_trial_taken_over_by_another_process_is_dropped(tmp_path, capsys):
    study = study_in(tmp_path)

    def overtaken(trial: optuna.Trial) -> float:
        if trial.number == 0:  # another process declares it stale, as after this one was suspended
            study_in(tmp_path).tell(0, state=optuna.trial.TrialState.FAIL)
        return accuracy_of(trial)

    run_search(study, overtaken, replace(QUICK, trials=1))
    assert states(study) == ["FAIL", "COMPLETE"] and "another process" in capsys.readouterr().out


def test_parameters_of_killed_process_are_tried_again(tmp_path):
    (tmp_path / "killed").mkdir()

    def copied(trial: optuna.Trial) -> float:
        """Copy the database during trial 1: what a killed process leaves."""
        if trial.number == 1:
            deadline = time.monotonic() + 60
            while not heartbeats("tuning.db", "SELECT 1 FROM trial_heartbeats JOIN trials USING (trial_id) "
                                 "WHERE number = 1") and time.monotonic() < deadline:  # fmt: skip
                time.sleep(0.01)
            shutil.copy(tmp_path / "tuning.db", tmp_path / "killed" / "tuning.db")
        return accuracy_of(trial)

    def heartbeats(name: str, statement: str) -> list:
        with closing(sqlite3.connect(tmp_path / name)) as database, database:
            return database.execute(statement).fetchall()

    run_search(study_in(tmp_path), copied, replace(QUICK, trials=2))
    heartbeats("killed/tuning.db", "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    study = study_in(tmp_path / "killed")
    assert states(study) == ["COMPLETE", "RUNNING"]
    run_search(study, accuracy_of)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials[:2]] == ["COMPLETE", "FAIL"]
    assert trials[1].params in [trial.params for trial in trials[2:]] and len(study.get_trials(states=FINISHED)) == 3
