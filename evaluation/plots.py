"""The evaluation's figures."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from preprocessing.files import atomic_file


def draw_confusion(matrix: pd.DataFrame, title: str, file: Path) -> None:
    """Draw a confusion matrix: colours and percentages by row, with the counts below.

    Args:
        matrix: Counts, true labels as rows and predicted labels as columns.
        title: Line above the figure.
        file: PNG to write.
    """
    counts = matrix.to_numpy()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(1.0 * len(matrix) + 4, 0.9 * len(matrix) + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(matrix)):
        for column in range(len(matrix)):
            share = shares[row, column]
            text = f"{share:.0%}\n{counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(range(len(matrix)), list(matrix.columns), rotation=45, ha="right")
    axes.set_yticks(range(len(matrix)), [f"{label} ({n})" for label, n in matrix.sum(axis=1).items()])
    axes.set(xlabel="prediction", ylabel="truth (images)", title=title)
    figure.colorbar(image, label="share of the true emotion", fraction=0.046)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
