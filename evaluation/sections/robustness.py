"""Robustness to occlusion and corruption: accuracy on perturbed faces, and the paired comparison of models.

All perturbations and models see the same images with the same random numbers, so that all differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from common.command_line import progress_bar
from configuration import EVALUATION, EvaluationConfig, FaceConfig
from evaluation.metrics.intervals import (
    Estimate,
    Statistic,
    boundary_interval,
    percentile_interval,
    resampled_means,
    subject_clusters,
)
from evaluation.metrics.paired import paired_difference
from evaluation.perturbations import CURVES, PART, PERTURBATIONS, Curve, crop_landmarks, perturb
from evaluation.report.plots import GRAY, SERIES, canvas, save
from evaluation.report.section import Figure, Section, Table, interval_text
from preprocessing.tables import write_table

Predict = Callable[[np.ndarray], np.ndarray]

IMAGES = 500  # maximum number of images of the split, subsampled with the seed
CLEAN = "none"  # name of the unperturbed images in tables
NAMES = [CLEAN, *(perturbation.name for perturbation in PERTURBATIONS)]
DROP = "difference of drops"


@dataclass(frozen=True)
class Robustness:
    """Accuracy on perturbed faces.

    Attributes:
        accuracy: A row per model and perturbation, unperturbed first: `model`, `perturbation`, `kind`, `curve`,
            `strength`, `accuracy` with `low` and `high`, and its `drop` with `drop_low` and `drop_high`; shares 0-1.
        comparisons: Other model -> how much more accuracy the first model loses: `perturbation`, `difference of
            drops`, `low`, `high`. Rows `mean: KIND` are means over perturbations.
        images: Number of images.
        available: Number of images from which these were drawn.
        with_landmarks: Images whose landmarks come from the table; the others use the template.
        by_subject: Whether subjects were resampled instead of images.
        majority: Share of the most frequent emotion, 0-1.
    """

    accuracy: pd.DataFrame
    comparisons: dict[str, pd.DataFrame]
    images: int
    available: int
    with_landmarks: int
    by_subject: bool
    majority: float


def robustness_section(
    models: Mapping[str, Predict],
    rows: pd.DataFrame,
    images: np.ndarray,
    labels: Sequence[str],
    crops: FaceConfig,
    report: Path,
    limit: int = IMAGES,
    options: EvaluationConfig = EVALUATION,
    title: str = "",
) -> Section:
    """Measure the accuracy of models on perturbed faces, and report it.

    Args:
        models: Name -> function from images, uint8 (n, size, size, channels), to probabilities, (n, labels). The other
            models are compared with the first.
        rows: Rows of the images: `emotion`, all of them among `labels`; `face_status`, box and landmarks; `subject`.
        images: uint8 (n, size, size, channels), the crops of these rows.
        labels: Labels in the order of the probabilities.
        crops: Size and alignment of the crops.
        report: Folder for the figures.
        limit: Maximum number of images; more are subsampled with the seed.
        options: Resamples, level and seed.
        title: Line above the figures.
    """
    chosen = np.sort(np.random.default_rng(options.seed).choice(len(rows), min(limit, len(rows)), replace=False))
    sampled, images = rows.iloc[chosen], np.asarray(images[chosen])
    points, known = crop_landmarks(sampled, crops)
    truth = pd.Categorical(sampled["emotion"], categories=list(labels)).codes.astype(np.int64)
    correct = _correct(models, images, points, truth, options.seed)
    clusters = subject_clusters(sampled)
    first, *others = models
    found = Robustness(
        accuracy_table(correct, clusters, options),
        {other: compare_drops(correct[first], correct[other], clusters, options) for other in others},
        images=len(truth),
        available=len(rows),
        with_landmarks=int(known.sum()),
        by_subject=clusters is not None,
        majority=float(np.bincount(truth).max() / len(truth)),
    )
    return _display(found, list(models), images[:2], points[:2], report, options, title)


def _correct(
    models: Mapping[str, Predict], images: np.ndarray, points: np.ndarray, truth: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return whether each model is correct, bool (n, 1 + perturbations); the first column is unperturbed."""
    correct = {name: np.empty((len(truth), len(NAMES)), bool) for name in models}
    with progress_bar() as bar:
        for column, perturbation in enumerate(bar.track([None, *PERTURBATIONS], description="robustness")):
            shown = perturb(perturbation, images, points, seed) if perturbation else images
            for name, predict in models.items():
                correct[name][:, column] = predict(shown).argmax(axis=1) == truth
    return correct


