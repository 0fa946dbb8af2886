"""A cross-validation: every image answered by the network that did not learn from it, beside other ways to test.

How a data set is divided changes a score more than most networks do. The comparison is a list of rows, each made from
some `Answers` on the same images: folds by subject, folds that ignore who is in the pictures, a network that never saw
this data.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError
from common.logging import silence_retracing
from configuration import EvaluationConfig
from evaluation.metrics.intervals import bootstrap, percentile_intervals
from evaluation.metrics.scores import estimate_scores, score_statistic
from evaluation.predictions import Predictions, predict
from evaluation.report.section import Section, Table, interval_text, percent
from evaluation.sections.comparison import check_aligned, on_common_labels
from evaluation.sections.performance import MAIN_SCORES, format_interval, format_score, measure
from evaluation.sections.provenance import overlaps_training
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
) -> Predictions:
    """Ask each fold's network about the images of that fold, and pool the answers, in the order of the table.

    The probabilities are as the networks give them: a temperature belongs to one network.

    Args:
        networks: Fold number -> network, as `folds.fold_networks` has checked them.
        model_file: The network that the folds stand for; it need not exist.
        name: What the report calls them.
        folder: The data set's folder.
        table: Its `split.csv`.
        column: Which folds: `folds.STRICT` or `folds.LOOSE`.

    Raises:
        InputError: as `answers.ask`, or the networks do not know the same emotions.
    """
    silence_retracing()
    predictions = []
    for fold, file in networks.items():
        split = split_by_fold(table, fold, column)
        rows = usable(split)
        predictions.append(predict(file, name, folder, split, rows[rows["split"] == "test"], "test"))
        if predictions[-1].labels != predictions[0].labels:
            raise InputError(
                f"{file} is scored on {', '.join(predictions[-1].labels)}, the network of another fold on "
                f"{', '.join(predictions[0].labels)}; train all folds again on one split"
            )
    rows = pd.concat([part.rows for part in predictions])
    order = np.argsort(pd.Index(table["path"]).get_indexer(pd.Index(rows["path"])))
    unfit: dict[str, Any] = {
        "temperature": 1.0,
        "abstention_threshold": 0.0,
        "calibration": {},
        "split_hash": None,
        "training_images": None,
    }
    return replace(
        predictions[0],
        model_file=model_file,
        card=replace(predictions[0].card, **unfit),  # what differs from fold to fold is none of the whole
        split=f"{len(networks)} folds",
        rows=rows.iloc[order].reset_index(drop=True),
        images=np.concatenate([part.images for part in predictions])[order],
        left_out=sum(part.left_out for part in predictions),
        probabilities=np.concatenate([part.uncalibrated for part in predictions])[order],
        exposure=Exposure.joined(part.exposure for part in predictions).select(order),
        fold_column=column,
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
    """Return the scores of each fold, their mean and spread, and what other protocols give.

    Args:
        answers: The pooled answers of the folds.
        others: What to set beside them: a protocol in words -> answers to the same images.
        networks: Fold number -> network.
        table: All of the data set's `split.csv`.
        notes: What else a reader must know, such as which protocol was not measured, and why.
        warnings: What makes these numbers less than clean.
        report: Folder of `folds.csv` and `protocols.csv`.
        options: For the intervals.
    """
    folds = _each_fold(predictions, networks)
    write_table(folds.reset_index(), report / "folds.csv")
    rows = [protocol_row(_own_name(predictions), predictions, table, options)]
    rows += [protocol_row(name, other, table, options) for name, other in others.items()]
    peaks = _last_frames(predictions)
    if not peaks.all():
        neutral = " (and the neutral first one)" if (predictions.rows["label_source"] == "first_frame").any() else ""
        name = f"the same answers, of each sequence the last frame alone{neutral}"
        rows.append(protocol_row(name, predictions.select(peaks), table, options))
    protocols = pd.DataFrame(rows).set_index("protocol")
    write_table(protocols.reset_index(), report / "protocols.csv")
    gaps = {name: gap(predictions, other, options) for name, other in others.items()}
    mean, spread, pooled = folds[list(MAIN_SCORES)].mean(), folds[list(MAIN_SCORES)].std(ddof=1), rows[0]
    summary = (
        f"{len(folds)} folds: accuracy {percent(mean['accuracy'])} ± {100 * spread['accuracy']:.1f} (mean and standard "
        f"deviation over the folds), pooled {percent(pooled['accuracy'])}; macro F1 {mean['macro_f1']:.3f} ± "
        f"{spread['macro_f1']:.3f}, pooled {pooled['macro_f1']:.3f}."
    )
    return Section(
        name="folds",
        title="Folds and protocols",
        sentences=[
            summary,
            "Each image is answered by the one network that did not learn from it; that network's epoch was chosen on "
            "the next fold. The folds differ by who is in them and the networks share most of their training images, "
            "so the spread is not the error of the mean: for that, see the interval of the pooled score. F1 is over "
            "the emotions that a fold shows.",
            *(_gap_in_words(name, difference, predictions, options) for name, difference in gaps.items()),
            *notes,
            _people_in_words(predictions),
            _frames_in_words(predictions, peaks),
            _emotions_in_words(predictions, table),
            "Left out, because they need one single network: the gallery with Grad-CAM, covered faces, whole pictures. "
            "Evaluate a network by itself for these (--model).",
        ],
        warnings=warnings,
        tables=[
            Table(_printed(protocols, options), f"Ways to test, on {predictions.dataset}"),
            Table(
                _printed_folds(folds, mean, spread),
                f"Each fold, {predictions.title}",
                percent=("accuracy", "dev accuracy"),
            ),
        ],
        values={
            "column": predictions.fold_column,
            "summary": summary,
            "folds": folds.reset_index().to_dict("records"),
            "mean": mean.to_dict(),
            "standard_deviation": spread.to_dict(),
            "pooled": {score: pooled[score] for score in MAIN_SCORES},
            "protocols": rows,
            "differences": gaps,
        },
    )


def settings_differ(networks: Iterable[Path]) -> str:
    """Return a warning where networks that are set side by side were not trained with the same settings, else nothing.

    The precision does not count: the first fold's may be recorded as `auto`.
    """
    settings = [read_card(file).hyperparameters | {"precision": ""} for file in networks]
    names = sorted({name for one in settings for name in one if one[name] != settings[0].get(name)})
    if not names:
        return ""
    return (
        f"the folds' networks were trained with different settings ({', '.join(names)}): train all of them again alike"
    )


def protocol_row(
    name: str,
    predictions: Predictions,
    table: pd.DataFrame,
    options: EvaluationConfig,
    scores: Collection[str] = MAIN_SCORES,
) -> dict[str, Any]:
    """Return one row of the comparison of protocols, as `protocols.csv` holds it.

    Args:
        name: The protocol in words.
        answers: To the images of the table, or to some of them.
        table: All of the data set's `split.csv`.
        options: For the intervals.
        scores: Which ones, of those of `score_statistic`.
    """
    values, intervals = estimate_scores(
        predictions.probabilities, predictions.truth, predictions.labels, predictions.clusters, options
    )
    row: dict[str, Any] = {"protocol": name, "n": len(predictions.rows), "emotions": len(predictions.labels)}
    for score in scores:
        row |= {score: values[score]}
        row |= dict(zip((f"{score}_low", f"{score}_high"), intervals[score], strict=True))
    row["known_people"] = (
        int(overlaps_training(predictions, table, "subject").sum()) if predictions.has_subjects else None
    )
    return row


def score_and_interval(score: str, row: Mapping[str, Any] | pd.Series) -> str:
    """Return a score of a `protocol_row` with its interval, as one reads it."""
    return f"{format_score(score, row[score])} [{format_interval(score, (row[f'{score}_low'], row[f'{score}_high']))}]"


def gap(
    predictions: Predictions, other: Predictions, options: EvaluationConfig, scores: Collection[str] = MAIN_SCORES
) -> dict[str, Any]:
    """Return the differences of scores, other minus own, on the images both answered, each with a paired interval.

    Raises:
        InputError: the two answered these images in another order, or with other labels.
    """
    own = predictions.select(predictions.rows["path"].isin(other.rows["path"]).to_numpy())
    other = other.select(other.rows["path"].isin(own.rows["path"]).to_numpy())
    pair = on_common_labels([own, other])
    check_aligned(pair)
    statistics = [score_statistic(part.probabilities, part.truth, part.labels) for part in pair]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, second = (one(weights) for one in statistics)
        return {score: second[score] - first[score] for score in scores}

    count = len(pair[0].rows)
    drawn = bootstrap(statistic, pair[0].clusters, options.resamples, options.seed)
    intervals = percentile_intervals(drawn, options.level)
    values = statistic(np.ones((1, count)))
    return {"n": count} | {
        score: {"value": float(values[score][0]), "interval": list(intervals[score])} for score in scores
    }


def _each_fold(predictions: Predictions, networks: Mapping[int, Path]) -> pd.DataFrame:
    """Return a row per fold: what its network learnt from, how its epoch was chosen, and its scores."""
    rows = []
    for fold, file in networks.items():
        part = predictions.select((predictions.rows[predictions.fold_column] == str(fold)).to_numpy())
        card, measured = read_card(file), measure(part)
        rows.append(
            {
                "fold": str(fold),
                "images": len(part.rows),
                "people": part.rows["subject"].nunique() if predictions.has_subjects else None,
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
    printed["images of people the network learnt from"] = [
        "not known" if pd.isna(count) else f"{int(count):,}" for count in protocols["known_people"]
    ]
    return printed


def _printed_folds(folds: pd.DataFrame, mean: pd.Series, spread: pd.Series) -> pd.DataFrame:
    summary = pd.DataFrame([mean, spread], index=["mean", "standard deviation"])
    printed = pd.concat([folds.astype(object), summary.astype(object)]).rename_axis("fold")
    return printed.rename(columns=lambda name: name.replace("_", " ").replace("f1", "F1"))


def _own_name(predictions: Predictions) -> str:
    if predictions.fold_column != SUBJECT_INDEPENDENT or not predictions.has_subjects:
        return "folds that ignore who is in the pictures"
    return "folds by subject: nobody is in training and test"


def _gap_in_words(name: str, difference: dict[str, Any], predictions: Predictions, options: EvaluationConfig) -> str:
    accuracy = difference["accuracy"]
    low, high = (f"{100 * limit:+.1f}" for limit in accuracy["interval"])
    by = "by person" if predictions.has_subjects else "by image"
    return (
        f"{name[0].upper()}{name[1:]}: accuracy {100 * accuracy['value']:+.1f} points against this protocol "
        f"({interval_text(options.level)} {low} to {high}, resampled {by}) on the same {difference['n']:,} images."
    )


def _people_in_words(predictions: Predictions) -> str:
    if not predictions.has_subjects:
        return (
            "It is not known of every image who is in it: copies and sequences stay in one fold, but a person may be "
            "in training and test, which makes the score too good for people whom a network has never seen."
        )
    return (
        f"All images of a person are in one fold ({predictions.clusters.max() + 1:,} people). Many published "
        "scores on posed sequences divide images or sequences instead, so that the same people are in training and "
        "test. Compare only with scores of folds by subject. A protocol looser still, "
        "which divides single frames so that neighbouring frames of a sequence are on both sides, is not offered."
    )


def _last_frames(predictions: Predictions) -> np.ndarray:
    """Return whether each image is its sequence's last one of those scored, or of no sequence, bool (n,)."""
    rows = predictions.rows
    known = (rows["sequence"] != "") & (rows["label_source"] != "first_frame")
    number = pd.to_numeric(rows["frame"], errors="coerce")
    last = number == number.where(known).groupby(rows["sequence"]).transform("max")
    return (~known | last | number.isna()).to_numpy()


