"""What did each step buy? Train a ladder of networks on one data set, and score them on the same images.

Reads:  data/NAME/split.csv, the pictures and the crops it names; with --settings the settings that step2_tuning wrote
Writes: models/NAME/ladder/*.keras with their cards; data/NAME/whole/ (the pictures without face crops);
        reports/NAME/ladder/SPLIT/: ladder.csv, ladder.json, ladder.png (with --folds: reports/NAME/ladder/folds/)

    python -m evaluation.ablation --dataset ckplus

The rungs: the student project's baseline on whole images; the tuned network on whole images; the same on face crops;
fine-tuned from the released network; and that one as it is, zero-shot. An interrupted run goes on where it was;
finished rungs are not trained again. With --folds every rung is one network per fold, each asked about its own fold.
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
from configuration import BASELINES, BEST, EVALUATION, FINE_TUNING, PATHS, SAMPLE_NAME, EvaluationConfig, TrainingConfig
from evaluation.metrics.intervals import MIN_SUBJECTS
from evaluation.predictions import Predictions, predict
from evaluation.report.plots import BLACK, BLUE, ORANGE, canvas, save
from evaluation.report.section import interval_text, percent
from evaluation.report.writer import report_folder, write_json
from evaluation.sections.comparison import on_common_labels
from evaluation.sections.cross_dataset import predict_with
from evaluation.sections.cross_validation import gap, predict_folds, protocol_row, with_intervals
from evaluation.sections.performance import format_interval
from evaluation.sections.provenance import banner, protocol
from evaluation.selection import rows_of_split
from inference.lineage import ImageHashes
from inference.model_card import check_crops, read_card
from preprocessing.tables import SPLITS, crop_options, fold_numbers, labels_of, read_table, usable, write_table
from preprocessing.whole_images import are_whole, write_whole_images
from training.cross_validation import fit_folds, fold_networks
from training.lineage import settings_images
from training.settings import read_settings, shortened

BASELINE, WHOLE, CROPS, FINE_TUNED, ZERO_SHOT = "baseline", "tuned-whole", "tuned", "fine-tuned", "zero-shot"


@dataclass(frozen=True)
class Rung:
    """A network of the ladder that is trained.

    Attributes:
        name: Its file's name.
        title: What a reader calls it.
        folder: The data set's folder that it is trained on: of face crops or of whole images.
        fitting: Every setting of its run.
        settings_hashes: The images by which its settings were selected; None for configured settings.
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
    pretrained: Annotated[
        Path, typer.Option(help="The network to fine-tune, and to score as it is.")
    ] = PATHS.pretrained,
    settings: Annotated[
        Path | None,
        typer.Option(help="Settings of the tuned network, such as a tuned.json.", show_default="configuration.py"),
    ] = None,
    split: Annotated[str | None, typer.Option(help=f"{', '.join(SPLITS)}; left out: test, or dev without one.")] = None,
    folds: Annotated[bool, typer.Option("--folds", help="Train every rung once per fold of the split.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes of every rung; else each one's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every rung; else each one's own.")] = None,
) -> None:
    """Train baseline, tuned and fine-tuned networks on a data set, and say what each step bought."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    if folds and split:
        raise InputError("--split does not go with --folds: every fold is tested once; leave one out")
    if folds:
        fold_numbers(table)
    check_start(pretrained, folder, table)
    whole, notes = folder, []
    if are_whole(table):
        notes.append("The pictures are face crops already, or were taken whole: there is no rung on whole images.")
    else:
        whole = write_whole_images(folder)
        left_out = len(usable(table.assign(face_status="found"))) - len(usable(table))
        notes.append(
            f"Whole images: the same images in the same split, without looking for a face ({left_out:,} pictures in "
            "which no face was found are in no rung)."
        )
    rungs = plan(folder, whole, settings, pretrained, epochs, seed)
    files = {rung.name: models / dataset / "ladder" / f"{rung.name}.keras" for rung in rungs}
    for rung in rungs:
        print(f"--- {rung.title}", flush=True)
        train(rung, files[rung.name], folds)
    silence_retracing()
    predictions = [answer(rung, files[rung.name], split, folds) for rung in rungs]
    predictions.append(predict_with(predictions[-1], pretrained, table, ZERO_SHOT))
    titles = [rung.title for rung in rungs] + [f"zero-shot: {pretrained.name} as it is"]
    report = reports / dataset / "ladder" / ("folds" if folds else predictions[0].split)
    write_ladder(predictions, titles, table, notes, report, EVALUATION)


def check_start(pretrained: Path, folder: Path, table: pd.DataFrame) -> None:
    """Refuse a network that cannot be fine-tuned on the data set, before anything is trained.

    Raises:
        InputError: it is missing, takes other crops, or no rule relates its labels to the data's.
    """
    card = read_card(pretrained)
    check_crops(pretrained, card, crop_options(folder), folder.name)
    relate(card.labels, labels_of(usable(table)))


def plan(
    folder: Path, whole: Path, settings: Path | None, pretrained: Path, epochs: int | None, seed: int | None
) -> list[Rung]:
    """Return the rungs to train, from the lowest.

    Args:
        folder: Of the face crops.
        whole: Of the whole images; the same folder where the data set has no others.
        settings: File of settings that step2_tuning wrote; None for the configured ones.
        pretrained: The network to fine-tune.
        epochs: Passes of each rung, in place of its own.
        seed: Of each rung, in place of its own.
    """
    on_whole = "whole images" if whole != folder else "the pictures"
    best, how = (read_settings(settings), "tuned") if settings else (BEST, "configured, not tuned")
    hashes = settings_images(settings, read_table(folder, "split.csv"), folder.name) if settings else None
    rungs = [Rung(BASELINE, f"baseline (cifar10) on {on_whole}", whole, BASELINES["cifar10"])]
    if whole != folder:
        rungs.append(Rung(WHOLE, f"{how}, on whole images", whole, best, hashes))
    on_crops = "face crops" if whole != folder else "the pictures"
    rungs.append(Rung(CROPS, f"{how}, on {on_crops}", folder, best, hashes))
    fine_tuning = replace(FINE_TUNING, pretrained=str(pretrained))
    rungs.append(Rung(FINE_TUNED, f"fine-tuned from {pretrained.name}, on {on_crops}", folder, fine_tuning))
    own: dict[str, Any] = {"epochs": epochs, "seed": seed}
    typed = {name: value for name, value in own.items() if value is not None}
    return [replace(rung, config=shortened(replace(rung.config, **typed))) for rung in rungs]


def train(rung: Rung, model_file: Path, folds: bool) -> None:
    """Train a rung, or go on where it was interrupted; a finished one is left as it is."""
    with quiet_start():
        from training.trainer import train_network

    table = read_table(rung.folder, "split.csv")
    fit = fit_folds if folds else train_network
    fit(table, rung.folder, model_file, rung.config, typed_command(), settings_hashes=rung.settings_hashes)


def answer(rung: Rung, model_file: Path, split: str | None, folds: bool) -> Predictions:
    """Return a rung's answers on a split, or on all folds by each one's network."""
    table = read_table(rung.folder, "split.csv")
    if folds:
        networks = fold_networks(model_file, rung.folder, table)
        return predict_folds(networks, model_file, rung.name, rung.folder, table)
    rows, split, _ = rows_of_split(table, split, rung.folder)
    return predict(model_file, rung.name, rung.folder, table, rows, split)


def write_ladder(
    predictions: Sequence[Predictions],
    titles: Sequence[str],
    table: pd.DataFrame,
    notes: list[str],
    report: Path,
    options: EvaluationConfig,
) -> None:
    """Write the ladder's table and its bar chart, and say what each step bought.

    Args:
        answers: Of each rung, from the lowest, on the same images; the last ones are fine-tuned and zero-shot.
        titles: What a reader calls each.
        table: All of the data set's `split.csv`.
        notes: What else a reader must know.
        report: The report's folder, which is replaced.
        options: For the intervals.
    """
    predictions = on_common_labels(predictions)
    first = predictions[0]
    rows = [
        {
            "rung": one.name,
            "title": title,
            "dataset": one.dataset,
            "split": first.part,  # zero-shot is one network, also beside folds
            **protocol_row(_protocol(one), one, table, options),
            "model": one.model_file.name,
        }
        for one, title in zip(predictions, titles, strict=True)
    ]
    steps = [_step(lower, higher, options) for lower, higher in _steps(predictions)]
    by_name = dict(zip((one.name for one in predictions), titles, strict=True))
    sentences = [*notes, *dict.fromkeys(banner(one) for one in predictions if banner(one)),
                 *(_in_words(step, by_name, options) for step in steps),
                 _THE_SAME_FOR_ALL]  # fmt: skip
    people = int(first.clusters.max()) + 1
    if first.has_subjects and people < MIN_SUBJECTS:
        sentences.insert(
            len(notes), f"Few people ({people}): the intervals are too narrow, so no step is shown by them."
        )
    commonest = float(np.bincount(first.truth).max() / len(first.truth))
    frame = pd.DataFrame(rows)
    caption = f"{first.dataset}, {first.part}, n = {len(first.rows):,}, {len(first.labels)} emotions"
    whole = {"dataset": first.dataset, "split": first.part, "labels": list(first.labels), "n": len(first.rows),
             "always_the_commonest": commonest, "rungs": rows, "steps": steps, "sentences": sentences}  # fmt: skip
    with report_folder(report) as folder:
        write_table(frame, folder / "ladder.csv")
        draw_ladder(frame, commonest, caption, folder / "ladder.png", interval_text(options.level))
        write_json(folder / "ladder.json", whole)
    print(f"\n{caption}")
    for row in rows:
        interval = format_interval("accuracy", (row["accuracy_low"], row["accuracy_high"]))
        print(f"{percent(row['accuracy']):>8}  [{interval}]"
              f"  macro F1 {row['macro_f1']:.3f}  {row['title']} ({row['protocol']})")  # fmt: skip
    print("\n".join(sentences))
    print(f"table: {report / 'ladder.csv'}, chart: {report / 'ladder.png'}")


_THE_SAME_FOR_ALL = (
    "Each rung was trained once; another seed would give somewhat other figures, which the intervals do not count in. "
    "They are resampled by person where people are known, and pair the same images."
)


def _steps(predictions: Sequence[Predictions]) -> list[tuple[Predictions, Predictions]]:
    """Return each rung beside the one below it, and the fine-tuned one also beside zero-shot, the last."""
    trained = predictions[:-1]
    return [*pairwise(trained), (predictions[-1], trained[-1])]


def _step(lower: Predictions, higher: Predictions, options: EvaluationConfig) -> dict[str, Any]:
    n, differences = gap(lower, higher, options)
    return {"from": lower.name, "to": higher.name, "n": n, **with_intervals(differences)}


def _in_words(step: dict[str, Any], titles: dict[str, str], options: EvaluationConfig) -> str:
    accuracy = step["accuracy"]
    low, high = accuracy["interval"]
    verdict = "" if low > 0 or high < 0 else ": not shown to be more than chance"
    return (
        f"{titles[step['to']]}, against {titles[step['from']]}: {100 * accuracy['value']:+.1f} points of accuracy "
        f"({interval_text(options.level)} {100 * low:+.1f} to {100 * high:+.1f}){verdict}."
    )


def draw_ladder(rungs: pd.DataFrame, commonest: float, caption: str, file: Path, interval: str) -> None:
    """Draw the rungs' accuracies as bars with their intervals.

    Args:
        rungs: Columns `title`, `protocol`, `dataset`, `split`, `n`, `accuracy`, `accuracy_low` and `accuracy_high`.
        commonest: Accuracy of always giving the commonest emotion, 0-1.
        caption: Line above the figure.
        file: PNG to write.
        interval: Name of the intervals, as `interval_text` gives it.
    """
    figure, axes = canvas(caption, 8.4, 0.85 * len(rungs) + 1.4)
    places = np.arange(len(rungs))
    error = np.clip([rungs["accuracy"] - rungs["accuracy_low"], rungs["accuracy_high"] - rungs["accuracy"]], 0, None)
    colors = [BLUE] * (len(rungs) - 1) + ["white"]  # nothing was trained for the last one
    axes.barh(places, rungs["accuracy"], xerr=error, color=colors, edgecolor=BLUE, height=0.6, capsize=4, ecolor=BLACK)
    for place, share, high in zip(places, rungs["accuracy"], rungs["accuracy_high"], strict=True):
        axes.text(min(max(share, high) + 0.015, 1.02), float(place), f"{100 * share:.1f} %", va="center", fontsize=9)
    axes.axvline(commonest, color=ORANGE, linestyle="--", label="always the commonest emotion")
    labels = [
        textwrap.fill(row["title"], 52) + "\n" + textwrap.fill(_small_print(row), 60) for _, row in rungs.iterrows()
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


def _small_print(rung: pd.Series) -> str:
    """Return what a bar is measured on, and the part of its protocol in which rungs differ."""
    return f"{rung['dataset']}, {rung['split']}, n = {rung['n']:,}; {rung['protocol'].split('averaging, ')[-1]}"


def _protocol(predictions: Predictions) -> str:
    """Return the protocol of a rung, which names all data that the network learnt from."""
    learnt = predictions.card.dataset
    elsewhere = f", learnt from {learnt}, nothing of {predictions.dataset}" if learnt != predictions.dataset else ""
    return protocol(predictions) + elsewhere


if __name__ == "__main__":
    run(main)
