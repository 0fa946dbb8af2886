"""Cross-validation: each image is predicted by the network that was trained without its fold."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError
from common.logging import silence_retracing
from configuration import EvaluationConfig
from evaluation.metrics.intervals import Estimate
from evaluation.metrics.paired import paired_difference
from evaluation.metrics.scores import estimate_scores, score_statistic, score_values
from evaluation.predictions import Load, Predictions, predict
from evaluation.report.section import Section, Table, interval_text, percent
from evaluation.sections.comparison import check_aligned, on_common_labels
from evaluation.sections.performance import MAIN_SCORES, format_estimate
from evaluation.sections.provenance import overlaps_training
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import read_card
from preprocessing.tables import labels_of, split_by_fold, usable, write_table
from training.cross_validation import SUBJECT_INDEPENDENT
from training.lineage import Exposure


def predict_folds(
    networks: Mapping[int, Path],
    model_file: Path,
    name: str,
    folder: Path,
    table: pd.DataFrame,
    column: str = SUBJECT_INDEPENDENT,
    load: Load = EmotionClassifier.load,
) -> Predictions:
    """Predict each fold with its own network, and pool the predictions in the order of the table.

    The probabilities are at temperature 1, as each temperature belongs to one network.

    Args:
        networks: Fold number -> network, as `training.cross_validation.fold_networks` returns them.
        model_file: The network that the folds represent; it need not exist.
        name: Name in the report.
        folder: Folder of the data set.
        table: Its `split.csv`.
        column: Column of the folds: `SUBJECT_INDEPENDENT` or `SUBJECT_DEPENDENT`.
        load: Loads the networks.

    Raises:
        InputError: As `predict`, or the networks know different emotions.
    """
    silence_retracing()
    parts = []
    for fold, file in networks.items():
        split = split_by_fold(table, fold, column)
        rows = usable(split)
        parts.append(predict(file, name, folder, split, rows[rows["split"] == "test"], "test", load))
        if parts[-1].labels != parts[0].labels:
            raise InputError(
                f"{file} is scored on {', '.join(parts[-1].labels)}, the network of another fold on "
                f"{', '.join(parts[0].labels)}; train all folds again on one split"
            )
    rows = pd.concat([part.rows for part in parts])
    order = np.argsort(pd.Index(table["path"]).get_indexer(pd.Index(rows["path"])))
    of_one_fold: dict[str, Any] = {
        "temperature": 1.0,
        "abstention_threshold": 0.0,
        "calibration": {},
        "split_hash": None,
        "training_images": None,
    }
    return replace(
        parts[0],
        model_file=model_file,
        card=replace(parts[0].card, **of_one_fold),
        split=f"{len(networks)} folds",
        rows=rows.iloc[order].reset_index(drop=True),
        images=np.concatenate([part.images for part in parts])[order],
        left_out=sum(part.left_out for part in parts),
        probabilities=np.concatenate([part.uncalibrated for part in parts])[order],
        exposure=Exposure.joined(part.exposure for part in parts).select(order),
        fold_column=column,
        classifiers={str(fold): part.classifiers[""] for fold, part in zip(networks, parts, strict=True)},
    )


def protocol_row(
    name: str,
    predictions: Predictions,
    table: pd.DataFrame,
    options: EvaluationConfig,
    scores: Collection[str] = MAIN_SCORES,
) -> dict[str, Any]:
    """Return scores with interval limits, and what a reader needs to compare protocols.

    Args:
        name: Name of the protocol.
        predictions: Its predictions.
        table: The whole `split.csv` of the data set.
        options: Resamples, seed and level.
        scores: Names of `score_statistic`.
    """
    values, intervals = estimate_scores(
        predictions.probabilities, predictions.truth, predictions.labels, predictions.clusters, options
    )
    row: dict[str, Any] = {"protocol": name, "n": len(predictions.rows), "emotions": len(predictions.labels)}
    for score in scores:
        row |= {score: values[score]}
        row |= dict(zip((f"{score}_low", f"{score}_high"), intervals[score], strict=True))
    shared = overlaps_training(predictions, table, "subject").sum() if predictions.has_subjects else None
    return row | {"known_subject_images": None if shared is None else int(shared)}


def score_and_interval(score: str, row: Mapping[str, Any] | pd.Series) -> str:
    """Return a score of a `protocol_row` with its interval in brackets."""
    return format_estimate(score, row[score], (row[f"{score}_low"], row[f"{score}_high"]))


def gap(
    predictions: Predictions, other: Predictions, options: EvaluationConfig, scores: Collection[str] = MAIN_SCORES
) -> tuple[int, dict[str, Estimate]]:
    """Return the number of common images, and the paired differences of scores, other minus own, on them.

    Raises:
        InputError: The images are in another order, or have other labels.
    """
    own = predictions.select(predictions.rows["path"].isin(other.rows["path"]).to_numpy())
    other = other.select(other.rows["path"].isin(own.rows["path"]).to_numpy())
    pair = on_common_labels([own, other])
    check_aligned(pair)
    first, second = (score_statistic(part.probabilities, part.truth, part.labels) for part in pair)
    return len(pair[0].rows), paired_difference(first, second, pair[0].clusters, options, scores)


def with_intervals(differences: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return differences in the form of `metrics.json`."""
    return {
        score: {"value": estimate.value, "interval": [estimate.low, estimate.high]}
        for score, estimate in differences.items()
    }


