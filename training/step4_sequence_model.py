"""Train a network over the frames of sequences, from the neutral face to the peak of the expression.

Reads:  data/NAME/split.csv of a data set listed with `step1_inventory --frames all`, and its crops; a network of
        single faces (--features), whose features are the input
Writes: models/NAME/sequence.keras and its card (or --output), with --folds one network per fold in sequence-folds/;
        models/NAME/runs/ (history, curves, checkpoints); data/NAME/cache/ (the features)

    python -m training.step4_sequence_model --dataset ckplus
    python -m evaluation.sequences          --dataset ckplus
    python -m realtime.webcam --temporal models/ckplus/sequence.keras
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import (
    DataRoot,
    DatasetName,
    Force,
    ModelsRoot,
    TensorBoardFolder,
    dataset_folder,
    run,
    typed_command,
)
from common.logging import quiet_start
from configuration import PATHS, SAMPLE_NAME, SEQUENCES
from inference.model_card import read_card
from preprocessing.tables import read_table
from training.cross_validation import SUBJECT_INDEPENDENT, check_number
from training.settings import check_output, tensorboard

CONFIG = SEQUENCES.config


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    features: Annotated[Path, typer.Option(help="Network of single faces that computes the features.")] = (
        PATHS.pretrained
    ),
    folds: Annotated[
        int | None, typer.Option(min=3, help="Cross-validate: train one network per fold of the split.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = CONFIG.epochs,
    seed: Annotated[int, typer.Option(help="Random seed.")] = CONFIG.seed,
    output: Annotated[
        Path | None, typer.Option(help="File of the network.", show_default="models/NAME/sequence.keras")
    ] = None,
    board: TensorBoardFolder = None,
    force: Force = False,
) -> None:
    """Train a network over the frames of sequences, on features of a network of single faces."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported: mistakes are reported at once
    model_file = output or models / dataset / "sequence.keras"
    check_output(model_file)
    read_card(features)
    if folds is not None:
        check_number(table, folds, SUBJECT_INDEPENDENT, folder)
    with quiet_start():
        from training.sequences.trainer import fit_sequence_folds, fit_sequences

    options = replace(SEQUENCES, config=replace(CONFIG, epochs=epochs, seed=seed))
    fit = fit_sequences if folds is None else fit_sequence_folds
    fit(table, folder, model_file, options, features, typed_command(), force, tensorboard(board))


if __name__ == "__main__":
    run(main)
