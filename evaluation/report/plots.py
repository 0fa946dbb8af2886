"""Figures of the reports, for the width of a phone, in colours that colour-blind readers can distinguish.

Series also differ in marker or line, for black-and-white printers.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from common.files import atomic_file
from evaluation.metrics.calibration import Reliability

BLACK, ORANGE, BLUE, GRAY = "#000000", "#D55E00", "#0072B2", "#767676"  # Okabe and Ito's palette
_MIN_IN_BIN = 10  # images: bins of the reliability diagram with fewer are not shown
matplotlib.rcParams["text.parse_math"] = False  # names may have dollar signs
SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG."""
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white")
    return file


def canvas(title: str, width: float = 6.4, height: float = 4.6) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_confusion(matrix: pd.DataFrame, title: str, file: Path) -> Path:
    """Draw a confusion matrix with row percentages and counts.

    Args:
        matrix: Counts, true labels as rows and predicted labels as columns.
        title: Line above the figure.
        file: PNG to write.
    """
    counts = matrix.to_numpy()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure, axes = canvas(title, 0.8 * len(matrix) + 2.4, 0.68 * len(matrix) + 1.6)
    axes.spines[:].set_visible(False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(matrix)):
        for column in range(len(matrix)):
            share = shares[row, column]
            text = f"{share:.0%}\n{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(range(len(matrix)), list(matrix.columns), rotation=40, ha="right")
    axes.set_yticks(range(len(matrix)), [f"{label} ({n:,})" for label, n in matrix.sum(axis=1).items()])
    axes.set(xlabel="prediction", ylabel="true emotion (images)")
    figure.colorbar(image, label="share of the true emotion", fraction=0.046)
    return save(figure, file)


def draw_emotions(table: pd.DataFrame, title: str, file: Path, interval: str) -> Path:
    """Draw recall and precision of each emotion with intervals.

    Args:
        table: Index: emotions; columns `recall`, `recall_low`, `recall_high` and the same of `precision`, 0-1.
        title: Line above the figure.
        file: PNG to write.
        interval: Name of the intervals, as `interval_text` gives it.
    """
    figure, axes = canvas(title, 6.4, 0.5 * len(table) + 1.6)
    for offset, name, (color, marker, _) in zip((-0.13, 0.13), ("recall", "precision"), SERIES, strict=False):
        low, high = table[f"{name}_low"], table[f"{name}_high"]
        error = np.clip([table[name] - low, high - table[name]], 0, None)
        rows = np.arange(len(table)) + offset
        axes.errorbar(table[name], rows, xerr=error, fmt=marker, color=color, capsize=3, label=name)
    axes.set_yticks(range(len(table)), list(table.index))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.01), xlabel=f"share (line: {interval})")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", color="#dddddd")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    return save(figure, file)


def draw_reliability(diagrams: dict[str, Reliability], title: str, file: Path) -> Path:
    """Draw reliability diagrams, with a histogram of the confidence below.

    Bins with fewer than ten images are not shown.

    Args:
        diagrams: By name, such as `before` and `after`.
        title: Line above the figure.
        file: PNG to write.
    """
    figure = Figure(figsize=(6.0, 6.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, label="perfect calibration")
    for (name, diagram), (color, marker, line) in zip(diagrams.items(), SERIES, strict=False):
        label = f"{name}: calibration error {diagram.expected_error:.1%}"
        enough = diagram.count >= _MIN_IN_BIN
        axes.plot(
            diagram.confidence[enough],
            diagram.accuracy[enough],
            color=color,
            marker=marker,
            linestyle=line,
            label=label,
        )
        below.stairs(diagram.count, diagram.edges, color=color, linestyle=line)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.grid(color="#dddddd")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    below.set(xlabel="confidence", ylabel="images")
    for part in (axes, below):
        part.spines[["top", "right"]].set_visible(False)
        part.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return save(figure, file)


def draw_coverage(
    curve: pd.DataFrame, target: float, chosen: tuple[float, float], title: str, file: Path, interval: str
) -> Path:
    """Draw selective accuracy against coverage.

    Args:
        curve: Columns `coverage`, `accuracy`, `low` and `high`, 0-1.
        target: Target accuracy, marked by a line.
        chosen: Coverage and accuracy at the threshold, marked by a point.
        title: Line above the figure.
        file: PNG to write.
        interval: Name of the intervals, as `interval_text` gives it.
    """
    figure, axes = canvas(title)
    axes.fill_between(curve["coverage"], curve["low"], curve["high"], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(curve["coverage"], curve["accuracy"], color=BLUE, label=f"selective accuracy (band: {interval})")
    axes.axhline(target, color=ORANGE, linestyle="--", label=f"target: {target:.0%}")
    axes.plot(*chosen, "s", color=ORANGE, markersize=8, label=f"threshold: {chosen[1]:.1%} at coverage {chosen[0]:.1%}")
    axes.set(xlim=(0, 1.01), xlabel="coverage", ylabel="accuracy")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))  # with digits where the ticks need them
    axes.grid(color="#dddddd")
    axes.legend(frameon=False, fontsize=9)
    return save(figure, file)