def accuracy_table(
    correct: Mapping[str, np.ndarray], clusters: np.ndarray | None, options: EvaluationConfig
) -> pd.DataFrame:
    """Return `Robustness.accuracy`.

    Args:
        correct: Model -> whether it is correct, bool (n, 1 + perturbations).
        clusters: Subject of each image, int (n,); None: images are resampled.
        options: Resamples, level and seed.
    """
    about = pd.DataFrame(
        [(CLEAN, "", "", 0.0), *((p.name, p.kind, p.curve, p.strength) for p in PERTURBATIONS)],
        columns=["perturbation", "kind", "curve", "strength"],
    )
    parts = []
    for name, hits in correct.items():
        resampled = resampled_means(hits, clusters, options.resamples, options.seed)
        ends = [
            boundary_interval(column, np.ones(len(hits)), clusters, options.level) or limits
            for column, *limits in zip(hits.T, *percentile_interval(resampled, options.level), strict=True)
        ]
        drops = paired_difference(_accuracies(hits), _unperturbed(hits), _cluster_numbers(clusters, hits), options)
        part = about.assign(model=name, accuracy=hits.mean(axis=0))
        part[["low", "high"]] = ends
        part[["drop", "drop_low", "drop_high"]] = [drops[perturbation] for perturbation in NAMES]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def compare_drops(
    first: np.ndarray, second: np.ndarray, clusters: np.ndarray | None, options: EvaluationConfig
) -> pd.DataFrame:
    """Return how much more accuracy the first model loses than the second; see `Robustness.comparisons`.

    Args:
        first: Whether the first model is correct, bool (n, 1 + perturbations).
        second: The same of the second model, on the same images.
        clusters: Subject of each image, int (n,); None: images are resampled.
        options: Resamples, level and seed.
    """
    found = paired_difference(_drops(second), _drops(first), _cluster_numbers(clusters, first), options)
    return pd.DataFrame([(name, *difference) for name, difference in found.items()],
                        columns=["perturbation", DROP, "low", "high"])  # fmt: skip


def _cluster_numbers(clusters: np.ndarray | None, hits: np.ndarray) -> np.ndarray:
    return np.arange(len(hits)) if clusters is None else clusters


def _accuracies(hits: np.ndarray) -> Statistic:
    return lambda weights: dict(zip(NAMES, (weights @ hits / weights.sum(axis=1, keepdims=True)).T, strict=True))


def _unperturbed(hits: np.ndarray) -> Statistic:
    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        clean = weights @ hits[:, 0] / weights.sum(axis=1)
        return dict(zip(NAMES, [clean] * len(NAMES), strict=True))

    return statistic


def _drops(hits: np.ndarray) -> Statistic:
    """Return the drop of accuracy by perturbation, and its means over kinds and over all, as functions of weights."""
    kinds = np.array([perturbation.kind for perturbation in PERTURBATIONS])

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        accuracies = weights @ hits / weights.sum(axis=1, keepdims=True)
        drops = accuracies[:, :1] - accuracies[:, 1:]
        means = {f"mean: {kind}": drops[:, kinds == kind].mean(axis=1) for kind in dict.fromkeys(kinds)}
        return dict(zip(NAMES[1:], drops.T, strict=True)) | means | {"mean: all": drops.mean(axis=1)}

    return statistic