@dataclass(frozen=True)
class CrossValidation:
    """Scores of each fold, and of the pooled predictions under several protocols.

    Attributes:
        folds: A row per fold: images, subjects, training images, epoch, dev accuracy and scores.
        protocols: Rows of `protocol_row`; the first one is the protocol of the folds.
        differences: Protocol -> number of common images and paired differences, protocol minus folds.
        is_peak: Whether each image is the last scored frame of its sequence, or of no sequence, bool (n,).
    """

    folds: pd.DataFrame
    protocols: list[dict[str, Any]]
    differences: dict[str, tuple[int, dict[str, Estimate]]]
    is_peak: np.ndarray


def cross_validate(
    predictions: Predictions,
    others: Mapping[str, Predictions],
    networks: Mapping[int, Path],
    table: pd.DataFrame,
    options: EvaluationConfig,
) -> CrossValidation:
    """Score each fold, and compare protocols on the same images.

    Args:
        predictions: Pooled predictions of the folds.
        others: Name of another protocol -> its predictions for the same images.
        networks: Fold number -> network.
        table: The whole `split.csv` of the data set.
        options: Resamples, seed and level.
    """
    rows = [protocol_row(_own_name(predictions), predictions, table, options)]
    rows += [protocol_row(name, other, table, options) for name, other in others.items()]
    is_peak = _last_frames(predictions)
    if not is_peak.all():
        neutral = " and the neutral first one" if (predictions.rows["label_source"] == "first_frame").any() else ""
        rows.append(protocol_row(f"last frame of each sequence{neutral}", predictions.select(is_peak), table, options))
    return CrossValidation(
        _each_fold(predictions, networks),
        rows,
        {name: gap(predictions, other, options) for name, other in others.items()},
        is_peak,
    )


def cross_validation_section(
    predictions: Predictions,
    others: Mapping[str, Predictions],
    networks: Mapping[int, Path],
    table: pd.DataFrame,
    notes: list[str],
    warnings: list[str],
    report: Path,
    options: EvaluationConfig,
) -> Section:
    """Return the section on folds and protocols, and write `folds.csv` and `protocols.csv`.

    Args:
        predictions: As for `cross_validate`.
        others: As for `cross_validate`.
        networks: As for `cross_validate`.
        table: As for `cross_validate`.
        notes: Further sentences, such as protocols that were not measured.
        warnings: Warnings of the section.
        report: Folder of the report.
        options: Resamples, seed and level.
    """
    found = cross_validate(predictions, others, networks, table, options)
    folds, protocols = found.folds, pd.DataFrame(found.protocols).set_index("protocol")
    write_table(folds.reset_index(), report / "folds.csv")
    write_table(protocols.reset_index(), report / "protocols.csv")
    mean, spread = folds[list(MAIN_SCORES)].mean(), folds[list(MAIN_SCORES)].std(ddof=1)
    pooled = found.protocols[0]
    summary = (
        f"{len(folds)} folds: accuracy {percent(mean['accuracy'])} ± {100 * spread['accuracy']:.1f} (mean and standard "
        f"deviation over folds), pooled {percent(pooled['accuracy'])}; macro F1 {mean['macro_f1']:.3f} ± "
        f"{spread['macro_f1']:.3f}, pooled {pooled['macro_f1']:.3f}."
    )
    return Section(
        name="folds",
        title="Cross-validation",
        sentences=[
            summary,
            "Each image is predicted by the network that was trained without its fold; the next fold chose the epoch. "
            "The spread over folds is not the standard error of the mean: use the interval of the pooled score.",
            *(_difference_text(name, *each, predictions, options) for name, each in found.differences.items()),
            *notes,
            _subjects_text(predictions),
            _frames_text(predictions, found.is_peak),
            _emotions_text(predictions, table),
            "Not included, as they need a single network (--model): gallery, robustness, end-to-end evaluation.",
        ],
        warnings=warnings,
        tables=[
            Table(_printed(protocols, options), f"Protocols on {predictions.dataset}"),
            Table(
                _printed_folds(folds, mean, spread), f"Folds, {predictions.title}", percent=("accuracy", "dev accuracy")
            ),
        ],
        values={
            "column": predictions.fold_column,
            "summary": summary,
            "folds": folds.reset_index().to_dict("records"),
            "mean": mean.to_dict(),
            "standard_deviation": spread.to_dict(),
            "pooled": {score: pooled[score] for score in MAIN_SCORES},
            "protocols": found.protocols,
            "differences": {name: {"n": n, **with_intervals(each)} for name, (n, each) in found.differences.items()},
        },
    )


