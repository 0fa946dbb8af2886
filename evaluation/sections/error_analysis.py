"""How a model fails: which emotions it takes for which, its most confident mistakes, and where it cannot decide."""

from pathlib import Path

import numpy as np
import pandas as pd

from configuration import EvaluationConfig
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_examples
from evaluation.report.section import Figure, Section, Table, percent
from evaluation.sections.grad_cam import grad_cam
from preprocessing.tables import write_table

CONFIDENT, UNDECIDED = "mistakes", "undecided"


def error_analysis_section(predictions: Predictions, report: Path, options: EvaluationConfig, gallery: bool) -> Section:
    """Return the confused pairs in words and as a table, and the gallery of failures.

    Args:
        answers: The model's answers.
        report: Folder of the figures.
        options: How many pairs and examples.
        gallery: Whether to draw examples; they show people.
    """
    pairs = confused_pairs(predictions)
    sentences = [
        f"Of {images:,} images of {truth}, {percent(count / images, 0)} ({count:,}) were called {prediction}."
        for truth, prediction, count, images, _ in pairs.head(options.pairs).to_numpy().tolist()
    ]
    write_table(pairs, report / "confused_pairs.csv")
    figures = []
    if gallery:
        figures, has_maps = _gallery(predictions, report, options)
        sentences.append(
            "Each example shows the picture, "
            + (
                "the Grad-CAM of the answer (bright: what spoke for it, on the coarse grid of the last convolution), "
                if has_maps
                else "(no Grad-CAM: the network has no convolution, or Keras does not run on TensorFlow) "
            )
            + "and the likeliest emotions; the true one is marked. A label can be wrong: look before blaming the model."
        )
    elif pairs.empty:
        sentences.append("There is no mistake to show.")
    return Section(
        name="failures",
        title="How it fails",
        sentences=sentences,
        tables=[
            Table(
                pairs.head(2 * options.pairs).rename(columns={"prediction": "called"}).set_index("truth"),
                f"The most confused pairs, {predictions.title}; share: of the images of the true emotion",
                percent=("share",),
            )
        ]
        if len(pairs)
        else [],
        figures=figures,
        values={"confused_pairs": pairs.to_dict("records")},
    )


def confused_pairs(predictions: Predictions) -> pd.DataFrame:
    """Return the pairs of a true emotion and a wrong answer, the most frequent among the emotion's images first.

    Returns:
        Columns `truth`, `prediction`, `count`, `images` (of the true emotion), `share` (0-1).
    """
    k = len(predictions.labels)
    matrix = np.bincount(predictions.truth * k + predictions.predicted, minlength=k * k).reshape(k, k)
    images = matrix.sum(axis=1)
    rows = [
        (predictions.labels[true], predictions.labels[wrong], int(matrix[true, wrong]), int(images[true]))
        for true in range(k)
        for wrong in range(k)
        if true != wrong and matrix[true, wrong]
    ]
    pairs = pd.DataFrame(rows, columns=["truth", "prediction", "count", "images"])
    pairs["share"] = pairs["count"] / pairs["images"]
    return pairs.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def choose_examples(predictions: Predictions, label: int, kind: str, count: int) -> np.ndarray:
    """Return which images of an emotion to show, int (up to `count`,): indices, the most telling first.

    Args:
        answers: The model's answers.
        label: Index of the true emotion.
        kind: `CONFIDENT`: wrong answers of the highest probability; `UNDECIDED`: the highest entropy of the
            probabilities, whatever the answer.
        count: How many. Of exact copies, one is shown.
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
    return ordered[(~hashes.duplicated() | (hashes == "")).to_numpy()][:count]


def _gallery(predictions: Predictions, report: Path, options: EvaluationConfig) -> tuple[list[Figure], bool]:
    """Draw the examples of each emotion and kind, and write their probabilities; also whether there are Grad-CAMs."""
    chosen = {
        (label, kind): choose_examples(predictions, label, kind, options.gallery)
        for label in range(len(predictions.labels))
        for kind in (CONFIDENT, UNDECIDED)
    }
    indices = np.unique(np.concatenate(list(chosen.values())))
    outputs = np.asarray(predictions.rule.columns)[predictions.predicted[indices]]
    images = np.asarray(predictions.images[indices])
    maps = grad_cam(predictions.model_file, images, outputs, predictions.card.input_range)
    place = {index: number for number, index in enumerate(indices)}
    figures = []
    for (label, kind), examples in chosen.items():
        if not len(examples):
            continue
        emotion = predictions.labels[label]
        heading = {
            CONFIDENT: f"{emotion}, most confident mistakes",
            UNDECIDED: f"{emotion}, least decided",
        }[kind]
        table = predictions.rows.iloc[examples][["path"]].reset_index(drop=True)
        table["truth"] = emotion
        table["prediction"] = predictions.prediction[examples]
        for index, name in enumerate(predictions.labels):
            table[f"p_{name}"] = predictions.probabilities[examples, index].round(6)
        write_table(table, report / f"{kind}_{emotion}.csv")
        file = draw_examples(
            np.asarray(predictions.images[examples]),
            None if maps is None else maps[[place[index] for index in examples]],
            predictions.probabilities[examples],
            predictions.labels,
            label,
            f"{heading}\n{predictions.title}",
            report / f"{kind}_{emotion}.png",
        )
        told = ", ".join(
            f"{predictions.labels[predictions.predicted[i]]} ({percent(predictions.probabilities[i].max(), 0)})"
            for i in examples
        )
        figures.append(
            Figure(file, f"Images of {heading}.", f"Faces labelled {emotion}, answered: {told}.", shows_faces=True)
        )
    return figures, maps is not None
