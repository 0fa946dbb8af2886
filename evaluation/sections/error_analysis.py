"""Error analysis: confused pairs of emotions, most confident mistakes, and least certain predictions."""

from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.metrics.scores import probability_columns
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_examples
from evaluation.report.section import Figure, Section, Table, percent
from evaluation.sections.grad_cam import grad_cam
from preprocessing.tables import write_table

CONFIDENT, UNCERTAIN = "mistakes", "uncertain"
_HEADINGS = {CONFIDENT: "most confident mistakes", UNCERTAIN: "least certain predictions"}
EXAMPLES = 4  # of each emotion and kind of error
_PAIRS = 6  # confused pairs in sentences; twice as many in the table


def error_analysis_section(predictions: Predictions, report: Path, gallery: bool) -> Section:
    """Return the section on errors, and write `confused_pairs.csv` and the gallery.

    Args:
        predictions: The predictions.
        report: Folder of the figures.
        options: Examples per emotion.
        gallery: Whether to draw examples; they show people.
    """
    pairs = confused_pairs(predictions)
    write_table(pairs, report / "confused_pairs.csv")
    sentences = [
        f"{truth} predicted as {prediction}: {percent(count / images, 0)} ({count:,} of {images:,} images)."
        for truth, prediction, count, images, _ in pairs.head(_PAIRS).to_numpy().tolist()
    ]
    if pairs.empty:
        sentences.append("There are no mistakes.")
    figures, tables = [], []
    if len(pairs):
        shown = pairs.head(2 * _PAIRS).rename(columns={"prediction": "predicted"}).set_index("truth")
        tables.append(
            Table(shown, f"Most confused pairs, {predictions.title}; share of the true emotion", percent=("share",))
        )
    if gallery:
        figures, has_maps = _gallery(predictions, report)
        maps = "the Grad-CAM of the prediction" if has_maps else "no Grad-CAM (no convolution, or not TensorFlow)"
        sentences.append(
            f"Each example shows the image, {maps} and the most probable emotions; the true one is hatched. Labels can "
            "be wrong."
        )
    return Section(
        name="error_analysis",
        title="Error analysis",
        sentences=sentences,
        tables=tables,
        figures=figures,
        values={"confused_pairs": pairs.to_dict("records")},
    )


def confused_pairs(predictions: Predictions) -> pd.DataFrame:
    """Return pairs of true and incorrectly predicted emotions, sorted by their share of the true emotion.

    Returns:
        Columns `truth`, `prediction`, `count`, `images` (of the true emotion), `share` (0-1).
    """
    k = len(predictions.labels)
    matrix = np.bincount(predictions.truth * k + predictions.predicted, minlength=k * k).reshape(k, k)
    images = matrix.sum(axis=1)
    rows = [
        (predictions.labels[true], predictions.labels[wrong], int(matrix[true, wrong]), int(images[true]))
        for true, wrong in np.argwhere(matrix)
        if true != wrong
    ]
    pairs = pd.DataFrame(rows, columns=["truth", "prediction", "count", "images"])
    pairs["share"] = pairs["count"] / pairs["images"]
    return pairs.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def choose_examples(predictions: Predictions, label: int, kind: str) -> np.ndarray:
    """Return the images of an emotion to show, int (up to `EXAMPLES`,), without duplicates.

    Args:
        predictions: The predictions.
        label: Index of the true emotion.
        kind: `CONFIDENT`: incorrect predictions with the highest probability; `UNCERTAIN`: highest entropy.
    """
    own = np.flatnonzero(predictions.truth == label)
    if kind == CONFIDENT:
        own = own[~predictions.correct[own]]
        weight = predictions.probabilities[own].max(axis=1)
    else:
        probabilities = predictions.probabilities[own]
        weight = -(probabilities * np.log(np.clip(probabilities, 1e-12, None))).sum(axis=1)
    ordered = own[np.argsort(-weight, kind="stable")]
    hashes = predictions.rows["pixel_hash"].iloc[ordered]
    return ordered[(~hashes.duplicated() | (hashes == "")).to_numpy()][:EXAMPLES]


def _gallery(predictions: Predictions, report: Path) -> tuple[list[Figure], bool]:
    """Draw the examples of each emotion and kind, write their probabilities, and return whether there are Grad-CAMs."""
    chosen = {
        (label, kind): choose_examples(predictions, label, kind)
        for label in range(len(predictions.labels))
        for kind in (CONFIDENT, UNCERTAIN)
    }
    indices = np.unique(np.concatenate(list(chosen.values())))
    outputs = np.asarray(predictions.rule.columns)[predictions.predicted[indices]]
    maps = grad_cam(predictions.classifiers[""].network, np.asarray(predictions.images[indices]), outputs)
    figures = []
    for (label, kind), examples in chosen.items():
        if len(examples):
            own = None if maps is None else maps[np.searchsorted(indices, examples)]
            figures.append(_draw(predictions, label, kind, examples, own, report))
    return figures, maps is not None


def _draw(
    predictions: Predictions, label: int, kind: str, examples: np.ndarray, maps: np.ndarray | None, report: Path
) -> Figure:
    emotion, probabilities = predictions.labels[label], predictions.probabilities[examples]
    names = predictions.prediction[examples]
    table = predictions.rows.iloc[examples][["path"]].reset_index(drop=True)
    table = table.assign(truth=emotion, prediction=names, **probability_columns(probabilities, predictions.labels))
    write_table(table, report / f"{kind}_{emotion}.csv")
    heading = f"{emotion}, {_HEADINGS[kind]}"
    file = draw_examples(
        np.asarray(predictions.images[examples]),
        maps,
        probabilities,
        predictions.labels,
        label,
        f"{heading}\n{predictions.title}",
        report / f"{kind}_{emotion}.png",
    )
    listed = ", ".join(
        f"{name} ({percent(float(most), 0)})" for name, most in zip(names, probabilities.max(axis=1), strict=True)
    )
    return Figure(file, f"{heading}.", f"Label {emotion}; predictions: {listed}.", shows_faces=True)
