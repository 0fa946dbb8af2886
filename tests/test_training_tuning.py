import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import keras
import optuna
import pytest
from conftest import ROOT, files_of_at_most
from optuna.trial import TrialState

from common.errors import InputError
from configuration import BEST, TUNING, TrainingConfig, TuningConfig
from preprocessing.tables import read_table, usable, write_table
from training import models
from training import trainer as training_fitting
from training.settings import read_settings
from training.tuning import Search, drawn, open_study, search_space, settings_of, start_params, storage_errors, tune

QUICK = TuningConfig(trials=4, epochs=4, first_check=1, batch_sizes=(8, 16))
BASE = TrainingConfig(network="tiny", batch_size=8, learning_rate=5e-3, precision="float32")


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    def build_tiny(input_shape, classes, dropout=0.0):
        inputs = keras.Input(input_shape, dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.AveragePooling2D(3)(keras.layers.Rescaling(1 / 255)(inputs)))
        x = keras.layers.Dropout(dropout)(x)
        return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", dtype="float32")(x))

    monkeypatch.setitem(models.NETWORKS, "tiny", build_tiny)


def study_in(storage: str | Path, tuning: TuningConfig = QUICK, **facts) -> optuna.Study:
    return open_study("faces-labels", storage, BASE, tuning, facts)


def search(study: optuna.Study, folder: Path, run_trial, tuning: TuningConfig = QUICK, workers: bool = True) -> Search:
    places = folder / "workers" if workers else None
    return Search(study, tuning, run_trial, search_space(BASE, tuning), places, lambda study: None)


def accuracy_of(trial: optuna.Trial) -> float:
    trial.report(trial.params["dropout"], 1)
    return trial.params["dropout"]


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def test_the_configured_settings_lie_in_the_searched_ranges():
    space = search_space(BEST, TUNING)
    params = start_params(BEST, space)
    assert settings_of(params, BEST) == BEST
    for name, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(params[name])), name
    assert set(search_space(replace(BEST, targets="votes"), TUNING)) == set(space) - {"label_smoothing"}


@pytest.mark.parametrize("size", [10, 700, 3000, 5000])
def test_a_study_on_a_full_disk_names_the_file_and_goes_on_later(tmp_path, capsys, size):
    journal = tmp_path / "tuning.journal"

    def run() -> optuna.Study:
        with storage_errors(journal):
            study = study_in(journal)
            search(study, tmp_path, accuracy_of).run()
        return study

    with files_of_at_most(size), pytest.raises(OSError, match="File too large") as caught:
        run()
    assert caught.value.filename == str(journal)
    assert [state for state in states(run()) if state in ("COMPLETE", "PRUNED")] == states(run())[-4:]


def test_strengths_scale_what_is_configured():
    params = start_params(BEST, search_space(BEST, TUNING)) | {
        "augmentation": 0.5,
        "small_erasing_count": 3,
        "width": 16,
    }
    settings = settings_of(params, BEST)
    assert settings.filters == (16, 32, 64, 128)
    strength = asdict(settings.augmentation)
    assert strength == {"flip": True, "rotation": 5.5, "zoom": 0.075, "shift": 2.0, "contrast": 0.1, "brightness": 10.0,
                        "small_erasing_count": 2, "small_erasing_length": 18, "small_erasing_width": 6,
                        "cutout_max_size": 0, "noise": 0.0,
                        "crop": BEST.augmentation.crop, "full_image_epoch_fraction": 0.2}  # fmt: skip
    assert settings_of(params | {"small_erasing_count": 0}, BEST).augmentation.small_erasing_count == 0


