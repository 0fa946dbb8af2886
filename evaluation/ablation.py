"""Ablation: train variants of the network on one data set, and compare them on the same images.

Reads:  data/NAME/split.csv, its images and crops; with --settings the settings that step2_tuning wrote
Writes: models/NAME/ablation/*.keras with their cards; data/NAME/whole/ (full images without face detection);
        reports/NAME/ablation/SPLIT/: ablation.csv, ablation.json, ablation.png (with --folds: .../ablation/folds/)

    python -m evaluation.ablation --dataset ckplus

The variants: the baseline on full images; the tuned network on full images; the same on face crops; fine-tuned from the
released network; and the released network without fine-tuning. An interrupted run resumes, and finished variants are
not trained again. With --folds every variant is one network per fold, and each fold is predicted by its own network.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run, typed_command
from common.emotions import relate
from common.errors import InputError
from common.logging import quiet_start, silence_retracing
from configuration import (
    BASELINES,
    BEST,
    EVALUATION,
    FINE_TUNING,
    PATHS,
    SAMPLE_NAME,
    TrainingConfig,
)
from evaluation.metrics.intervals import MIN_SUBJECTS
from evaluation.metrics.paired import holm, is_significant, mcnemar
from evaluation.predictions import Predictions, predict
from evaluation.report.plots import BLACK, BLUE, ORANGE, canvas, save
from evaluation.report.section import interval_text, percent
from evaluation.report.writer import report_folder, write_json
from evaluation.sections.comparison import on_common_labels
from evaluation.sections.cross_dataset import predict_with
from evaluation.sections.cross_validation import gap, predict_folds, protocol_row, score_and_interval, with_intervals
from evaluation.sections.provenance import banner, protocol
from evaluation.selection import rows_of_split
from inference.lineage import ImageHashes
from inference.model_card import check_crops, read_card
from preprocessing.tables import SPLITS, crop_options, fold_numbers, labels_of, read_table, usable, write_table
from preprocessing.whole_images import are_whole, write_whole_images
from training.cross_validation import fit_folds, fold_networks
from training.settings import read_settings, settings_images, shortened

BASELINE, FULL_IMAGES, CROPS = "baseline", "tuned-full-images", "tuned-crops"
FINE_TUNED, PRETRAINED = "fine-tuned", "pretrained"


@dataclass(frozen=True)
class Variant:
    """A variant of the network that is trained.

    Attributes:
        name: Name of its file.
        title: Description for tables and figures.
        folder: Folder of the data set that it is trained on: of face crops or of full images.
        config: Settings of its training.
        settings_hashes: Images on which its settings were selected; None for configured settings.
    """

    name: str
    title: str
    folder: Path
    config: TrainingConfig
    settings_hashes: ImageHashes | None = None


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    pretrained: Annotated[Path, typer.Option(help="Network to fine-tune and to evaluate.")] = PATHS.pretrained,
    settings: Annotated[
        Path | None,
        typer.Option(help="Settings of the tuned network, such as tuned.json.", show_default="configuration.py"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help=f"Split to evaluate: {', '.join(SPLITS)}.", show_default="test, else dev")
    ] = None,
    folds: Annotated[bool, typer.Option("--folds", help="Train every variant once per fold of the split.")] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of every variant.", show_default="each variant's own")
    ] = None,
) -> None:
    """Train baseline, tuned and fine-tuned networks on a data set, and compare them."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    if folds and split:
        raise InputError("--split does not go with --folds: every fold is tested once; leave one out")
    if folds:
        fold_numbers(table)
    card = read_card(pretrained)
    check_crops(pretrained, card, crop_options(folder), folder.name)
    relate(card.labels, labels_of(usable(table)))
    full, notes = folder, ["The images are face crops already: there is no variant on full images."]
    if not are_whole(table):
        full = write_whole_images(folder)
        left_out = len(usable(table.assign(face_status="found"))) - len(usable(table))
        notes = [f"No variant uses the {left_out:,} images without a detected face."]
    variants = plan(folder, full, settings, pretrained, epochs)
    files = {variant.name: models / dataset / "ablation" / f"{variant.name}.keras" for variant in variants}
    for variant in variants:
        print(f"--- {variant.title}", flush=True)
        train(variant, files[variant.name], folds)
    silence_retracing()
    predictions = [predict_variant(variant, files[variant.name], split, folds) for variant in variants]
    predictions.append(predict_with(predictions[-1], pretrained, table, PRETRAINED))
    titles = [*(variant.title for variant in variants), f"{pretrained.name} without fine-tuning"]
    report = reports / dataset / "ablation" / ("folds" if folds else predictions[0].split)
    write_ablation(predictions, titles, table, notes, report)


