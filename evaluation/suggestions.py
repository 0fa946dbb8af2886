"""Say what a trained network sees in the images that have no label, for the labelling page to show.

Reads:  a network and its card; data/NAME/faces.csv and the crops it names
Writes: reports/NAME/MODEL/guesses.csv, with the columns `path`, `prediction`, and `p_<emotion>` (0-1)

    python -m evaluation.suggestions        --dataset ckplus --model models/ckplus/best.keras
    python -m preprocessing.label_peaks --dataset ckplus --annotator ann --suggestions reports/ckplus/best/guesses.csv
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run
from common.errors import InputError
from configuration import PATHS, SAMPLE_NAME
from evaluation.model_evaluation import default_model
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import read_card
from preprocessing.tables import has_image, read_table, write_table


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        Path | None, typer.Option(help="The network; left out: MODELS/DATASET/best.keras, or the only one there.")
    ] = None,
) -> None:
    """Write a trained network's guesses for the images that have no label."""
    folder = dataset_folder(data, dataset)
    rows = unlabelled(read_table(folder, "faces.csv"))
    if rows.empty:
        raise InputError(f"{folder / 'faces.csv'} has no readable image with a face and without a label")
    model_file = model or default_model(models / dataset)
    read_card(model_file)  # before Keras is imported, so that a mistake is told at once
    file = reports / dataset / model_file.stem / "guesses.csv"
    write_table(guess(EmotionClassifier.load(model_file), folder, rows), file)
    print(f"guesses for {len(rows):,} images without a label: {file}")


def unlabelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table's rows that have a readable image and a face, but no label."""
    return table.loc[has_image(table) & (table["emotion"] == "")].reset_index(drop=True)


def guess(classifier: EmotionClassifier, folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return `path`, `prediction` and the probability of each of the network's emotions, a row per image."""
    from evaluation.metrics.scores import predicted_labels, probability_columns
    from training.data import read_crops

    probabilities = classifier.predict(read_crops(classifier, folder, rows))
    table = pd.DataFrame({"path": rows["path"], "prediction": predicted_labels(probabilities, classifier.labels)})
    return table.assign(**probability_columns(probabilities, classifier.labels))


if __name__ == "__main__":
    run(main)