def test_finds_settings_and_writes_them_with_table_and_plots(make_dataset, tmp_path, capsys):
    folder, models_folder = make_dataset(), tmp_path / "models" / "stripes"
    table = read_table(folder, "split.csv")
    tune(table, folder, models_folder, BASE, QUICK, "python -m some.step")
    tuned = json.loads((models_folder / "tuned.json").read_text())
    with (models_folder / "tuning" / "trials.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["dev_accuracy"]))
    found, settings = tuned["found"], read_settings(models_folder / "tuned.json")
    assert found["dev_accuracy"] == pytest.approx(float(best["dev_accuracy"])) and found["dataset"] == "stripes"
    assert sum(found["trials"].values()) == 4 and found["command"] == "python -m some.step"
    chosen = rows[found["best_trial"]]
    assert settings.learning_rate == pytest.approx(float(chosen["learning_rate"]))
    assert settings.dropout == pytest.approx(float(chosen["dropout"]))
    assert (settings.epochs, settings.seed, settings.precision) == (BASE.epochs, BASE.seed, BASE.precision)
    assert float(rows[0]["learning_rate"]) == BASE.learning_rate  # the first trial is what is configured
    assert len({row["learning_rate"] for row in rows}) == 4
    for plot in ("history", "parallel_coordinates"):
        picture = cv2.imread(str(models_folder / "tuning" / f"{plot}.png"))
        assert picture is not None and min(picture.shape[:2]) > 400
    assert "4 of 4" not in capsys.readouterr().out
    tune(table, folder, models_folder, BASE, QUICK, "python -m some.step")  # nothing is left to do
    assert "4 of 4 trials done" in capsys.readouterr().out
    tune(table, folder, models_folder, BASE, replace(QUICK, trials=5), "python -m some.step")
    assert len((models_folder / "tuning" / "trials.csv").read_text().splitlines()) == 6


def test_a_trial_trains_as_the_training_step_does(make_dataset, tmp_path):
    """Trial 0 and a training of its settings reach the same accuracy: nothing of the data or the network differs."""
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    one = replace(QUICK, trials=1)
    tune(table, folder, tmp_path / "tuned", BASE, one, "python")
    training_fitting.train_network(
        table, folder, tmp_path / "best.keras", replace(BASE, epochs=one.epochs, seed=one.seed), "python"
    )
    (history,) = tmp_path.glob("runs/*/history.csv")
    with history.open(newline="") as lines:
        best = max(float(row["val_accuracy"]) for row in csv.DictReader(lines))
    found = json.loads((tmp_path / "tuned" / "tuned.json").read_text())["found"]
    assert found["dev_accuracy"] == pytest.approx(best, abs=1 / 12 + 1e-6)  # one image: the random numbers differ


def test_what_cannot_be_compared_is_refused(make_dataset, tmp_path):
    folder, models_folder = make_dataset(), tmp_path / "models" / "stripes"
    table = read_table(folder, "split.csv")
    tune(table, folder, models_folder, BASE, replace(QUICK, trials=1), "python")
    with pytest.raises(InputError, match=r"other epochs \(4, not 5\)"):
        tune(table, folder, models_folder, BASE, replace(QUICK, trials=1, epochs=5), "python")
    table.loc[table.index[0], "split"] = ""
    write_table(table, folder / "split.csv")
    with pytest.raises(InputError, match="other split_hash"):
        tune(table, folder, models_folder, BASE, replace(QUICK, trials=1), "python")


def test_labels_and_votes_are_searched_side_by_side(make_dataset, tmp_path):
    folder, models_folder = make_dataset(), tmp_path / "models" / "stripes"
    table = read_table(folder, "split.csv")
    for emotion in ("anger", "happiness", "neutral"):
        table[f"votes_{emotion}"] = 10 * (table["emotion"] == emotion)
    tune(table, folder, models_folder, BASE, replace(QUICK, trials=2, epochs=1), "python")
    labels = (models_folder / "tuned.json").read_text()
    tune(table, folder, models_folder, replace(BASE, targets="votes"), replace(QUICK, trials=1, epochs=1), "python")
    assert (models_folder / "tuned.json").read_text() == labels
    assert len((models_folder / "tuning" / "trials.csv").read_text().splitlines()) == 3
    assert read_settings(models_folder / "tuned-votes.json").targets == "votes"
    assert len((models_folder / "tuning-votes" / "trials.csv").read_text().splitlines()) == 2
    table["votes_neutral"] += 3
    with pytest.raises(InputError, match="other votes_hash"):
        tune(table, folder, models_folder, replace(BASE, targets="votes"), replace(QUICK, trials=2, epochs=1), "python")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "--trials 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"train_images": -1}, "--train-images -1"),
        ({"timeout": -1.0}, "--timeout -1"),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_budgets_that_cannot_be_used_are_refused(make_dataset, tmp_path, wrong, message):
    folder = make_dataset()
    with pytest.raises(InputError, match=message):
        tune(read_table(folder, "split.csv"), folder, tmp_path / "models", BASE, replace(QUICK, **wrong), "python")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "url", ["", "sqlite:///", "nonsense", "sqlite:////no/such/folder/tuning.db", "nodriver://host/tuning"]
)
def test_a_storage_that_cannot_be_used_is_refused(url):
    with pytest.raises(InputError, match=r"--storage .* (cannot be used|keeps nothing)"):
        study_in(url)