def plan(folder: Path, full: Path, settings: Path | None, pretrained: Path, epochs: int | None) -> list[Variant]:
    """Return the variants to train.

    Args:
        folder: Folder of the face crops.
        full: Folder of the full images; the same folder if the data set has face crops only.
        settings: File of settings that step2_tuning wrote; None for the configured ones.
        pretrained: Network to fine-tune.
        epochs: Epochs of every variant; None for its own.
    """
    has_full = full != folder
    on_full, on_crops = ("full images", "face crops") if has_full else ("the images", "the images")
    best, how, hashes = BEST, "configured network", None
    if settings:
        best, how = read_settings(settings), "tuned network"
        hashes = settings_images(settings, read_table(folder, "split.csv"), folder.name)
    fine_tuning = replace(FINE_TUNING, pretrained=str(pretrained))
    variants = [
        Variant(BASELINE, f"baseline (cifar10) on {on_full}", full, BASELINES["cifar10"]),
        *([Variant(FULL_IMAGES, f"{how} on full images", full, best, hashes)] if has_full else []),
        Variant(CROPS, f"{how} on {on_crops}", folder, best, hashes),
        Variant(FINE_TUNED, f"fine-tuned from {pretrained.name} on {on_crops}", folder, fine_tuning),
    ]
    typed = {} if epochs is None else {"epochs": epochs}
    return [replace(variant, config=shortened(replace(variant.config, **typed))) for variant in variants]


def train(variant: Variant, model_file: Path, folds: bool) -> None:
    """Train a variant, or resume it; a finished one is left unchanged."""
    with quiet_start():
        from training.trainer import train_network

    table, fit = read_table(variant.folder, "split.csv"), fit_folds if folds else train_network
    fit(table, variant.folder, model_file, variant.config, typed_command(), settings_hashes=variant.settings_hashes)


def predict_variant(variant: Variant, model_file: Path, split: str | None, folds: bool) -> Predictions:
    """Return the predictions of a variant on a split, or on each fold by its own network."""
    table = read_table(variant.folder, "split.csv")
    if folds:
        networks = fold_networks(model_file, variant.folder, table)
        return predict_folds(networks, model_file, variant.name, variant.folder, table)
    rows, split, _ = rows_of_split(table, split, variant.folder)
    return predict(model_file, variant.name, variant.folder, table, rows, split)