def _frames_in_words(predictions: Predictions, peaks: np.ndarray) -> str:
    sequences = predictions.rows["sequence"]
    first = int((predictions.rows["label_source"] == "first_frame").sum())
    if not (sequences != "").any():
        return "The table knows no sequences: every image counts by itself."
    neutral = f" {first:,} first frames count as neutral." if first else ""
    if peaks.all():
        return (
            f"One frame of each expression is scored, the peak of its sequence.{neutral} Scores on the last three "
            "frames of each sequence are another protocol (step 1, --frames last:3)."
        )
    shown = predictions.rows[predictions.rows["label_source"] != "first_frame"]["sequence"]
    return (
        f"{len(shown):,} frames of {shown.nunique():,} sequences are scored, up to {shown.value_counts().max()} of "
        f"each.{neutral} Frames of a sequence resemble each other, so they tell less than as many peaks, and they stay "
        "in one fold. The score on the last frames alone stands beside it; trained on peaks alone it would be another "
        "protocol (step 1, --frames peak)."
    )


def _emotions_in_words(predictions: Predictions, table: pd.DataFrame) -> str:
    text = f"{len(predictions.labels)} emotions are told apart: {', '.join(predictions.labels)}."
    rows = usable(table)
    counts = rows.loc[~rows["emotion"].isin(predictions.labels), "emotion"].value_counts()
    if len(counts):
        absent = ", ".join(f"{name} ({counts[name]:,} images)" for name in labels_of(rows) if name in counts)
        text += f" Left out: {absent}."
    return (
        f"{text} Published scores are over six, seven or eight emotions, with or without contempt and neutral; fewer "
        "are easier, so compare like with like (step 3, --without contempt or --without neutral)."
    )