@pytest.mark.parametrize("lines", ['{"op_code": 4, "stu\n{}\n', "[]\n", '{"op_code": 99}\n', "7\n"])
def test_a_damaged_journal_is_refused(tmp_path, lines):
    study_in(tmp_path / "tuning.journal")
    with (tmp_path / "tuning.journal").open("a") as file:
        file.write(lines)
    with pytest.raises(InputError, match="is damaged"):
        study_in(tmp_path / "tuning.journal")


def test_a_half_line_that_a_full_disk_left_is_cut_by_whoever_writes_next(tmp_path):
    journal = tmp_path / "tuning.journal"
    study = study_in(journal)

    def half_line() -> None:
        with journal.open("a") as file:
            file.write('{"op_code":9,"wor')

    def beside_a_full_disk(trial: optuna.Trial) -> float:
        if trial.number == 1:  # another process's write ends in its middle
            half_line()
        return accuracy_of(trial)

    search(study, tmp_path, beside_a_full_disk).run()
    half_line()
    trials = study_in(journal).get_trials()
    assert [trial.params for trial in trials] == [trial.params for trial in study.get_trials()] and len(trials) == 4
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_training_images_are_drawn_once_and_dev_is_left_whole(make_dataset):
    table = read_table(make_dataset(), "split.csv")
    table.loc[table.index[[0, 3]], "face_status"] = "no_face"  # so that usable rows have other numbers
    part = drawn(table, 10, seed=3)
    assert usable(part)["split"].value_counts().to_dict() == {"train": 10, "dev": 12, "test": 12}
    assert list(drawn(table, 10, seed=3).index) == list(part.index) != list(drawn(table, 10, seed=4).index)
    assert drawn(table, 0, seed=3) is table and drawn(table, 10_000, seed=3) is table


@pytest.mark.parametrize("database", [False, True])
def test_processes_that_race_share_one_budget_and_never_try_the_same(tmp_path, database):
    storage = f"sqlite:///{tmp_path / 'tuning.db'}" if database else tmp_path / "tuning.journal"
    tuning = replace(QUICK, trials=9)
    barrier = threading.Barrier(3)

    def slow(trial: optuna.Trial) -> float:
        time.sleep(0.05)
        return accuracy_of(trial)

    searches = [search(study_in(storage, tuning), tmp_path, slow, tuning, not database) for _ in range(3)]

    def run(one: Search) -> None:
        barrier.wait()
        one.run()

    threads = [threading.Thread(target=run, args=(one,)) for one in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = study_in(storage, tuning).get_trials()
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 9 and all("withdrawn" in trial.user_attrs for trial in trials if trial not in ended)
    assert len({trial.params["learning_rate"] for trial in ended}) == 9


def test_a_trial_created_when_the_budget_was_full_is_given_back(tmp_path):
    study = study_in(tmp_path / "tuning.journal", replace(QUICK, trials=1))
    one = search(study, tmp_path, accuracy_of, replace(QUICK, trials=1))
    # Another process's trial appears after this one has counted and before it creates its own.
    other = study_in(tmp_path / "tuning.journal", replace(QUICK, trials=1)).ask()
    with one_worker(tmp_path) as worker:
        other.set_user_attr("worker", worker.name)
        one._run_one(worker)
        assert states(study) == ["RUNNING", "FAIL"] and study.trials[1].user_attrs["withdrawn"]


def one_worker(folder: Path):
    from training.workers import Worker

    return Worker(folder / "workers")


def test_settings_of_a_dead_process_are_tried_again_three_times_at_most(tmp_path):
    study = study_in(tmp_path / "tuning.journal")
    for attempt in range(3):
        trial = study.ask()
        trial.set_user_attr("worker", "a-process-that-is-gone")
        assert trial.suggest_float("dropout", 0.0, 0.6) == BASE.dropout  # trial 0, and then the same again
        assert trial.user_attrs.get("attempt", 1) == attempt + 1
        search(study, tmp_path, accuracy_of)._notice_deaths()
    assert states(study) == ["FAIL"] * 3
    search(study, tmp_path, accuracy_of, replace(QUICK, trials=2)).run()
    assert sorted(states(study)[3:]) in (["COMPLETE", "COMPLETE"], ["COMPLETE", "PRUNED"])


def test_the_trial_of_a_living_process_is_left_alone(tmp_path):
    study = study_in(tmp_path / "tuning.journal")
    with one_worker(tmp_path) as worker:
        study.ask().set_user_attr("worker", worker.name)
        search(study, tmp_path, accuracy_of)._notice_deaths()
        assert states(study) == ["RUNNING"]
    search(study, tmp_path, accuracy_of)._notice_deaths()
    assert states(study) == ["FAIL", "WAITING"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError, MemoryError, InputError])