def write_ablation(
    predictions: Sequence[Predictions],
    titles: Sequence[str],
    table: pd.DataFrame,
    notes: list[str],
    report: Path,
) -> None:
    """Compare the variants, and write table, figure and JSON.

    Args:
        predictions: Predictions of each variant on the same images; the last ones are fine-tuned and pretrained.
        titles: Title of each variant.
        table: The whole `split.csv` of the data set.
        notes: Notes for the reader.
        report: Folder of the report, which is replaced.
    """
    predictions = on_common_labels(predictions)
    first, by_name = predictions[0], dict(zip((one.name for one in predictions), titles, strict=True))
    rows = [
        {
            "variant": one.name,
            "title": by_name[one.name],
            "dataset": one.dataset,
            "split": first.part,  # the pretrained network has no folds
            **protocol_row(_protocol(one), one, table, EVALUATION),
            "model": one.model_file.name,
        }
        for one in predictions
    ]
    pairs = [*pairwise(predictions[:-1]), (predictions[-1], predictions[-2])]
    p_values = [mcnemar(_correct_of_both(one, other), _correct_of_both(other, one))["p_value"] for one, other in pairs]
    differences = []
    for (one, other), p_value, adjusted in zip(pairs, p_values, holm(p_values).tolist(), strict=True):
        n, scores = gap(one, other, EVALUATION)
        significant = is_significant(scores["accuracy"], adjusted, EVALUATION.level)
        pair = {"from": one.name, "to": other.name, "n": n, "mcnemar_p_value": p_value, "adjusted_p_value": adjusted}
        differences.append(pair | {"significant": significant} | with_intervals(scores))
    sentences = [
        *notes,
        *dict.fromkeys(text for one in predictions if (text := banner(one))),
        *(_sentence(difference, by_name) for difference in differences),
        "A difference is significant if its interval excludes zero and McNemar's p-value, adjusted for the number of "
        f"comparisons (Holm), is at most {1 - EVALUATION.level:.2g}.",
        "Each variant was trained once; the intervals do not include the variation between seeds. They are paired, and "
        "resampled by subject where subjects are known.",
    ]
    subjects = int(first.clusters.max()) + 1
    if first.has_subjects and subjects < MIN_SUBJECTS:
        sentences.insert(len(notes), f"Only {subjects} subjects: the intervals are too narrow.")
    majority = float(np.bincount(first.truth).max() / len(first.truth))
    frame = pd.DataFrame(rows)
    caption = f"{first.dataset}, {first.part}, n = {len(first.rows):,}, {len(first.labels)} emotions"
    facts = {"dataset": first.dataset, "split": first.part, "labels": list(first.labels), "n": len(first.rows),
             "majority": majority, "variants": rows, "differences": differences, "sentences": sentences}  # fmt: skip
    with report_folder(report) as folder:
        write_table(frame, folder / "ablation.csv")
        draw_ablation(frame, majority, caption, folder / "ablation.png", interval_text(EVALUATION.level))
        write_json(folder / "ablation.json", facts)
    print(f"\n{caption}")
    for row in rows:
        scores = f"{score_and_interval('accuracy', row):>24}  macro F1 {row['macro_f1']:.3f}"
        print(f"{scores}  {row['title']} ({row['protocol']})")
    print("\n".join(sentences))
    print(f"table: {report / 'ablation.csv'}, figure: {report / 'ablation.png'}")


def _protocol(predictions: Predictions) -> str:
    trained_on = predictions.card.dataset
    elsewhere = f", trained on {trained_on} only" if trained_on != predictions.dataset else ""
    return protocol(predictions) + elsewhere


def _correct_of_both(own: Predictions, other: Predictions) -> np.ndarray:
    return own.correct[own.rows["path"].isin(other.rows["path"]).to_numpy()]


def _sentence(difference: dict[str, Any], titles: dict[str, str]) -> str:
    value, (low, high) = difference["accuracy"]["value"], difference["accuracy"]["interval"]
    verdict = "" if difference["significant"] else ": not significant"
    return (
        f"{titles[difference['to']]}, against {titles[difference['from']]}: {100 * value:+.1f} points of accuracy "
        f"({interval_text(EVALUATION.level)} {100 * low:+.1f} to {100 * high:+.1f}){verdict}."
    )


def draw_ablation(variants: pd.DataFrame, majority: float, caption: str, file: Path, interval: str) -> None:
    """Draw the accuracy of each variant as a bar with its interval.

    Args:
        variants: Columns `title`, `protocol`, `accuracy`, `accuracy_low` and `accuracy_high`.
        majority: Share of the most frequent emotion, 0-1.
        caption: Line above the figure.
        file: PNG to write.
        interval: Name of the intervals.
    """
    figure, axes = canvas(caption, 8.4, 0.85 * len(variants) + 1.4)
    places, accuracy, high = np.arange(len(variants)), variants["accuracy"], variants["accuracy_high"]
    error = np.clip([accuracy - variants["accuracy_low"], high - accuracy], 0, None)
    colors = [BLUE] * (len(variants) - 1) + ["white"]  # the last one was not trained
    axes.barh(places, accuracy, xerr=error, color=colors, edgecolor=BLUE, height=0.6, capsize=4, ecolor=BLACK)
    for place, share, limit in zip(places, accuracy, high, strict=True):
        axes.text(min(max(share, limit) + 0.015, 1.02), float(place), percent(share), va="center", fontsize=9)
    axes.axvline(majority, color=ORANGE, linestyle="--", label="most frequent emotion")
    labels = [
        f"{textwrap.fill(title, 52)}\n{textwrap.fill(protocol_text, 60)}"
        for title, protocol_text in zip(variants["title"], variants["protocol"], strict=True)
    ]
    axes.set_yticks(places, labels, fontsize=7.5)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.14), xlabel=f"accuracy (line: {interval})")
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), frameon=False, fontsize=9)
    save(figure, file)


if __name__ == "__main__":
    run(main)
