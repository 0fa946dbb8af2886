"""Training runs on disk: checkpoints, resume after an interruption, history and curves.

A run has its own folder, `models/DATASET/runs/NAME-KEY/`; KEY is a hash of the settings and the data. The folder has
`run.json` (both in full), `history.csv`, `curves.png`, and the weights of the best and the state of the last epoch.
An interrupted run resumes after its last complete epoch; a finished run is not repeated.
"""

import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.command_line import counted
from common.errors import InputError
from common.files import write_file
from common.processes import exclusive_lock
from configuration import TrainingConfig
from inference.keras_networks import is_whole
from inference.model_card import card_path
from training.augmentation import full_images_last

METRICS = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}  # of each epoch in history.csv
MONITOR = "val_accuracy"  # selects the best epoch without logit adjustment, and the best trial of a study
Merit = Callable[[dict[str, float]], tuple[float, ...]]  # from the metrics of an epoch; the best one has the highest


def train_or_resume(
    train: keras.utils.PyDataset,
    dev: keras.utils.PyDataset,
    model_file: Path,
    config: TrainingConfig,
    settings: dict[str, Any],
    build: Callable[[str], tuple[keras.Model, keras.Model]],
    choose_precision: Callable[[], str],
    force: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[keras.Model, dict[str, Any]] | None:
    """Train a network in a run folder, or resume an interrupted run.

    Args:
        train: Training batches, with an attribute `epoch` that determines their order.
        dev: Batches that select the epoch.
        model_file: Where the network will be saved.
        config: Settings of the run.
        settings: Everything that determines the network, as a JSON object: equal settings are the same run.
        build: Returns the network and the compiled model that trains it, for a precision.
        choose_precision: Returns the precision of a new run.
        force: Train from the first epoch, even if the run is finished.
        callbacks: Further Keras callbacks, called after an epoch is saved. `callback.model.name` is the name of the
            run. A resumed run calls them from its next epoch on.

    Returns:
        The network with the weights of its best epoch, and the card entries about the run. None if `model_file` is
        already the result of this run.

    Raises:
        InputError: The training diverged, or the run folder is damaged or used by another process.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = model_file.parent / "runs" / f"{model_file.stem}-{key}"
    if not force and _is_result(model_file, key, folder):
        print(
            f"unchanged: {model_file} is the result of this run (same settings, data and code); nothing to do, unless "
            "with --force"
        )
        return None
    with exclusive_lock(folder, "or give another --output"):
        if force:
            states = list(folder.glob("*.npz"))
            for old in (*states, folder / "run.json"):  # in this order, a kill never leaves states without run.json
                old.unlink(missing_ok=True)
        run = _open_run(folder, settings, choose_precision)
        start = time.monotonic()
        keras.utils.set_random_seed(config.seed)
        network, trainer = build(run["precision"])
        trainer.name = folder.name
        history = _train(trainer, network, train, dev, folder, config, callbacks)
        merit, chosen_by = epoch_choice(config)
        best = max(history, key=merit)
        if not np.isfinite(best["val_loss"]):
            raise InputError(f"the training diverged (see {folder / 'history.csv'}); give a smaller learning rate")
        with _reading(folder):
            read_weights(network.weights, _weights(folder, "best", best["epoch"]))
    print(
        f"{counted(len(history), 'epoch')} ({time.monotonic() - start:.0f} s in this process), best: epoch "
        f"{best['epoch']} with dev accuracy {best[MONITOR]:.4f}\ncurves:  {folder / 'curves.png'}"
    )
    backend = keras.backend.backend()
    versions = {"python": platform.python_version(), "keras": keras.version()}
    return network, {
        "run": key,
        "started": run["started"],
        "created": datetime.now(UTC).date().isoformat(),
        "parameters": network.count_params(),
        "hyperparameters": settings["config"],
        "precision": run["precision"],
        "seed": config.seed,
        "epochs_run": len(history),
        "epoch_chosen": best["epoch"],
        "chosen_by": chosen_by,
        "dev_accuracy": round(best[MONITOR], 4),  # not a score: these images selected the epoch
        "versions": {**versions, "backend": f"{backend} {__import__(backend).__version__}"},
        "scores": [],
    }


@contextmanager
def saving(model_file: Path) -> Iterator[None]:
    """Let one process at a time save a network under this name: runs with other settings may have the same output."""
    from filelock import FileLock

    folder = model_file.parent / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{model_file.stem}.lock"):
        yield


def _is_result(model_file: Path, key: str, folder: Path) -> bool:
    """Return whether a saved network is the result of the latest start of this run."""
    try:
        card = json.loads(card_path(model_file).read_text(encoding="utf-8"))
        if card["run"] != key or not is_whole(model_file):
            return False
        run = folder / "run.json"  # an interrupted forced training started later than the saved network
        return not run.is_file() or json.loads(run.read_text(encoding="utf-8"))["started"] == card["started"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _open_run(folder: Path, settings: dict[str, Any], choose_precision: Callable[[], str]) -> dict[str, Any]:
    """Return the content of `run.json`, which is written for a new run."""
    file = folder / "run.json"
    if not file.is_file():
        facts = {"precision": choose_precision(), "started": datetime.now(UTC).isoformat()}
        run = {**settings, **facts, "backend": keras.backend.backend()}
        write_file(file, json.dumps(run, indent=2).encode())
    with _reading(folder):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["precision"] not in ("float32", "mixed_bfloat16") or not isinstance(run["started"], str):
            raise ValueError(f"precision {run['precision']!r}, started {run['started']!r}")
    now = keras.backend.backend()
    if (before := run.get("backend", now)) != now:  # the types of some variables differ
        raise InputError(
            f"the run in {folder} was started with Keras on {before}, not on {now}; set KERAS_BACKEND={before}, or "
            "give --force to train from the first epoch"
        )
    return run


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn any error of reading the files of a run into one line with a remedy."""
    try:
        yield
    except Exception as error:  # a damaged file may raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"the run in {folder} is damaged ({reason}); remove that folder to train again") from error


def _train(
    trainer: keras.Model,
    network: keras.Model,
    train: Any,
    dev: Any,
    folder: Path,
    config: TrainingConfig,
    callbacks: Sequence[keras.callbacks.Callback],
) -> list[dict[str, float]]:
    """Train from the last complete epoch on; return one row of metrics per epoch."""
    keeper = RunKeeper(folder, network, config.patience, epoch_choice(config)[0])
    done = keeper.restore(trainer)
    if done:
        print(f"resuming after epoch {done} of {config.epochs} ({folder})")
    if done < config.epochs and not keeper.out_of_patience():
        train.epoch = done
        verbose: Any = 1 if os.isatty(1) else 2  # a bar, or in a log file one line per epoch
        trainer.fit(
            train,
            validation_data=dev,
            epochs=config.epochs,
            initial_epoch=done,
            callbacks=[*full_images_last(config.augmentation, config.epochs), keeper, *callbacks],
            shuffle=False,  # the batches have their own seeded order
            verbose=verbose,
        )
    draw_curves(keeper.history, folder / "curves.png")
    return keeper.history


def epoch_choice(config: TrainingConfig) -> tuple[Merit, str]:
    """Return the function by which epochs are compared, and the rule in words for the card.

    With logit adjustment this is the dev loss, because an epoch with a high accuracy may predict frequent emotions too
    often. Otherwise it is the dev accuracy; the dev loss decides between epochs with the same accuracy.
    """
    if config.logit_adjustment:
        return lambda row: (-row["val_loss"],), "lowest dev loss, with logit adjustment"
    return lambda row: (row[MONITOR], -row["val_loss"]), "highest dev accuracy, ties broken by the lowest loss"


def _weights(folder: Path, kind: str, epoch: float) -> Path:
    return folder / f"{kind}-{int(epoch):04d}.npz"


def write_weights(variables: Sequence[Any], file: Path) -> None:
    """Write the values of Keras variables, in their order, as `.npz`, which has a checksum of each array.

    Raises:
        OSError: The disk is full, or the file does not read back as written.
    """
    content = io.BytesIO()
    values: list[Any] = [keras.ops.convert_to_numpy(variable) for variable in variables]
    np.savez(content, *values)
    write_file(file, content.getvalue())


def read_weights(variables: Sequence[Any], file: Path) -> None:
    """Assign the values in a file of `write_weights` to Keras variables; none of them if the file is damaged.

    Raises:
        ValueError: The file has other variables. A damaged file raises this or almost any other exception.
    """
    with np.load(file) as arrays:
        values = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
    if [(value.shape, str(value.dtype)) for value in values] != [(v.shape, v.dtype) for v in variables]:
        raise ValueError(f"{file.name} has other weights")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _state(trainer: Any) -> list[Any]:
    """Return the variables that a resumed training needs: all weights and those of the optimizer."""
    return [*trainer.weights, *trainer.optimizer.variables]


class RunKeeper(keras.callbacks.Callback):
    """Save history, best weights and training state after each epoch, so that a kill costs at most one epoch.

    The order of writing makes this safe: best weights, then the history, then the state with the epoch's number, and
    only then are older files removed. Restoring starts from the newest state and drops later rows of the history.

    Args:
        folder: The run's folder.
        network: The network whose best weights are kept.
        patience: Number of epochs without improvement after which training stops; 0: no early stopping.
        merit: The function by which epochs are compared. Early stopping uses the first of its values only.
    """

    def __init__(self, folder: Path, network: keras.Model, patience: int, merit: Merit):
        super().__init__()
        self.folder = folder
        self.network = network
        self.patience = patience
        self.merit = merit
        self.history: list[dict[str, float]] = []

    def restore(self, trainer: keras.Model) -> int:
        """Load the newest state into the trainer and return its number of epochs; 0 if there is none."""
        for state in sorted(self.folder.glob("state-*.npz"), reverse=True):
            with _reading(self.folder):
                epoch = int(state.stem.split("-")[1])
                history = self._read_history(epoch)
                if len(history) == epoch:
                    self.history = history
                    read_weights(self.network.weights, _weights(self.folder, "best", self._best()))  # fail early
                    read_weights(_state(trainer), state)
                    return epoch
        return 0

    def out_of_patience(self) -> bool:
        """Return whether the last improvement was `patience` epochs ago."""
        if not (self.patience and self.history):
            return False
        best = int(max(self.history, key=lambda row: self.merit(row)[0])["epoch"])  # the first of equal ones
        return len(self.history) - best >= self.patience

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Seed augmentation and dropout by the epoch: Keras does not save their random state."""
        trainer: Any = self.model
        for variable in trainer.non_trainable_variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign([variable.numpy()[0], epoch << 20])

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the finished epoch; `epoch` counts from 0, the files from 1."""
        trainer: Any = self.model
        number = epoch + 1
        row = {"epoch": number, **{name: float(value) for name, value in (logs or {}).items()}}
        row["learning_rate"] = float(trainer.optimizer.learning_rate)
        self.history.append(row)
        if self._best() == number:
            write_weights(self.network.weights, _weights(self.folder, "best", number))
        table = pd.DataFrame(self.history).to_csv(index=False, na_rep="nan", lineterminator="\n")
        write_file(self.folder / "history.csv", table.encode())
        write_weights(_state(trainer), _weights(self.folder, "state", number))
        keep = {_weights(self.folder, "best", self._best()), _weights(self.folder, "state", number)}
        for old in set(self.folder.glob("*.npz")) - keep:
            old.unlink()
        if self.out_of_patience():
            trainer.stop_training = True

    def _best(self) -> int:
        return int(max(self.history, key=self.merit)["epoch"])

    def _read_history(self, epochs: int) -> list[Any]:
        file = self.folder / "history.csv"
        if not file.is_file():
            return []
        table = pd.read_csv(file, float_precision="round_trip").head(epochs)
        if not set(table.columns) > METRICS or list(table["epoch"]) != list(range(1, len(table) + 1)):
            raise ValueError(f"{file.name} lacks an epoch or a metric")
        return table.to_dict("records")


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's log for TensorBoard, in a subfolder with the name of the run. A resumed run continues its log.

    Args:
        folder: Folder of the logs of all runs.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder), write_graph=False)
        self.folder = folder

    def set_model(self, model: keras.Model) -> None:
        """Start the log of a run."""
        self.log_dir = str(self.folder / model.name)
        super().set_model(model)


def draw_curves(history: list[dict[str, float]], file: Path) -> None:
    """Plot loss and accuracy of the training and the dev split over the epochs."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], label="train (augmented)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], label="dev")
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=file.suffix[1:])
    write_file(file, content.getvalue())