# ---------------------------------------------------------------- display


def _display(
    found: Robustness,
    models: list[str],
    images: np.ndarray,
    points: np.ndarray,
    report: Path,
    options: EvaluationConfig,
    title: str,
) -> Section:
    interval = interval_text(options.level)
    sample = f", a random sample of {found.available}" if found.images < found.available else ""
    sentences = [
        f"{found.images} images{sample}. Parts of the face are located by its landmarks in {found.with_landmarks} of "
        f"them and by the template in the others. The crop is perturbed, so that face detection is not measured. Each "
        f"{interval} is by bootstrap over {'subjects' if found.by_subject else 'images'}, or Wilson's for an accuracy "
        "of 0 or 100 %.",
        *(_summary(name, found.accuracy.loc[found.accuracy["model"] == name]) for name in models),
    ]
    tables = [Table(_printed(found.accuracy, models), f"Accuracy on perturbed faces, with {interval}s")]
    first = models[0]
    for other, comparison in found.comparisons.items():
        value, low, high = comparison.loc[comparison["perturbation"] == "mean: all", [DROP, "low", "high"]].to_numpy()[
            0
        ]
        verdict = "no significant difference" if low <= 0 <= high else f"{first if high < 0 else other} is more robust"
        sentences.append(
            f"Accuracy that {first} loses on average over all perturbations, minus that of {other}: "
            f"{Estimate(value, low, high)} points, {verdict}."
        )
        caption = f"Points of accuracy that {first} loses more than {other} (negative: fewer), with {interval}s"
        tables.append(Table(comparison.set_index("perturbation"), caption, (DROP, "low", "high")))
    figures = [
        _draw_parts(found, models, title, report / "robustness_parts.png", interval),
        _draw_curves(found, models, title, report / "robustness_curves.png", interval),
        _draw_examples(images, points, options.seed, report / "perturbations.png"),
    ]
    values: dict[str, Any] = {"n": found.images, "perturbations": found.accuracy.to_dict("records")}
    values |= {f"{first} against {other}": frame.to_dict("records") for other, frame in found.comparisons.items()}
    return Section("robustness", "Occlusion and corruption robustness", sentences, [], tables, figures, values)


def _summary(name: str, own: pd.DataFrame) -> str:
    clean, parts = own.iloc[0], own.loc[own["kind"] == PART].sort_values("drop", ascending=False)
    # The extremes have no interval, because it would ignore that they were selected.
    worst, least = (
        f"{row['perturbation']}, {100 * row['drop']:.1f} points" for _, row in parts.iloc[[0, -1]].iterrows()
    )
    return (
        f"{name}: accuracy {Estimate(clean['accuracy'], clean['low'], clean['high'])} % on unperturbed images. "
        f"Occluded parts of the face with the largest and smallest drop: {worst}; {least}."
    )


