"""The evaluation: select rows and true labels, predict, and write a report for each model and for their comparison."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.command_line import step_command
from common.emotions import relate
from common.errors import InputError
from common.files import file_hash
from configuration import EVALUATION, FACES, FAIRNESS
from evaluation.report.model_report import Part, made_by, print_summary, write_model_report
from evaluation.request import Request, Task, report_inputs
from evaluation.selection import choose_truth, model_names, report_name, rows_of_split
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import build_detector
from inference.lineage import read_hashes
from inference.model_card import ModelCard, card_path, read_card
from preprocessing.datasets.votes import with_majority_labels
from preprocessing.tables import crop_options, labels_of, read_table, usable
from training.cross_validation import SUBJECT_DEPENDENT, SUBJECT_INDEPENDENT, fold_networks

if TYPE_CHECKING:  # they import Keras, matplotlib and fairlearn
    from evaluation.predictions import Predictions
    from evaluation.report.section import Section

QUICK_RESAMPLES, QUICK_IMAGES = 200, 60  # with --quick; images of the robustness section


def evaluate(request: Request) -> None:
    """Evaluate the models of a request, write their reports, and update their cards.

    Raises:
        InputError: An option does not fit the data, or a model is unusable.
    """
    folder, named = request.folder, model_names(request.models)
    table, networks = read_table(folder, "split.csv"), {}
    if request.folds:
        _check_folds(request)
        networks = fold_networks(request.models[0], folder, table)
    # Bad input is reported before Keras is imported.
    cards = [
        read_card(file, train=step_command("training.step3_best_model", folder, "--output", file))
        for file in (networks or named).values()
    ]
    truth, notes = choose_truth(request.truth, cards, table)
    if truth == "majority":
        table = with_majority_labels(table)
    if request.group_table:
        from evaluation.sections.fairness import join_group_table

        table = join_group_table(table, request.group_table)
    if networks:
        rows, split, more = usable(table[table[SUBJECT_INDEPENDENT] != ""]), f"{len(networks)} folds", []
    else:
        rows, split, more = rows_of_split(table, request.split, folder)
    _check_inputs(request, rows, cards)
    resamples = min(EVALUATION.resamples, QUICK_RESAMPLES) if request.quick else EVALUATION.resamples
    task = Task(request, table, rows, split, [*notes, *more], replace(EVALUATION, resamples=resamples))
    place = report_name("folds" if networks else split, truth, request.pictures, request.quick)
    if networks:
        (name,) = named
        evaluate_folds(task, f"{name}-folds", named[name], networks, request.reports / name / place)
        return
    if request.calibrate:
        calibrate_models(task, named)
    for name, model_file in named.items():
        metrics = evaluate_model(task, name, model_file, request.reports / name / place)
        if request.update_card:
            from evaluation.card_updates import update_scores

            update_scores(model_file, metrics)
    if len(named) > 1:
        report = request.reports / f"comparison-{'-'.join(named)}" / report_name(split, truth, None, request.quick)
        compare(replace(task, request=replace(request, flip=False, pictures=None)), named, report)


def _check_folds(request: Request) -> None:
    single = {
        "--split": request.split,
        "--pictures": request.pictures,
        "--calibrate": request.calibrate,
        "--update-card": request.update_card,
        "a second --model": len(request.models) > 1,
    }
    if refused := [name for name, value in single.items() if value]:
        raise InputError(f"--folds evaluates one network per fold: leave out {', '.join(refused)}")


def _check_inputs(request: Request, rows: pd.DataFrame, cards: list[ModelCard]) -> None:
    """Check groups and pictures before anything takes time."""
    if request.groups:
        from evaluation.sections.fairness import check_columns

        check_columns(rows, request.groups)
    if request.pictures:
        from evaluation.sections.end_to_end import labelled_images

        labels = labels_of(labelled_images(request.pictures)[0])
        for card in cards:
            relate(card.labels, labels)


def calibrate_models(task: Task, named: Mapping[str, Path]) -> None:
    """Fit temperature and threshold of each model on dev, into its card."""
    from evaluation.card_updates import calibrate

    rows, split, _ = rows_of_split(task.table, "dev", task.folder)
    # Networks are loaded apart: a loaded one keeps its old temperature.
    dev = replace(task, rows=rows, split=split, load=EmotionClassifier.load)
    for name, model_file in named.items():
        calibrate(dev.predict(name, model_file), task.options)


def evaluate_model(task: Task, name: str, model_file: Path, report: Path) -> dict[str, Any]:
    """Evaluate a network and write its report, unless the report exists for the same inputs.

    Args:
        task: Rows and options.
        name: Name in the report.
        model_file: The network.
        report: Folder of the report.

    Returns:
        Content of `metrics.json`.

    Raises:
        InputError: The model is unusable, or no rule relates its labels to the data.
    """
    from evaluation.predictions import label_rule

    label_rule(model_file, task.table)
    inputs = report_inputs(task, model_file)
    if earlier := _kept_report(report, inputs):
        return earlier
    predictions = task.predict(name, model_file)
    return write_model_report(task, predictions, lambda folder: report_parts(task, predictions, folder), report, inputs)


def evaluate_folds(task: Task, name: str, model_file: Path, networks: dict[int, Path], report: Path) -> dict[str, Any]:
    """Evaluate the networks of all folds together, and write the report, unless it exists for the same inputs.

    Args:
        task: Rows of all folds, and options.
        name: Name in the report.
        model_file: The network that the folds represent.
        networks: Fold number -> network.
        report: Folder of the report.

    Returns:
        Content of `metrics.json`.

    Raises:
        InputError: As `evaluate_model`.
    """
    from evaluation.sections.cross_dataset import cross_dataset_network, describe_network, predict_with
    from evaluation.sections.cross_validation import cross_validation_section, predict_folds, settings_differ

    dependent, notes, other_network = {}, [], None
    try:
        dependent = fold_networks(model_file, task.folder, read_table(task.folder, "split.csv"), SUBJECT_DEPENDENT)
    except InputError as error:
        notes.append(f"Subject-dependent folds were not measured: {error}.")
    try:
        other_network = cross_dataset_network(read_card(networks[0]), task.folder.name, task.table)
    except InputError as error:
        notes.append(f"Cross-dataset accuracy was not measured: {error}.")
    inputs = report_inputs(task, *networks.values(), *dependent.values()) | {"not_measured": [*notes]}
    inputs["cross_dataset"] = other_network and file_hash(other_network, card_path(other_network))
    if earlier := _kept_report(report, inputs):
        return earlier
    predictions = predict_folds(networks, model_file, name, task.folder, task.table, load=task.load)
    others = {}
    if dependent:
        others["subject-dependent folds"] = predict_folds(
            dependent, model_file, f"{name}, subject-dependent", task.folder, task.table, SUBJECT_DEPENDENT, task.load
        )
    if other_network:
        try:
            title = describe_network(other_network, task.folder.name)
            others[title] = predict_with(predictions, other_network, task.table, load=task.load)
        except InputError as error:
            notes.append(f"Cross-dataset accuracy was not measured: {error}.")
    warnings = [text] if (text := settings_differ([*networks.values(), *dependent.values()])) else []

    def parts(folder: Path) -> list[Part]:
        first, *rest = report_parts(task, predictions, folder)

        def folds() -> "Section":
            return cross_validation_section(
                predictions, others, networks, task.table, notes, warnings, folder, task.options
            )

        return [first, folds, *rest]

    return write_model_report(task, predictions, parts, report, inputs)


def report_parts(task: Task, predictions: "Predictions", report: Path) -> list[Part]:
    """Return the functions that make the sections of a report, in order; a section may be None.

    Args:
        task: Rows and options.
        predictions: Predictions of a network, or of the networks of all folds.
        report: Folder of the report.
    """
    from evaluation.sections.annotators import annotator_section
    from evaluation.sections.calibration import calibration_section
    from evaluation.sections.cross_dataset import cross_dataset_section
    from evaluation.sections.end_to_end import end_to_end_section
    from evaluation.sections.error_analysis import error_analysis_section
    from evaluation.sections.fairness import fairness_section
    from evaluation.sections.performance import performance_section
    from evaluation.sections.provenance import provenance_section
    from evaluation.sections.tta import tta_section

    options, request, table, is_single = task.options, task.request, task.table, not predictions.fold_column
    gallery = is_single and request.show_faces and not request.quick

    def fairness() -> "Section":
        return fairness_section(
            predictions.rows, predictions.prediction.tolist(), predictions.labels, request.groups, report, FAIRNESS,
            options, predictions.heading,
        )  # fmt: skip

    def end_to_end() -> "Section":
        assert request.pictures
        classifier = predictions.classifiers[""]  # float32, as the rest of the report
        detector, hashes = build_detector("mtcnn", classifier.faces), read_hashes(predictions.model_file)
        return end_to_end_section(classifier, detector, request.pictures, report, options, hashes)

    parts: dict[Part, bool] = {
        lambda: performance_section(predictions, report, options): True,
        lambda: annotator_section(predictions, options): True,
        lambda: cross_dataset_section(predictions, table, options, task.load): True,
        lambda: provenance_section(predictions, task.folder, table, task.notes, options): True,
        lambda: calibration_section(predictions, report, options): True,
        lambda: tta_section(predictions, table, options): request.flip,
        lambda: error_analysis_section(predictions, report, gallery): True,
        lambda: _robustness(task, [predictions], report): is_single,
        fairness: bool(request.groups),
        end_to_end: request.pictures is not None,
    }
    return [part for part, included in parts.items() if included]


def _robustness(task: Task, models: "list[Predictions]", report: Path) -> "Section":
    """Return the section on occlusion and corruption, for models with the same labels."""
    from evaluation.sections.comparison import check_aligned
    from evaluation.sections.robustness import IMAGES, robustness_section

    check_aligned(models)
    first, crops = models[0], crop_options(task.folder)
    return robustness_section(
        {each.name: each.predict_images for each in models},
        first.rows,
        first.images,
        first.labels,
        replace(FACES, **{name: crops[name] for name in ("size", "channels", "align")}),
        report,
        QUICK_IMAGES if task.request.quick else IMAGES,
        task.options,
        "\n".join(each.heading for each in models),  # it names models that were trained on these images
    )


def compare(task: Task, named: Mapping[str, Path], report: Path) -> None:
    """Compare networks on the same images and write the report, unless it exists for the same inputs.

    Raises:
        InputError: The models have too few emotions in common.
    """
    from evaluation.report.writer import read_report

    inputs = {name: report_inputs(task, model_file) for name, model_file in named.items()}
    metrics = read_report(report, inputs) or _write_comparison(task, named, report, inputs)
    for note in metrics["notes"]:
        print(f"  ! {note}")
    print("\n".join(metrics["sentences"][:-1]))
    print(f"comparison: {report / 'report.html'}")


def _write_comparison(task: Task, named: Mapping[str, Path], report: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    from evaluation.report.writer import Page, report_folder, write_report
    from evaluation.sections.comparison import comparison_section, on_common_labels

    models = [task.predict(name, model_file) for name, model_file in named.items()]
    with report_folder(report) as folder:
        first = comparison_section(models, folder, task.options)
        models = on_common_labels(models)
        sections = [first, _robustness(task, models, folder), *_mitigation(task, models)]
        page = Page(
            title=" against ".join(named),
            subtitle=f"{task.folder.name}, {task.split} split",
            banner=first.values["banner"],
            tiles=[],
            made_by=made_by() | {"models": ", ".join(f"{n}: SHA-256 {inputs[n]['model']}…" for n in named)},
        )
        metrics = {
            "dataset": task.folder.name,
            "split": task.split,
            "notes": [*task.notes, *(warning for part in sections for warning in part.warnings)],
            "inputs": inputs,
            "sentences": first.sentences,
        }
        return write_report(folder, page, sections, metrics, task.request.show_faces)


def _mitigation(task: Task, models: "list[Predictions]") -> "list[Section]":
    """Return, for each model after the first, how the differences between groups changed."""
    if not task.request.groups:
        return []
    from evaluation.sections.mitigation import mitigation_section

    first, *others = models
    sections = []
    for other in others:
        section = mitigation_section(
            first.rows, first.prediction.tolist(), other.prediction.tolist(), (first.name, other.name), first.labels,
            task.request.groups, FAIRNESS, task.options,
        )  # fmt: skip
        sections.append(replace(section, name=f"{section.name}_{other.name}"))
    return sections


def _kept_report(report: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return and print the metrics of an earlier report on the same inputs, if there is one."""
    from evaluation.report.writer import read_report

    earlier = read_report(report, inputs)
    if earlier:
        print_summary(earlier, report)
        print("unchanged: same model, rows and options; the report was kept")
    return earlier
