"""Cross-validation: one network per fold, trained without the fold that it is tested on.

The networks of `best.keras` are `best-folds/0.keras` and so on. Keras is imported when the first one is trained.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from common.command_line import step_command
from common.errors import InputError
from common.logging import quiet_start, silence_retracing
from configuration import TrainingConfig
from inference.lineage import ImageHashes, hash_codes
from inference.model_card import read_card
from preprocessing.tables import fold_numbers, split_by_fold, split_hash
from training.lineage import knows_images
from training.settings import check_output

if TYPE_CHECKING:
    import keras

# Columns of split.csv: all images of a person are in one fold, or may be in several.
SUBJECT_INDEPENDENT, SUBJECT_DEPENDENT = "fold", "subject_dependent_fold"


def fold_file(model_file: Path, fold: int, subject_dependent: bool = False) -> Path:
    """Return the path of a fold's network: `best.keras` -> `best-folds/3.keras`.

    Args:
        model_file: The network; it need not exist.
        fold: Number of the test fold, from 0.
        subject_dependent: Use subject-dependent folds: `best-subject-dependent-folds/3.keras`.
    """
    folder = f"{model_file.stem}{'-subject-dependent' if subject_dependent else ''}-folds"
    return model_file.with_name(folder) / f"{fold}{model_file.suffix}"


def check_number(table: pd.DataFrame, folds: int, column: str, folder: Path) -> None:
    """Refuse a number of folds that differs from the split's.

    Raises:
        InputError: The numbers differ, or the split has no folds.
    """
    there = len(fold_numbers(table, column))
    if folds != there:
        split = step_command("preprocessing.step3_split", folder, "--strategy", "folds", "--folds", folds)
        raise InputError(f"--folds {folds}: the split has {there} folds; give --folds {there}, or split again: {split}")


def fit_folds(
    table: pd.DataFrame,
    folder: Path,
    model_file: Path,
    config: TrainingConfig,
    command: str,
    column: str = SUBJECT_INDEPENDENT,
    settings_hashes: ImageHashes | None = None,
    force: bool = False,
    callbacks: Sequence["keras.callbacks.Callback"] = (),
    devices: int = 1,
) -> list[float]:
    """Train one network per fold: tested on that fold, selected on the next one, trained on the others.

    Finished folds are not trained again. All folds have the precision of the first one.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        model_file: The network that the folds belong to; see `fold_file`.
        config: Settings of the runs.
        command: The command that trains these networks again, for their cards.
        column: `SUBJECT_INDEPENDENT` or `SUBJECT_DEPENDENT`.
        settings_hashes: The images that selected the settings, if another run did.
        force: Train every fold from the first epoch, even if it is finished.
        callbacks: Further Keras callbacks; see `train_or_resume`.
        devices: Devices that share each batch.

    Returns:
        The dev accuracy of each fold, 0-1.

    Raises:
        InputError: As `train_network`; or there are no such folds, or images of the folds selected the settings or
            shaped the pretrained network: every image is a test image of one fold.
    """
    check_output(model_file)
    folds = fold_numbers(table, column)
    tested = table.loc[table[column] != ""]
    _check_unseen(tested, folder.name, config, settings_hashes)
    with quiet_start():
        import keras

        from training.trainer import train_network

    silence_retracing()
    accuracies = []
    for fold in folds:
        file = fold_file(model_file, fold, column == SUBJECT_DEPENDENT)
        print(f"fold {fold} of 0-{folds[-1]} ({column})", flush=True)
        entry = fold_entry(fold, folds, column)
        split = split_by_fold(table, fold, column)
        train_network(split, folder, file, config, command, settings_hashes, force, callbacks, devices, fold=entry)
        keras.utils.clear_session(free_memory=True)  # or all networks stay in memory
        card = read_card(file)
        config = replace(config, precision=card.precision)
        accuracies.append(cast(float, card.dev_accuracy))  # every training writes it
    for fold, accuracy in zip(folds, accuracies, strict=True):
        print(f"fold {fold}: dev accuracy {accuracy:.4f}")
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    score = step_command("evaluation.model_evaluation", folder, "--folds", "--model", model_file)
    print(
        f"{len(folds)} folds ({column}): dev accuracy {mean:.4f} ± {deviation:.4f} (mean and SD), on the "
        f"images that selected the epochs; held-out score: {score}"
    )
    return accuracies


def _check_unseen(
    tested: pd.DataFrame, dataset: str, config: TrainingConfig, settings_hashes: ImageHashes | None
) -> None:
    """Refuse settings and a pretrained network that know images of the folds."""
    if settings_hashes is not None and not settings_hashes.complete:
        raise InputError(
            "--settings: the images that selected these settings are unknown, and every image of a fold is a test "
            "image; tune again, or give settings that were selected on other data"
        )
    selected = 0
    if settings_hashes is not None:
        selected = np.isin(hash_codes(tested["pixel_hash"]), settings_hashes.selection).sum()
    if selected:
        raise InputError(
            f"the settings were selected on {selected:,} images of the folds, each a test image of one fold; give "
            "--settings that were selected on other data, or leave it out"
        )
    if config.pretrained:
        file = Path(config.pretrained)
        if knows_images(file, read_card(file), tested, dataset):
            raise InputError(
                f"{file}, or a network in its lineage, was trained or selected on images of the folds, each a test "
                "image of one fold; give a --pretrained network that was trained on other data"
            )


def fold_entry(fold: int, folds: list[int], column: str) -> dict[str, Any]:
    """Return the entry `fold` of a model card."""
    return {"number": fold, "of": len(folds), "column": column}


def fold_networks(
    model_file: Path, folder: Path, table: pd.DataFrame, column: str = SUBJECT_INDEPENDENT
) -> dict[int, Path]:
    """Return the network of each fold; its card must say that it was trained without that fold.

    Args:
        model_file: The network that the folds belong to.
        folder: The data set's folder.
        table: Its `split.csv`.
        column: `SUBJECT_INDEPENDENT` or `SUBJECT_DEPENDENT`.

    Raises:
        InputError: There are no such folds, or a network is missing or was trained on another split or fold; the
            message has the command that trains it.
    """
    folds = fold_numbers(table, column)
    networks = {fold: fold_file(model_file, fold, column == SUBJECT_DEPENDENT) for fold in folds}
    options = ["--subject-dependent"] if column == SUBJECT_DEPENDENT else []
    train = step_command("training.step3_best_model", folder, "--folds", len(folds), *options, "--output", model_file)
    missing = [str(fold) for fold, file in networks.items() if not file.is_file()]
    if missing:
        raise InputError(
            f"{networks[int(missing[0])]} does not exist: no network was trained for fold {', '.join(missing)} "
            f"(column {column}); train what is missing: {train}"
        )
    for fold, file in networks.items():
        card = read_card(file)
        if card.fold != fold_entry(fold, folds, column):
            raise InputError(
                f"{file} is not the network of fold {fold} of {len(folds)} (column {column}): its card has "
                f"{card.fold}; train again: {train}"
            )
        if card.split_hash != split_hash(split_by_fold(table, fold, column)):
            raise InputError(
                f"{file} was trained on another split than {folder / 'split.csv'}, perhaps on its test images; train "
                f"again: {train}"
            )
    return networks


def features_without(model_file: Path, dataset: str, table: pd.DataFrame, fold: int) -> Path:
    """Return the network of single faces whose features a fold may use.

    If images of the folds shaped the network, that is its counterpart trained without the fold (`fold_file`).

    Args:
        model_file: The network.
        dataset: Name of the data set.
        table: Its `split.csv`.
        fold: Number of the test fold.

    Raises:
        InputError: The counterpart is needed and missing.
    """
    if not knows_images(model_file, read_card(model_file), table.loc[table[SUBJECT_INDEPENDENT] != ""], dataset):
        return model_file
    counterpart = fold_file(model_file, fold)
    if not counterpart.is_file():
        raise InputError(
            f"{model_file}, or a network in its lineage, was trained on images of the folds; {counterpart}, trained "
            f"without fold {fold}, is missing: train it (training.step3_best_model with --folds), or give "
            "--features of a network that was trained on other data"
        )
    return counterpart