def _printed(accuracy: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Return the table of the report: models side by side, drops in percentage points."""
    printed = pd.DataFrame(index=pd.Index(NAMES, name="perturbation"))
    for name in models:
        own = accuracy.loc[accuracy["model"] == name]
        for heading, columns in (
            ("accuracy, %", ["accuracy", "low", "high"]),
            ("points lost", ["drop", "drop_low", "drop_high"]),
        ):
            printed[f"{name}: {heading}"] = [str(Estimate(*values)) for values in own[columns].to_numpy()]
        printed.loc[CLEAN, f"{name}: points lost"] = "–"
    return printed


def _draw_parts(found: Robustness, models: list[str], title: str, file: Path, interval: str) -> Figure:
    shown = found.accuracy.loc[found.accuracy["kind"].isin(["", PART])]
    names = list(dict.fromkeys(shown["perturbation"]))
    figure, axes = canvas(title, 7.5, 0.42 * len(names) + 1.4)
    for number, name in enumerate(models):
        own, (color, marker, _) = shown.loc[shown["model"] == name], SERIES[number % len(SERIES)]
        places = np.arange(len(own)) + (number - (len(models) - 1) / 2) * 0.25
        errors = np.stack([own["accuracy"] - own["low"], own["high"] - own["accuracy"]]).clip(0)
        axes.errorbar(own["accuracy"], places, xerr=errors, label=name, fmt=marker, color=color, capsize=2)
    axes.axvline(found.majority, color=GRAY, linestyle=":", label="most frequent emotion")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy, {interval}", xlim=(0, 1))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    write_table(shown, file.with_suffix(".csv"))
    worst = shown.sort_values("accuracy").iloc[0]
    return Figure(
        save(figure, file),
        f"Accuracy with parts of the face occluded ({found.images:,} images, {interval}s).",
        f"A dot with an interval for each part; the lowest is {worst['perturbation']} with {worst['accuracy']:.0%}.",
    )


def _draw_curves(found: Robustness, models: list[str], title: str, file: Path, interval: str) -> Figure:
    figure = matplotlib.figure.Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = cast(np.ndarray, figure.subplots(2, 4, sharey=True)).ravel()
    for axes, (key, curve) in zip(panels, CURVES.items(), strict=False):
        own = found.accuracy.loc[(found.accuracy["curve"] == key) | (found.accuracy["perturbation"] == CLEAN)]
        _draw_curve(axes, own, curve, models)
        axes.axhline(found.majority, color=GRAY, linestyle=":", label="most frequent emotion")
    for axes in panels[:: len(panels) // 2]:
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylim(0, 1)
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize="small")
    write_table(found.accuracy.loc[found.accuracy["kind"] != PART], file.with_suffix(".csv"))
    return Figure(
        save(figure, file),
        f"Accuracy by strength of the perturbation ({found.images:,} images; the bands are {interval}s).",
        "Seven curves, one for each kind of perturbation; each starts at the accuracy on unperturbed images.",
    )


def _draw_curve(axes: Axes, accuracy: pd.DataFrame, curve: Curve, models: list[str]) -> None:
    strength = accuracy["strength"].where(accuracy["perturbation"] != CLEAN, curve.unperturbed)
    accuracy = accuracy.assign(strength=strength).sort_values("strength")
    for number, name in enumerate(models):
        own, (color, marker, _) = accuracy.loc[accuracy["model"] == name], SERIES[number % len(SERIES)]
        axes.plot(own["strength"], own["accuracy"], color=color, marker=marker, label=name)
        axes.fill_between(own["strength"], own["low"], own["high"], color=color, alpha=0.18, linewidth=0)
    if curve.unperturbed:
        axes.invert_xaxis()  # every curve gets worse to the right
    if "share" in curve.axis:
        axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(curve.axis)
    axes.grid(alpha=0.3)


def _draw_examples(images: np.ndarray, points: np.ndarray, seed: int, file: Path) -> Figure:
    """Draw the images under every perturbation."""
    versions = {CLEAN: images} | {each.name: perturb(each, images, points, seed) for each in PERTURBATIONS}
    count, side, columns = len(images), images.shape[1], 7
    height, width = round(1.35 * side), round((count + 0.15) * side)  # of a place, with room for its name
    rows = -(-len(versions) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    figure = matplotlib.figure.Figure(figsize=(1.75 * columns, 1.2 * rows), layout="constrained")
    axes = figure.subplots()
    for place, (name, shown) in enumerate(versions.items()):
        bottom, left = (place // columns + 1) * height, place % columns * width
        sheet[bottom - side : bottom, left : left + count * side] = np.concatenate(list(shown), axis=1)  # gray or RGB
        axes.text(left, bottom - side - 0.05 * side, name, fontsize=8)
    axes.imshow(sheet)
    axes.axis("off")
    return Figure(
        save(figure, file),
        "Two of the images under every perturbation.",
        f"{len(NAMES)} small pictures: two faces, unperturbed and under each perturbation.",
        shows_faces=True,
    )
