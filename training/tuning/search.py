"""Run trials in an Optuna study that any number of processes share."""

import gc
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pandas as pd
import sqlalchemy.engine
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from common.command_line import counted
from common.errors import INSTALL_DISTRIBUTED, InputError
from common.logging import silence_retracing
from common.urls import redacted
from configuration import TrainingConfig, TuningConfig
from preprocessing.tables import is_usable, split_hash
from training import models
from training.augmentation import full_images_last
from training.data import FaceBatches
from training.data.splits import own_hashes, read_batches
from training.runs import MONITOR
from training.settings import check_ranges, check_settings, settings_from_json, settings_to_json, shortened, tuned_file
from training.trainer import build_trainer, choose_precision
from training.tuning.report import FINISHED, best_trial, describe, results_folder, write_results, write_table
from training.tuning.space import search_space, settings_of, start_params, suggest

MAX_PARAMETERS = 2_400_000  # a larger network is pruned before its first epoch
MIN_EPOCHS = 2  # before a trial may be pruned
REDUCTION_FACTOR = 3  # of Hyperband: the best third of the trials continues
HEARTBEAT = 60  # seconds; after three missed heartbeats a trial is stale
MAX_RETRIES = 2  # of the parameters of a stale trial


def tune(
    table: pd.DataFrame,
    folder: Path,
    models_folder: Path,
    base: TrainingConfig,
    tuning: TuningConfig,
    command: str,
    storage: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Run the search, and write `tuned.json`, and `tuning/` with the table of the trials and plots.

    A search by votes writes `tuned-votes.json` and `tuning-votes/` instead.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        models_folder: Folder of the data set's networks and of the study, `tuning.db`.
        base: The configured settings: trial 0, and whatever the search does not change.
        tuning: The budget.
        command: The typed command, for `tuned.json`.
        storage: URL of another database for the study.
        callbacks: Further Keras callbacks of each trial; `callback.model.name` is `trial-NUMBER`.

    Raises:
        InputError: A setting is not accepted, or the storage fails or has a study with other facts.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    silence_retracing()
    check_ranges(tuning, {"trials": (1, 1e9), "train_images": (0, 1e9)})
    trial_base = shortened(replace(base, epochs=tuning.epochs, seed=tuning.seed))
    check_settings(trial_base, models.NETWORKS)
    if base.teachers:
        raise InputError("a search does not support teachers; leave them out of BEST")
    part = subsample(table, tuning.train_images, tuning.seed)
    train, dev, about = read_batches(part, folder, trial_base)
    facts = {
        "split_hash": split_hash(table),  # of all images, as in the other steps
        "crops": about["crops"],
        "targets": base.targets,
        "votes_hash": about["votes_hash"],
        "train_images": len(train.rows),
        "epochs": tuning.epochs,
        "seed": tuning.seed,
        "base": settings_to_json(replace(trial_base, epochs=1, seed=0)),
    }
    if about["weights_hash"]:
        facts["weights_hash"] = about["weights_hash"]
    file = tuned_file(models_folder, base.targets)
    models_folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{models_folder / 'tuning.db'}" if storage is None else storage
    with storage_errors(url):
        study = open_study(f"{folder.name}-{base.targets}", url, trial_base, facts)
        print(
            f"study {study.study_name} in {shown(url)}: {_finished(study)} of {counted(tuning.trials, 'trial')} "
            f"finished; {len(train.rows)} train, {counted(len(dev.rows), 'dev image')}, up to "
            f"{counted(tuning.epochs, 'epoch')} each",
            flush=True,
        )
        if _finished(study) < tuning.trials:
            settled = replace(trial_base, precision=choose_precision(train, trial_base))

            def run_trial(trial: optuna.Trial) -> float:
                config = settings_of(trial.params, settled)
                trial.set_user_attr("precision", config.precision)
                batches, dev_batches, _ = read_batches(part, folder, config)
                return train_trial(trial, batches, dev_batches, config, callbacks)

            search(study, tuning, search_space(trial_base), run_trial, lambda: write_table(study, results_folder(file)))
        found = {"dataset": folder.name, **{name: facts[name] for name in ("split_hash", "targets")}}
        found |= {"command": _without_password(command, url), "train_images": len(train.rows)}
        found |= {"dev_images": len(dev.rows), "epochs": tuning.epochs, "seed": tuning.seed}
        best = best_trial(study)
        settings = settings_of(best.params, base) if best else None
        images = own_hashes(part, folder, base.targets)
        write_results(study, settings, start_params(trial_base), found, images, file)


def open_study(name: str, url: str, base: TrainingConfig, facts: dict[str, Any]) -> optuna.Study:
    """Return a study, new or as other processes left it, with trial 0 enqueued.

    Args:
        name: Name of the study.
        url: URL of its database.
        base: The settings of trial 0.
        facts: What all trials of a study have in common.

    Raises:
        InputError: The URL is not accepted, or the database has a study with other facts.
    """
    if url in ("", "sqlite://", "sqlite:///", "sqlite:///:memory:"):
        raise InputError(f"--storage {url!r} keeps nothing; give the URL of a database, such as sqlite:///tuning.db")
    space = {key: optuna.distributions.distribution_to_json(value) for key, value in search_space(base).items()}
    facts = json.loads(json.dumps({**facts, "space": space}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        store = RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
            heartbeat_interval=HEARTBEAT,
            grace_period=3 * HEARTBEAT,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
        )
    pruner = optuna.pruners.HyperbandPruner(min(MIN_EPOCHS, base.epochs), base.epochs, REDUCTION_FACTOR)
    study = optuna.create_study(
        study_name=name, storage=store, load_if_exists=True, direction="maximize", pruner=pruner
    )
    study.set_user_attr("facts", study.user_attrs.get("facts", facts))
    known = study.user_attrs["facts"]
    if "base" in known:
        with suppress(InputError):  # a study of an earlier version lacks new settings
            known = {**known, "base": settings_to_json(settings_from_json(known["base"]))}
    if other := [key for key in {**known, **facts} if known.get(key) != facts.get(key)]:
        before, now = known.get(other[0]), facts.get(other[0])
        values = f"{_unlike(before, now)!s:.60}, not {_unlike(now, before)!s:.60}"
        raise InputError(
            f"the study {name} in {shown(url)} has other {', '.join(other)} ({values}); give the same, or move the "
            "study away"
        )
    start = start_params(base)
    planned = [t.system_attrs.get("fixed_params", t.params) for t in study.trials if t.state != TrialState.FAIL]
    if start not in planned:
        study.enqueue_trial(start)
    return study


def _unlike(value: Any, other: Any) -> Any:
    """Return a JSON value; of an object, only the entries that are missing or different in the other one."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return value
    return {name: part for name, part in value.items() if name not in other or other[name] != part}


def search(
    study: optuna.Study,
    tuning: TuningConfig,
    space: dict[str, BaseDistribution],
    run_trial: Callable[[optuna.Trial], float],
    after_trial: Callable[[], None],
) -> None:
    """Run trials until the study has its number of finished trials, or the time is over.

    Processes count finished trials only, so together they may exceed the budget by their number minus one.

    Args:
        study: As `open_study` returns it.
        tuning: The budget.
        space: The searched parameters.
        run_trial: Trains a trial, reports each epoch, and returns the best dev accuracy.
        after_trial: Called after every trial of this process.
    """

    def objective(trial: optuna.Trial) -> float:
        # One seed for all trials would repeat its first draws in every process and after a restart.
        seed = np.random.default_rng([tuning.seed, trial.number]).integers(1 << 31)
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        for name, distribution in space.items():
            suggest(trial, name, distribution)
        return run_trial(trial)

    def report(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        print(describe(study, trial), flush=True)

    while _finished(study) < tuning.trials:
        try:
            study.optimize(objective, n_trials=1, callbacks=[report])
        except ValueError as error:
            if not str(error).startswith("Cannot tell a "):
                raise
            print("this process was suspended; another process repeats its trial", flush=True)
        after_trial()


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of the study's database into one line, without the password of its URL.

    Raises:
        InputError: The database cannot be used or fails.
    """
    try:
        yield
    except ImportError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"--storage {shown(url)} needs a driver that is not installed ({reason}); for postgresql+psycopg:// "
            f"{INSTALL_DISTRIBUTED}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
        reason = _without_password(str(cause or error).splitlines()[0], url)
        raise InputError(
            f"--storage {shown(url)} cannot be used ({reason}); finished trials are kept: run the same command again "
            "when it works, or give another URL, such as sqlite:///tuning.db or postgresql+psycopg://user@host/tuning"
        ) from None


def shown(url: str) -> str:
    """Return a database URL without credentials, for everything that is printed or written."""
    return url if url.startswith("sqlite:///") else redacted(url)


def _without_password(text: str, url: str) -> str:
    """Return a text without the credentials of a database URL that it may quote."""
    text = text.replace(url, shown(url))
    try:
        address = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        return text
    secrets = [address.password, *(value for value in address.query.values() if isinstance(value, str))]
    for secret in filter(None, map(str, filter(None, secrets))):
        text = text.replace(secret, "***")
    return text


class Pruning(keras.callbacks.Callback):
    """Report the best dev accuracy after each epoch, and stop the trial if it is pruned or diverges.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: optuna.Trial):
        super().__init__()
        self.trial = trial
        self.best = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Report; `epoch` counts from 0."""
        metrics = logs or {}
        self.best = max(self.best, float(metrics[MONITOR]))
        self.trial.report(self.best, epoch + 1)
        if not np.isfinite(metrics["val_loss"]):
            self.trial.set_user_attr("diverged", True)
            raise optuna.TrialPruned
        if self.trial.should_prune():
            raise optuna.TrialPruned


def train_trial(
    trial: optuna.Trial,
    train: FaceBatches,
    dev: FaceBatches,
    config: TrainingConfig,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Train with the settings of a trial and return the best dev accuracy; nothing is saved.

    Raises:
        optuna.TrialPruned: The network has too many parameters, it diverged, or other trials are better.
    """
    keras.utils.set_random_seed(config.seed)
    network, trainer = build_trainer(train, config)
    trainer.name = f"trial-{trial.number}"
    trial.set_user_attr("parameters", network.count_params())
    pruning = Pruning(trial)
    silent: Any = 0
    try:
        if network.count_params() > MAX_PARAMETERS:
            raise optuna.TrialPruned
        trainer.fit(
            train,
            validation_data=dev,
            epochs=config.epochs,
            callbacks=[*full_images_last(config.augmentation, config.epochs), *callbacks, pruning],
            shuffle=False,
            verbose=silent,
        )
    finally:
        del network, trainer
        keras.utils.clear_session()  # or the graphs of all trials stay in memory
        gc.collect()
    return pruning.best


def subsample(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return the table with a random subset of `count` usable training rows; 0: all rows."""
    training = table.index[is_usable(table) & (table["split"] == "train")]
    if not 0 < count < len(training):
        return table
    left_out = np.random.default_rng(seed).permutation(training.to_numpy())[count:]
    return table.loc[~table.index.isin(left_out)]