def settings_differ(networks: Iterable[Path]) -> str:
    """Return a warning if networks were trained with different settings, else an empty text.

    The precision does not count: the first fold may have recorded `auto`.
    """
    settings = [read_card(file).hyperparameters | {"precision": ""} for file in networks]
    names = sorted({name for one in settings for name in one if one[name] != settings[0].get(name)})
    if not names:
        return ""
    return f"the networks of the folds have different settings ({', '.join(names)}): train them again alike"


def _each_fold(predictions: Predictions, networks: Mapping[int, Path]) -> pd.DataFrame:
    rows = []
    for fold, file in networks.items():
        part = predictions.select((predictions.rows[predictions.fold_column] == str(fold)).to_numpy())
        card, measured = read_card(file), score_values(part.probabilities, part.truth, part.labels)
        rows.append(
            {
                "fold": str(fold),
                "images": len(part.rows),
                "subjects": part.rows["subject"].nunique() if predictions.has_subjects else None,
                "training_images": card.training_images,
                "epoch": card.epoch_chosen,
                "dev_accuracy": card.dev_accuracy,
                **{score: measured[score] for score in MAIN_SCORES},
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def _printed(protocols: pd.DataFrame, options: EvaluationConfig) -> pd.DataFrame:
    printed = pd.DataFrame({"n": protocols["n"], "emotions": protocols["emotions"]})
    for score, text in MAIN_SCORES.items():
        printed[f"{text} [{interval_text(options.level)}]"] = [
            score_and_interval(score, row) for _, row in protocols.iterrows()
        ]
    printed["images of training subjects"] = [
        "unknown" if pd.isna(count) else f"{int(count):,}" for count in protocols["known_subject_images"]
    ]
    return printed


def _printed_folds(folds: pd.DataFrame, mean: pd.Series, spread: pd.Series) -> pd.DataFrame:
    summary = pd.DataFrame([mean, spread], index=["mean", "standard deviation"])
    printed = pd.concat([folds.astype(object), summary.astype(object)]).rename_axis("fold")
    return printed.rename(columns=lambda name: name.replace("_", " ").replace("f1", "F1"))


def _own_name(predictions: Predictions) -> str:
    independent = predictions.fold_column == SUBJECT_INDEPENDENT and predictions.has_subjects
    return "subject-independent folds" if independent else "subject-dependent folds"


def _difference_text(
    name: str, n: int, difference: dict[str, Estimate], predictions: Predictions, options: EvaluationConfig
) -> str:
    change = difference["accuracy"]
    return (
        f"{name[0].upper()}{name[1:]}: accuracy {100 * change.value:+.1f} points against this protocol "
        f"({interval_text(options.level)} {100 * change.low:+.1f} to {100 * change.high:+.1f}, resampled by "
        f"{'subject' if predictions.has_subjects else 'image'}) on the same {n:,} images."
    )


def _subjects_text(predictions: Predictions) -> str:
    if not predictions.has_subjects:
        return (
            "The subject of some images is unknown: duplicates and sequences stay in one fold, but a subject may be in "
            "training and test. The score is then too high for new subjects."
        )
    return (
        f"Subject-independent: all images of a subject are in one fold ({predictions.clusters.max() + 1:,} subjects). "
        "Compare only with published scores of subject-independent folds; many use subject-dependent ones."
    )


def _last_frames(predictions: Predictions) -> np.ndarray:
    """Return whether each image is the last scored frame of its sequence, or of no sequence, bool (n,)."""
    rows = predictions.rows
    known = (rows["sequence"] != "") & (rows["label_source"] != "first_frame")
    number = pd.to_numeric(rows["frame"], errors="coerce")
    last = number == number.where(known).groupby(rows["sequence"]).transform("max")
    return (~known | last | number.isna()).to_numpy()


def _frames_text(predictions: Predictions, is_peak: np.ndarray) -> str:
    rows = predictions.rows
    first = int((rows["label_source"] == "first_frame").sum())
    if not (rows["sequence"] != "").any():
        return "The table has no sequences."
    neutral = f" {first:,} first frames count as neutral." if first else ""
    if is_peak.all():
        return f"One frame per expression is scored, the peak of its sequence.{neutral}"
    shown = rows.loc[rows["label_source"] != "first_frame", "sequence"]
    return (
        f"{len(shown):,} frames of {shown.nunique():,} sequences are scored, up to {shown.value_counts().max()} of "
        f"each.{neutral} Frames of a sequence are similar and stay in one fold."
    )


def _emotions_text(predictions: Predictions, table: pd.DataFrame) -> str:
    text = f"{len(predictions.labels)} emotions: {', '.join(predictions.labels)}."
    rows = usable(table)
    counts = rows.loc[~rows["emotion"].isin(predictions.labels), "emotion"].value_counts()
    if len(counts):
        absent = ", ".join(f"{name} ({counts[name]:,} images)" for name in labels_of(rows) if name in counts)
        text += f" Left out: {absent}."
    return f"{text} Compare only with scores over the same emotions (step 3, --without contempt)."
