"""Search for better settings: one study per data set and kind of targets, shared by any number of processes.

A trial trains the network for a few epochs and is judged by its best dev accuracy. Hyperband ends poor trials early.
The study is on disk after every step. Three rules keep it right without a lock around it:

- Trial 0 is the configured network as it is, so the search never ends below its start.
- The budget counts the whole study. A process first creates its trial, which gives it a number, and then gives it back
  if the trials before it fill the budget; so no race runs one too many.
- A trial whose process died is marked as failed, by whoever notices first, and its settings are tried again. In a
  journal file a process shows that it lives by a locked file (`workers.py`); in a database, which other machines may
  share, by Optuna's heartbeats.
"""

import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pandas as pd
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from common.command_line import NO_ROOM, counted, progress_bar
from common.errors import InputError
from common.files import atomic_file
from common.logging import silence_retracing
from configuration import TrainingConfig, TuningConfig
from inference.lineage import ImageHashes, write_hashes
from preprocessing.tables import is_usable, split_hash, usable
from training.data import FaceBatches
from training.settings import settings_to_json, shortened, tuned_file
from training.trainer import MONITOR, build_trainer, check_settings, choose_precision, full_images_last, read_batches
from training.workers import Worker, is_at_work, one_at_a_time

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL = 2.0  # seconds between looks at the trials of other processes, when only those are left
UNNAMED = timedelta(minutes=1)  # a trial says at once whose it is; one that does not has lost its process
PLOTS = {"history": "plot_optimization_history", "importance": "plot_param_importances",
         "parallel_coordinates": "plot_parallel_coordinate"}  # fmt: skip


class WithdrawnError(Exception):
    """The budget was full when this trial was created."""


class JournalLock(JournalFileOpenLock):
    """A journal's lock, under which a half line at the journal's end is cut.

    A full disk or a power failure leaves one; the next line would go on in it, and no process could read it any more.

    Args:
        journal: The file.
    """

    def __init__(self, journal: Path):
        super().__init__(str(journal))  # symbolic links, the other kind of lock, need rights on Windows
        self.journal = journal

    def acquire(self) -> bool:
        """Wait for the lock, then mend the journal."""
        taken = super().acquire()
        with self.journal.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 1, 0))
            if stream.read() not in (b"", b"\n"):  # one byte, so that a long journal is no slower
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
        return taken


def search_space(base: TrainingConfig, tuning: TuningConfig) -> dict[str, BaseDistribution]:
    """Return what is searched, by name."""
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(*tuning.learning_rate, log=True),
        "schedule": CategoricalDistribution(tuning.schedules),
        "warmup_epochs": IntDistribution(tuning.warmup_epochs[0], min(tuning.warmup_epochs[1], tuning.epochs - 1)),
        "beta_1": FloatDistribution(*tuning.beta_1),
        "beta_2": CategoricalDistribution(tuning.beta_2),
        "weight_decay": FloatDistribution(*tuning.weight_decay, log=True),
        "batch_size": CategoricalDistribution(tuning.batch_sizes),
        "width": IntDistribution(*tuning.width[:2], step=tuning.width[2]),
        "convolutions": IntDistribution(*tuning.convolutions),
        "dropout": FloatDistribution(*tuning.dropout),
        "augmentation": FloatDistribution(*tuning.augmentation),
        "small_erasing_count": IntDistribution(*tuning.small_erasing_count),
    }
    if base.targets == "labels":  # votes are soft already
        space["label_smoothing"] = FloatDistribution(*tuning.label_smoothing)
    return space