def draw_examples(
    images: np.ndarray,
    maps: np.ndarray | None,
    probabilities: np.ndarray,
    labels: Sequence[str],
    truth: int,
    title: str,
    file: Path,
) -> Path:
    """Draw images with their Grad-CAM and most probable emotions, one per row.

    Args:
        images: uint8, (n, side, side, 1 or 3), gray or RGB.
        maps: Grad-CAMs, (n, side, side), 0-1; None without.
        probabilities: (n, labels).
        labels: Names in class order.
        truth: Index of the true emotion of all images.
        title: Line above the figure.
        file: PNG to write.
    """
    columns = 2 if maps is None else 3
    figure = Figure(figsize=(6.0, 1.75 * len(images) + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(len(images), columns, squeeze=False, width_ratios=[*[1] * (columns - 1), 1.25])
    for row, (image, likely) in enumerate(zip(images, probabilities, strict=True)):
        pixels = image[:, :, 0] if image.shape[2] == 1 else image
        for column, axes in enumerate(grid[row, :-1]):
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            if column == 1 and maps is not None:
                axes.imshow(maps[row], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
            axes.set_axis_off()
        _draw_bars(grid[row, -1], likely, labels, truth)
    return save(figure, file)


def _draw_bars(axes: Axes, probabilities: np.ndarray, labels: Sequence[str], truth: int) -> None:
    """Draw the three most probable emotions and the true one as bars; the true one is hatched."""
    top = np.argsort(-probabilities, kind="stable")[:3]
    shown = top if truth in top else np.append(top, truth)
    for position, index in enumerate(shown):
        share = float(probabilities[index])
        is_true = index == truth
        axes.barh(
            position,
            share,
            color="white" if is_true else BLUE,
            edgecolor=ORANGE if is_true else BLUE,
            hatch="////" if is_true else None,
            height=0.8,
        )
        name = f"{labels[index]} (true)" if is_true else labels[index]
        inside = share > 0.55 and not is_true
        axes.text(
            0.02 if inside else share + 0.02,
            position,
            f"{name} {share:.0%}",
            va="center",
            fontsize=11,
            color="white" if inside else "black",
        )
    axes.set(xlim=(0, 1.6), ylim=(3.6, -0.6))
    axes.set_axis_off()


def draw_differences(differences: pd.DataFrame, title: str, file: Path, interval: str) -> Path:
    """Draw differences between models with intervals, one row per score.

    Args:
        differences: Columns `difference` (name of the pair), `score`, `value`, `low`, `high`; shares.
        title: Line above the figure.
        file: PNG to write.
        interval: Name of the intervals, as `interval_text` gives it.
    """
    scores = list(dict.fromkeys(differences["score"]))
    pairs = list(dict.fromkeys(differences["difference"]))
    figure, axes = canvas(title, 6.4, (0.3 + 0.16 * len(pairs)) * len(scores) + 1.6)
    axes.axvline(0, color=BLACK, linewidth=1)
    for number, pair in enumerate(pairs):
        part = differences[differences["difference"] == pair].set_index("score").loc[scores]
        color, marker, _ = SERIES[number % len(SERIES)]
        rows = np.arange(len(scores)) + 0.22 * (number - (len(pairs) - 1) / 2)
        error = 100 * np.clip([part["value"] - part["low"], part["high"] - part["value"]], 0, None)
        axes.errorbar(100 * part["value"], rows, xerr=error, fmt=marker, color=color, capsize=3, label=pair)
    axes.set_yticks(range(len(scores)), [score.replace("_", " ").replace("/", ", ") for score in scores])
    axes.invert_yaxis()
    axes.set(xlabel=f"percentage points (line: {interval})")
    axes.grid(axis="x", color="#dddddd")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    return save(figure, file)
