"""A cross-validation's networks: one per fold, each trained without the fold that it is tested on.

They lie beside the network that they stand for. Keras is imported when the first one is trained.
"""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from common.command_line import step_command
from common.errors import InputError
from common.logging import quiet_start, silence_retracing
from configuration import TrainingConfig
from inference.keras_networks import check_output
from inference.lineage import ImageHashes, hash_codes
from inference.model_card import read_card
from preprocessing.tables import fold_numbers, split_by_fold, split_hash
from training.lineage import knows_images

SUBJECT_INDEPENDENT, SUBJECT_DEPENDENT = (
    "fold",
    "subject_dependent_fold",
)  # columns of the split: people stay in one fold, or may be in several


def fold_file(model_file: Path, fold: int, subject_dependent: bool = False) -> Path:
    """Return where the network that was trained without a fold lies: `best.keras` -> `best-folds/3.keras`.

    Args:
        model_file: The network that the folds stand for; it need not exist.
        fold: Number of the fold that it is tested on, from 0.
        loose: Of the folds that ignore who is in the pictures: `best-loose-folds/3.keras`.
    """
    return (
        model_file.with_name(f"{model_file.stem}{'-loose' if subject_dependent else ''}-folds")
        / f"{fold}{model_file.suffix}"
    )


def check_number(table: pd.DataFrame, folds: int, column: str, folder: Path) -> None:
    """Refuse a number of folds that is not the split's.

    Raises:
        InputError: with the remedies; also where the split has no folds.
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
) -> list[float]:
    """Train one network per fold: tested on that fold, its epoch chosen on the next one, learning from the others.

    Folds that were finished before are not trained again. All have the precision of the first one, which may have been
    chosen by timing.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        model_file: The network that the folds stand for; see `fold_file`.
        fitting: Every setting of the runs.
        command: The command that makes these networks again, for their cards.
        column: `STRICT` or `LOOSE`.
        settings_hashes: The images by which the settings were selected, where that is another run's work.
        force: Train every fold from the first epoch, even where it is finished.

    Returns:
        Each fold's accuracy on its dev images, 0-1.

    Raises:
        InputError: As `fitting.fit_table`; or the split has no such folds; or the settings were selected on images of
            the folds, or the network to start from knows such images: every image of a fold is a test image.
    """
    check_output(model_file)
    folds = fold_numbers(table, column)
    tested = table.loc[table[column] != ""]
    if settings_hashes is not None:
        if not settings_hashes.complete:
            raise InputError(
                "--settings: it is not known by which images these settings were selected, and every image of a fold "
                "is a test image; tune again, or give settings that were selected on other data"
            )
        selected = np.isin(hash_codes(tested["pixel_hash"]), settings_hashes.selection).sum()
        if selected:
            raise InputError(
                f"the settings were selected on {selected:,} images of the folds, and each of these is a test image of "
                "one fold; give --settings that were selected on other data, or leave it out"
            )
    if config.pretrained:
        start = Path(config.pretrained)
        if knows_images(start, read_card(start), tested, folder.name):
            raise InputError(
                f"{start}, or a network in its lineage, was trained or selected on images of the folds, and each of "
                "these is a test image of one fold; start from a network that was trained on other data"
            )
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
        train_network(split, folder, file, config, command, settings_hashes, force, fold=entry)
        keras.utils.clear_session(free_memory=True)  # else each network stays in memory
        card = read_card(file)
        config = replace(config, precision=card.precision)
        accuracies.append(cast(float, card.dev_accuracy))  # every training writes it
    for fold, accuracy in zip(folds, accuracies, strict=True):
        print(f"fold {fold}: dev accuracy {accuracy:.4f}")
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    print(
        f"{len(folds)} folds ({column}): dev accuracy {mean:.4f} ± {spread:.4f}, mean and standard deviation; epochs "
        "were chosen by it, the held-out score: "
        f"{step_command('evaluation.model_evaluation', folder, '--folds', '--model', model_file)}"
    )
    return accuracies


def fold_entry(fold: int, folds: list[int], column: str) -> dict[str, Any]:
    """Return a card's entry `fold`."""
    return {"number": fold, "of": len(folds), "column": column}


def fold_networks(
    model_file: Path, folder: Path, table: pd.DataFrame, column: str = SUBJECT_INDEPENDENT
) -> dict[int, Path]:
    """Return the network of each fold, after checking by their cards that each was trained without that fold.

    Args:
        model_file: The network that the folds stand for.
        folder: The data set's folder.
        table: Its `split.csv`, as it was read.
        column: `STRICT` or `LOOSE`.

    Raises:
        InputError: the split has no such folds, a network is missing, or was trained on another split or fold; the
            message gives the command that trains them.
    """
    folds = fold_numbers(table, column)
    networks = {fold: fold_file(model_file, fold, column == SUBJECT_DEPENDENT) for fold in folds}
    subject_dependent = ["--subject-dependent"] if column == SUBJECT_DEPENDENT else []
    train = step_command(
        "training.step3_best_model", folder, "--folds", len(folds), *subject_dependent, "--output", model_file
    )
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
                f"{file} is not the network of fold {fold} of {len(folds)} (column {column}): its card says "
                f"{card.fold}; train again: {train}"
            )
        if card.split_hash != split_hash(split_by_fold(table, fold, column)):
            raise InputError(
                f"{file} was trained on another split than {folder / 'split.csv'}: it may have learnt from what it "
                f"would be tested on; train again: {train}"
            )
    return networks


def features_without(model_file: Path, dataset: str, table: pd.DataFrame, fold: int) -> Path:
    """Return the network of single faces whose features a fold may use.

    A network whose lineage knows images of the folds knows the people of most folds. Only its counterpart that was
    trained without the fold (`fold_file`) does not.

    Args:
        model_file: The network.
        dataset: Name of the data set.
        table: Its `split.csv`.
        fold: Number of the fold that is tested.

    Raises:
        InputError: That counterpart is needed and missing.
    """
    if not knows_images(model_file, read_card(model_file), table.loc[table[SUBJECT_INDEPENDENT] != ""], dataset):
        return model_file
    counterpart = fold_file(model_file, fold)
    if not counterpart.is_file():
        raise InputError(
            f"{model_file}, or a network in its lineage, was trained on images of the folds; {counterpart}, trained "
            f"without fold {fold}, is missing: train it (python -m training.step3_best_model --folds), or give "
            "--features of a network that was trained on other data"
        )
    return counterpart
