"""Predict the emotion of images without a label, as suggestions for the labelling page.

Reads:  a network and its card; data/NAME/faces.csv and its crops
Writes: reports/NAME/MODEL/guesses.csv, with the columns `path`, `prediction`, and `p_<emotion>` (0-1)

    python -m evaluation.suggestions    --dataset ckplus --model models/ckplus/best.keras
    python -m preprocessing.label_peaks --dataset ckplus --name ann --guesses reports/ckplus/best/guesses.csv
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run
from common.errors import InputError
from configuration import PATHS, SAMPLE_NAME
from evaluation.selection import default_model
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import read_card
from preprocessing.tables import has_image, read_table, write_table


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        Path | None, typer.Option(help="Network. [default: MODELS/DATASET/best.keras, or the only network]")
    ] = None,
) -> None:
    """Predict the emotion of images without a label."""
    folder = dataset_folder(data, dataset)
    rows = unlabelled(read_table(folder, "faces.csv"))
    if rows.empty:
        raise InputError(f"{folder / 'faces.csv'} has no readable image with a face and without a label")
    model_file = model or default_model(models / dataset)
    read_card(model_file)  # bad input is reported before Keras is imported
    file = reports / dataset / model_file.stem / "guesses.csv"
    write_table(suggest(EmotionClassifier.load(model_file), folder, rows), file)
    print(f"{len(rows):,} images without a label predicted: {file}")


def unlabelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a readable image and a face, but without a label."""
    return table.loc[has_image(table) & (table["emotion"] == "")].reset_index(drop=True)


def suggest(classifier: EmotionClassifier, folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per image: `path`, `prediction` and the probability of each emotion."""
    from evaluation.metrics.scores import predicted_labels, probability_columns
    from training.data import read_crops

    probabilities = classifier.predict(read_crops(classifier, folder, rows))
    table = pd.DataFrame({"path": rows["path"], "prediction": predicted_labels(probabilities, classifier.labels)})
    return table.assign(**probability_columns(probabilities, classifier.labels))


if __name__ == "__main__":
    run(main)