def start_params(base: TrainingConfig, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Return the values that stand for the configured settings themselves."""
    values = {**vars(base), "width": base.filters[0], "augmentation": 1.0, "small_erasing_count": 1}
    return {name: values[name] for name in space}


def settings_of(params: dict[str, Any], base: TrainingConfig) -> TrainingConfig:
    """Return the settings that a trial's values stand for."""
    values = dict(params)
    width, strength, small_erasing_count = (
        values.pop(name) for name in ("width", "augmentation", "small_erasing_count")
    )
    options = base.augmentation
    return replace(
        base,
        **values,
        filters=tuple(round(filters * width / base.filters[0]) for filters in base.filters),
        augmentation=replace(
            options,
            **{name: getattr(options, name) * strength for name in
               ("rotation", "zoom", "shift", "contrast", "brightness")},
            small_erasing_count=options.small_erasing_count if small_erasing_count else 0,
            small_erasing_length=options.small_erasing_length * max(small_erasing_count, 1),
            small_erasing_width=options.small_erasing_width * max(small_erasing_count, 1),
        ),
    )  # fmt: skip


class NumberedSampler(optuna.samplers.BaseSampler):
    """Optuna's TPE, seeded anew by each trial's number; trial 0 takes the given values.

    A plain seeded sampler would repeat its first draws in every process and after every restart.

    Args:
        seed: Seed of the study.
        start: Values of trial 0.
        space: What is searched.
    """

    def __init__(self, seed: int, start: dict[str, Any], space: dict[str, BaseDistribution]):
        self.seed, self.start, self.space = seed, start, space
        self.tpe = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the trial's draws."""
        seed = int(np.random.default_rng([self.seed, trial.number]).integers(1 << 31))
        self.tpe = optuna.samplers.TPESampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        return self.space if self._is_start(trial) else self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the values of one trial."""
        return self.start if self._is_start(trial) else self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value by itself."""
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)

    def _is_start(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("again", trial.number) == 0


def open_study(
    name: str, storage: str | Path, base: TrainingConfig, tuning: TuningConfig, facts: dict[str, Any]
) -> optuna.Study:
    """Return the study of this name, new or as other processes left it.

    Args:
        name: Of the study; the same for all who share it.
        storage: A journal file, or a database's URL.
        base: The settings of trial 0, which the others change.
        tuning: Budget and ranges.
        facts: What every trial of a study has in common.

    Raises:
        InputError: the storage cannot be used, or holds a study with other facts.
    """
    if storage in ("", "sqlite://", "sqlite:///", "sqlite:///:memory:"):
        raise InputError(f"--storage {storage!r} keeps nothing; give a database's URL such as sqlite:///tuning.db")
    space = search_space(base, tuning)
    facts = {**facts, "ranges": {key: optuna.distributions.distribution_to_json(d) for key, d in space.items()}}
    try:
        if isinstance(storage, Path):
            storage.parent.mkdir(parents=True, exist_ok=True)
            journal = JournalFileBackend(str(storage), JournalLock(storage))
            store: optuna.storages.BaseStorage = optuna.storages.JournalStorage(journal)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                store = optuna.storages.RDBStorage(
                    storage,
                    heartbeat_interval=tuning.heartbeat,
                    grace_period=3 * tuning.heartbeat,
                    heartbeat_stale_trial_callback=lambda study, trial: try_again(study, trial, tuning.attempts),
                )
        study = optuna.create_study(
            study_name=name,
            storage=store,
            load_if_exists=True,
            direction="maximize",
            sampler=NumberedSampler(tuning.seed, start_params(base, space), space),
            pruner=optuna.pruners.HyperbandPruner(
                min(tuning.first_check, tuning.epochs), tuning.epochs, tuning.reduction
            ),
        )
        study.set_user_attr("facts", study.user_attrs.get("facts", facts))
        known = study.user_attrs["facts"]
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        raise InputError(
            f"--storage {storage} cannot be used ({error}); give a URL such as sqlite:///tuning.db or "
            "postgresql://user@host/tuning, with its driver installed"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:  # whatever its lines hold
        raise InputError(f"{storage} is damaged ({error}); move it away to start a new study") from error
    facts = json.loads(json.dumps(facts))
    other = [key for key in {**known, **facts} if known.get(key) != facts.get(key)]
    if other:
        raise InputError(
            f"the study {name} in {storage} was made with other {', '.join(other)} "
            f"({known.get(other[0])}, not {facts.get(other[0])}); trials of both cannot be compared: give the same, "
            "or move the study away"
        )
    return study


@contextmanager
def storage_errors(place: str | Path) -> Iterator[None]:
    """Report a study that cannot be written by its place: Optuna reports only what fails after that.

    Args:
        place: The journal file, or a database's URL.

    Raises:
        OSError: a disk takes no more, with the name of the file.
        InputError: the database fails.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                raise OSError(cause.errno, cause.strerror, cause.filename or str(place)) from error
            if isinstance(cause, sqlalchemy.exc.SQLAlchemyError):
                reason = str(cause).splitlines()[0]
                raise InputError(
                    f"--storage {place} fails ({reason}); the study is kept: run the same command again when the "
                    "database takes it"
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


@dataclass
class Search:
    """One process's part in a study.

    Args:
        study: As `open_study` gives it.
        tuning: Budget and ranges.
        run_trial: Trains by a trial's values, reports every epoch, and returns the best dev accuracy.
        space: What is searched.
        workers: Folder of the signs of life, or None where the storage knows heartbeats.
        results: Called after every trial of this process.
    """

    study: optuna.Study
    tuning: TuningConfig
    run_trial: Callable[[optuna.Trial], float]
    space: dict[str, BaseDistribution]
    workers: Path | None
    results: Callable[[optuna.Study], None]

    def run(self) -> None:
        """Run trials until the study's budget is used up, also after others' deaths, or the time is over."""
        end = time.monotonic() + 60 * self.tuning.timeout if self.tuning.timeout else float("inf")
        with Worker(self.workers) if self.workers else nullcontext() as worker, progress_bar() as bar:
            shown = bar.add_task("trials", total=self.tuning.trials)
            while time.monotonic() < end:
                self._notice_deaths()
                trials = self.study.get_trials(deepcopy=False)
                finished = sum(trial.state in FINISHED for trial in trials)
                bar.update(shown, completed=finished)
                if finished >= self.tuning.trials:
                    break
                if finished + sum(trial.state == TrialState.RUNNING for trial in trials) >= self.tuning.trials:
                    time.sleep(POLL)
                else:
                    self._run_one(worker)

    def _run_one(self, worker: Worker | None) -> None:
        number, done = None, False  # of the trial; whether it was trained

        def objective(trial: optuna.Trial) -> float:
            nonlocal number, done
            number = trial.number
            if worker:
                trial.set_user_attr("worker", worker.name)
            # Those before this one cannot become more, only fewer: what passes here keeps to the budget for good.
            before = self.study.get_trials(deepcopy=False)[: trial.number]
            if sum(other.state != TrialState.FAIL for other in before) >= self.tuning.trials:
                trial.set_user_attr("withdrawn", True)
                raise WithdrawnError
            for name, distribution in self.space.items():
                suggest(trial, name, distribution)
            try:
                accuracy = self.run_trial(trial)
            except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
                done = True
                raise
            done = True
            return accuracy

        try:
            self.study.optimize(objective, n_trials=1, catch=(WithdrawnError,))
        except BaseException as error:
            if number is None:
                raise
            trial = self.study.trials[number]
            if done and isinstance(error, ValueError) and trial.state == TrialState.FAIL:
                print(
                    f"trial {number} was taken for dead by another process, which tries its settings again", flush=True
                )
                return
            if trial.state == TrialState.FAIL:  # by Ctrl-C or a full disk, say: not the fault of its settings
                try_again(self.study, trial, self.tuning.attempts)
            raise
        assert number is not None
        trial = self.study.trials[number]
        if "withdrawn" not in trial.user_attrs:
            print(describe(self.study, trial), flush=True)
            self.results(self.study)

    def _notice_deaths(self) -> None:
        """Mark the trials of dead processes as failed, and queue their settings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # by heartbeats; a journal has none
        if self.workers is None:
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name = trial.user_attrs.get("worker")
            started = trial.datetime_start or datetime.now()
            alive = is_at_work(self.workers, name) if name else datetime.now() - started < UNNAMED
            if not alive:
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue  # another process was first, or it had just finished
                try_again(self.study, trial, self.tuning.attempts)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw one of a trial's values."""
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def try_again(study: optuna.Study, trial: FrozenTrial, attempts: int) -> None:
    """Queue the settings of a trial that did not end by itself, unless they were tried too often."""
    done = trial.user_attrs.get("attempt", 1)
    if done >= attempts:
        times = counted(done, "time")
        print(f"trial {trial.number}: its process died {times}; these settings are given up", flush=True)
        return
    print(f"trial {trial.number} was left unfinished; its settings are tried again", flush=True)
    first = trial.user_attrs.get("again", trial.number)
    study.enqueue_trial(trial.params, user_attrs={"attempt": done + 1, "again": first})


def describe(study: optuna.Study, trial: FrozenTrial) -> str:
    """Return a line on a finished trial."""
    best = best_trial(study)
    seconds = trial.duration.total_seconds() if trial.duration else 0
    epochs, accuracy = counted(len(trial.intermediate_values), "epoch"), trial.value or 0
    line = f"trial {trial.number}: {trial.state.name.lower()}, dev accuracy {accuracy:.4f} after {epochs}"
    return f"{line}, {seconds:.0f} s" + (f" (best: {best.value or 0:.4f}, trial {best.number})" if best else "")


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial of the highest dev accuracy among those that ran to their end, or None."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.value or 0, default=None)


class Pruning(keras.callbacks.Callback):
    """Report each epoch's dev accuracy to the study, and end the trial where the study says so.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: optuna.Trial):
        super().__init__()
        self.trial = trial
        self.best = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Report; `epoch` counts from 0."""
        figures = logs or {}
        self.best = max(self.best, float(figures[MONITOR]))
        self.trial.report(self.best, epoch + 1)
        if not np.isfinite(figures["val_loss"]):
            self.trial.set_user_attr("diverged", True)
            raise optuna.TrialPruned
        if self.trial.should_prune():
            raise optuna.TrialPruned


def train_trial(
    trial: optuna.Trial, train: FaceBatches, dev: FaceBatches, config: TrainingConfig, largest: int
) -> float:
    """Train by a trial's settings without saving anything, and return the best dev accuracy.

    Raises:
        optuna.TrialPruned: the network has more than `largest` parameters, it diverged, or others are better.
    """
    keras.utils.set_random_seed(config.seed)
    network, trainer = build_trainer(train, config)
    trial.set_user_attr("parameters", network.count_params())
    pruning = Pruning(trial)
    silent: Any = 0
    try:
        if network.count_params() > largest:
            raise optuna.TrialPruned
        trainer.fit(
            train,
            validation_data=dev,
            epochs=config.epochs,
            callbacks=[*full_images_last(config), pruning],
            shuffle=False,
            verbose=silent,
        )
    finally:
        del network, trainer
        keras.utils.clear_session()  # or the graphs of all trials pile up
        gc.collect()
    return pruning.best


def drawn(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return the table with `count` of its usable training rows, drawn at random; 0: all."""
    training = table.index[is_usable(table) & (table["split"] == "train")]
    if not 0 < count < len(training):
        return table
    left_out = np.random.default_rng(seed).permutation(training.to_numpy())[count:]
    return table.loc[~table.index.isin(left_out)]


def tune(
    table: pd.DataFrame,
    folder: Path,
    models_folder: Path,
    base: TrainingConfig,
    tuning: TuningConfig,
    command: str,
    storage: str | None = None,
) -> None:
    """Search, and write what was found: `tuned.json`, and `tuning/` with the trials' table and plots.

    A search by crowd votes writes `tuned-votes.json` and `tuning-votes/` beside these.

    Args:
        table: The data set's `split.csv`, as `image_tables.read_table` gives it.
        folder: The data set's folder.
        models_folder: Folder of the data set's networks; the study lies there too, as `tuning.journal`.
        base: The configured settings: trial 0, and what the search does not change.
        tuning: Budget and ranges.
        command: The command that was typed, for `tuned.json`.
        storage: URL of a database that holds the study instead.

    Raises:
        InputError: a setting is not accepted, the storage cannot be used, or holds a study that cannot be gone on with.
    """
    check_budget(tuning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    silence_retracing()
    trial_base = shortened(replace(base, epochs=tuning.epochs, seed=tuning.seed))
    check_settings(trial_base)
    if base.teachers:
        raise InputError("teachers do not go with a search; leave them out of BEST")
    part = drawn(table, tuning.train_images, tuning.seed)
    train, dev, about = read_batches(part, folder, trial_base)
    about["split_hash"] = split_hash(table)  # that of all images, as every other step knows it
    images = len(train.images)
    told_apart = ("epochs", "seed", "targets")  # by entries of their own
    facts = {
        "split_hash": about["split_hash"],
        "crops": about["crops"],
        "targets": base.targets,
        "votes_hash": about["votes_hash"],
        "epochs": tuning.epochs,
        "train_images": images,
        "seed": tuning.seed,
        "base": {key: value for key, value in settings_to_json(trial_base).items() if key not in told_apart},
    }
    name = f"{folder.name}-{base.targets}"
    journal = models_folder / "tuning.journal"
    place = journal if storage is None else storage
    with storage_errors(place):
        study = open_study(name, place, trial_base, tuning, facts)
    done = sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))
    print(
        f"study {name} in {place}: {done} of {counted(tuning.trials, 'trial')} done; "
        f"{images} train, {counted(len(dev.images), 'dev image')}, up to {counted(tuning.epochs, 'epoch')} each",
        flush=True,
    )
    settled = trial_base
    if done < tuning.trials:
        settled = replace(trial_base, precision=choose_precision(train, trial_base))
    file = tuned_file(models_folder, base.targets)
    results = file.with_name(file.stem.replace("tuned", "tuning"))

    def run_trial(trial: optuna.Trial) -> float:
        config = settings_of(trial.params, settled)
        trial.set_user_attr("precision", config.precision)
        batches, dev_batches, _ = read_batches(part, folder, config)
        return train_trial(trial, batches, dev_batches, config, tuning.parameters)

    def write_trials(study: optuna.Study) -> None:
        with one_at_a_time(results / "results.lock"):
            write_table(study, results / "trials.csv")

    space = search_space(trial_base, tuning)
    with storage_errors(place):
        Search(study, tuning, run_trial, space, None if storage else results / "workers", write_trials).run()
    with one_at_a_time(results / "results.lock"):
        found = {"dataset": folder.name, "split_hash": about["split_hash"], "targets": base.targets, "command": command}
        found |= {"train_images": images, "dev_images": len(dev.images), "epochs": tuning.epochs, "seed": tuning.seed}
        images = {name: usable(part).query("split == @name")["pixel_hash"] for name in ("train", "dev")}
        hashes = ImageHashes.of(images["train"], images["dev"])
        found["images"] = hashes.content_hash
        if best_trial(study) is not None:  # else an earlier tuned.json stays, and so must its list
            write_hashes(file.with_suffix(".keras"), hashes)
        write_results(study, base, start_params(trial_base, space), found, file, results)


def check_budget(tuning: TuningConfig) -> None:
    """Refuse a budget that cannot be used.

    Raises:
        InputError: with the value and what is accepted.
    """
    for name, least in (("trials", 1), ("epochs", 1), ("train_images", 0), ("timeout", 0)):
        if not getattr(tuning, name) >= least:  # nor is "not a number" at least anything
            raise InputError(f"--{name.replace('_', '-')} {getattr(tuning, name)} is not {least} or more")


def write_table(study: optuna.Study, file: Path) -> None:
    """Write a row per trial: number, state, dev accuracy, times, and every value under its name."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if "withdrawn" not in trial.user_attrs]
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "dev_accuracy": trial.value,
            "epochs": len(trial.intermediate_values),
            "started": trial.datetime_start,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **trial.params,
            **{name: value for name, value in trial.user_attrs.items() if name != "worker"},
        }
        for trial in trials
    ]
    with atomic_file(file) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def write_results(
    study: optuna.Study,
    base: TrainingConfig,
    start_values: dict[str, Any],
    found: dict[str, Any],
    file: Path,
    folder: Path,
) -> None:
    """Write `tuned.json`, the trials' table and the plots, and say what was found."""
    write_table(study, folder / "trials.csv")
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in FINISHED}
    counts["failed"] = sum(t.state == TrialState.FAIL and "withdrawn" not in t.user_attrs for t in trials)
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    best = best_trial(study)
    if best is None:
        print(f"{said}; no trial has run to its end yet, so nothing was written but {folder / 'trials.csv'}")
        return
    start = next((t.value for t in trials if t.state == TrialState.COMPLETE and t.params == start_values), None)
    config = settings_of(best.params, base)
    about = {**found, "trials": counts, "best_trial": best.number, "dev_accuracy": best.value}
    about |= {"dev_accuracy_of_the_start": start, "created": datetime.now(UTC).date().isoformat()}
    about |= {"optuna": optuna.__version__, "chosen_by": "highest dev accuracy of any epoch of any trial"}
    with atomic_file(file) as temporary:
        text = json.dumps({"config": settings_to_json(config), "found": about}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    drawn_plots = draw_plots(study, folder)
    compared = f"; the configured settings (trial 0): {start:.4f}" if start is not None else ""
    print(
        f"{said}; best: trial {best.number} with dev accuracy {best.value:.4f}{compared}\n"
        f"settings: {file}\ntable:    {folder / 'trials.csv'}\nplots:    {', '.join(map(str, drawn_plots))}"
    )


def draw_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw the study's history, each setting's importance, and all trials as lines through their settings.

    Returns:
        The files; no importance where no two trials differ.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    files = []
    for name, function in PLOTS.items():
        if name == "importance" and len(values) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of experimental functions, and of a setting that all trials share
            axes = getattr(plots, function)(study, target_name="dev accuracy")
        for part in axes.figure.axes if name == "parallel_coordinates" else ():
            part.grid(False)  # every axis would draw its own
        axes.figure.set_size_inches(14 if name == "parallel_coordinates" else 8, 5)
        with atomic_file(folder / f"{name}.png") as temporary:
            axes.figure.savefig(temporary, dpi=120, bbox_inches="tight")
        pyplot.close(axes.figure)
        files.append(folder / f"{name}.png")
    return files
