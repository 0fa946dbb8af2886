"""Train a network over the frames of sequences, from the neutral face to the peak of its expression.

Reads:  data/NAME/split.csv, of a data set listed with `step1_inventory --frames all`, and the crops it names; a network
        of single faces (--features), whose features it reads and does not change
Writes: models/NAME/sequence.keras and its card (or --output); with --folds a network per fold instead, in
        sequence-folds/; models/NAME/runs/ (history, curves, states to resume from); data/NAME/cache/ (the features)

    python -m training.step4_sequence_model --dataset ckplus
    python -m evaluation.sequences          --dataset ckplus
    python -m realtime.webcam --temporal models/ckplus/sequence.keras
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, Force, ModelsRoot, dataset_folder, run, typed_command
from common.logging import quiet_start
from configuration import PATHS, SAMPLE_NAME, SEQUENCES
from inference.keras_networks import check_output
from inference.model_card import read_card
from preprocessing.tables import fold_numbers, read_table, split_by_fold
from training.cross_validation import SUBJECT_INDEPENDENT, check_number, features_without, fold_file

FITTING = SEQUENCES.config


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    features: Annotated[Path, typer.Option(help="Network of single faces whose features are read.")] = PATHS.pretrained,
    folds: Annotated[
        int | None,
        typer.Option(min=3, help="Train a network for each of the K folds that step3_split --strategy folds made."),
    ] = None,
    window: Annotated[int, typer.Option(help="Frames that it looks back over at most.")] = SEQUENCES.window,
    rate: Annotated[float, typer.Option(help="Frames per second of the data set's sequences.")] = SEQUENCES.rate,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = FITTING.epochs,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = FITTING.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Step size at the start.")] = FITTING.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = FITTING.seed,
    output: Annotated[
        Path | None, typer.Option(help="Where the network goes; else models/NAME/sequence.keras.")
    ] = None,
    force: Force = False,
) -> None:
    """Train a network over the frames of sequences, on the features of a network of single faces."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    model_file, command = output or models / dataset / "sequence.keras", typed_command()
    check_output(model_file)
    read_card(features)
    if folds is not None:
        check_number(table, folds, SUBJECT_INDEPENDENT, folder)
    with quiet_start():
        from training.sequences.trainer import fit_sequences

    config = replace(
        FITTING,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    options = replace(SEQUENCES, window=window, rate=rate, config=config)
    if folds is None:
        fit_sequences(table, folder, model_file, options, features, command, force)
        return
    for fold in fold_numbers(table):
        print(f"fold {fold} of {folds}", flush=True)
        source, without = features_without(features, dataset, table, fold), split_by_fold(table, fold)
        fit_sequences(without, folder, fold_file(model_file, fold), options, source, command, force)


if __name__ == "__main__":
    run(main)