def test_a_trial_that_something_else_than_its_settings_ended_is_queued_again(tmp_path, end):
    study = study_in(tmp_path / "tuning.journal")

    def interrupted(trial: optuna.Trial) -> float:
        raise end

    with pytest.raises(end):
        search(study, tmp_path, interrupted).run()
    assert states(study) == ["FAIL", "WAITING"]
    search(study, tmp_path, accuracy_of).run()
    params = [trial.params for trial in study.get_trials()]
    assert params[1] == params[0] == start_params(BASE, search_space(BASE, QUICK))


def test_a_defect_in_a_trial_is_not_hidden(tmp_path):
    def broken(trial: optuna.Trial) -> float:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        search(study_in(tmp_path / "tuning.journal"), tmp_path, broken).run()


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_database_notices_the_dead_by_their_heartbeats(tmp_path):
    url = f"sqlite:///{tmp_path / 'tuning.db'}"
    tuning = replace(QUICK, heartbeat=1, trials=2)
    study = study_in(url, tuning)
    dead = study.ask()  # its process shows one sign of life and no other
    study._storage.record_heartbeat(dead._trial_id)  # type: ignore[attr-defined]
    time.sleep(4.2)
    search(study_in(url, tuning), tmp_path, accuracy_of, tuning, workers=False).run()
    trials = study.get_trials()
    assert states(study)[0] == "FAIL" and trials[1].user_attrs == {"attempt": 2, "again": 0}
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 2


def test_a_trial_wrongly_taken_for_dead_is_let_go(tmp_path, capsys):
    study = study_in(tmp_path / "tuning.journal", replace(QUICK, trials=1))

    def overtaken(trial: optuna.Trial) -> float:
        if trial.number == 0:
            study_in(tmp_path / "tuning.journal", replace(QUICK, trials=1)).tell(0, state=TrialState.FAIL)
        return accuracy_of(trial)

    search(study, tmp_path, overtaken, replace(QUICK, trials=1)).run()
    assert states(study) == ["FAIL", "COMPLETE"] and "was taken for dead" in capsys.readouterr().out


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training_tuning import QUICK, search, study_in
folder = Path(sys.argv[1])
def endless(trial):
    if trial.number < 2:
        trial.report(0.5, 1)
        return 0.5
    (folder / "started").touch()
    time.sleep(60)
search(study_in(folder / "tuning.journal"), folder, endless).run()
"""


def test_a_killed_search_goes_on_where_it_was_and_tries_the_lost_trial_again(tmp_path):
    code = KILLED.format(tests=str(ROOT / "tests"))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ})
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    study = study_in(tmp_path / "tuning.journal")
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING"]
    search(study, tmp_path, accuracy_of).run()
    trials = study.get_trials()
    assert [trial.state.name for trial in trials[:3]] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 4
    assert trials[3].params == trials[2].params and trials[3].user_attrs["again"] == 2
    assert not list((tmp_path / "workers").iterdir())


def test_the_training_step_takes_tuned_settings_and_typed_options_before_them(make_dataset, tmp_path, run_step):
    folder = make_dataset()
    models_folder = tmp_path / "models" / "stripes"
    places = ("--dataset", "stripes", "--data", folder.parent, "--models", tmp_path / "models", "--epochs", 1)
    models_folder.mkdir(parents=True)
    quick = {"network": "tiny", "precision": "float32", "epochs": 9, "dropout": 0.25, "learning_rate": 0.004}
    (models_folder / "tuned.json").write_text(json.dumps({"config": quick}))
    settings = ["--settings", models_folder / "tuned.json"]
    done = run_step("training.step3_best_model", *places, *settings, "--learning-rate", 0.001)
    assert done.returncode == 0, done.stderr
    assert f"settings: {models_folder / 'tuned.json'}" in done.stdout
    used = json.loads((models_folder / "best.json").read_text())["hyperparameters"]
    assert (used["epochs"], used["learning_rate"], used["dropout"]) == (1, 0.001, 0.25)
    missing = run_step("training.step3_best_model", *places, "--settings", tmp_path / "none.json")
    assert missing.returncode == 2 and "none.json does not exist" in missing.stderr
