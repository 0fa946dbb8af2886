"""Say how good trained networks are on a split that they did not learn from, and what the scores are worth.

Reads:  networks and their cards; data/NAME/split.csv and the crops it names
Writes: reports/NAME/MODEL/SPLIT-TRUTH/: report.html, metrics.json, predictions.csv, classification_report.txt, and
        each figure as PNG with its numbers as CSV; of several models also reports/NAME/comparison-A-B/SPLIT-TRUTH/.
        SPLIT-TRUTH is such as test-labels, dev-majority or folds-labels; --pictures and --quick add to the name.

    python -m evaluation.model_evaluation --dataset fer2013 --model models/fer2013/best.keras --split test
    python -m evaluation.model_evaluation --dataset fer2013 --model A.keras --model B.keras
    python -m evaluation.model_evaluation --dataset ckplus --folds
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from common.command_line import (
    DataRoot,
    DatasetName,
    ModelsRoot,
    ReportsRoot,
    dataset_folder,
    progress_bar,
    run,
    step_command,
    typed_command,
)
from common.emotions import relate
from common.errors import InputError
from common.files import file_hash, fingerprint
from configuration import (
    EVALUATION,
    FACES,
    FAIRNESS,
    PATHS,
    ROBUSTNESS,
    SAMPLE_NAME,
    EvaluationConfig,
)
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import build_detector
from inference.lineage import ImageHashes, hashes_file, read_hashes, write_hashes
from inference.model_card import ModelCard, card_path, read_card, write_card
from preprocessing.datasets.votes import MAJORITY, has_votes, with_majority_labels
from preprocessing.tables import SPLITS, content_hash, crop_options, labels_of, read_table, usable, write_table
from training.cross_validation import SUBJECT_DEPENDENT, SUBJECT_INDEPENDENT, fold_networks

TRUTHS = ("labels", "majority")
CARD_SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Task:
    """What is evaluated, for every model alike.

    Attributes:
        folder: The data set's folder.
        table: All of its `split.csv`.
        rows: The usable rows of the split.
        split: Its name.
        notes: What a reader must know of that choice.
        options: Every knob.
        quick: Leave out what takes long.
        show_faces: Pictures of people may stand in the report.
        grouped_by: Columns whose groups are compared.
        pictures: Whole pictures to score with the detector, beside the split.
        flip: Each image is also asked mirrored, and the mean is reported apart.
    """

    folder: Path
    table: pd.DataFrame
    rows: pd.DataFrame
    split: str
    notes: list[str]
    options: EvaluationConfig
    quick: bool
    show_faces: bool
    grouped_by: list[str]
    pictures: Path | None
    flip: bool


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A network; repeat to compare. Left out: MODELS/DATASET/best.keras, or the only network there."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help=f"{', '.join(SPLITS)}; left out: test, or dev without one.")] = None,
    target_accuracy: Annotated[
        float, typer.Option(help="Share of the answers, 0-1, that should be right when the model may abstain.")
    ] = EVALUATION.target_accuracy,
    resamples: Annotated[
        int, typer.Option(min=20, max=100_000, help="Bootstrap resamples behind each interval.")
    ] = EVALUATION.resamples,
    seed: Annotated[int, typer.Option(min=0, help="Of resamples and folds.")] = EVALUATION.seed,
    truth: Annotated[
        str | None,
        typer.Option(
            help="labels: the data set's own; majority: the crowd's, where more than half agree. Left out: what the "
            "models were trained on, or labels where there are no votes."
        ),
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option(help="Column whose groups are compared, such as gender; repeat for several.")
    ] = None,
    group_table: Annotated[
        Path | None, typer.Option(help="CSV with more columns for --groups, joined by its column path.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Whole pictures in folders named by emotion, to score with the detector.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Also ask each image mirrored, and report the mean of the two apart.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds: rough intervals, no gallery, few covered faces.")
    ] = False,
    no_faces: Annotated[bool, typer.Option("--no-faces", help="Leave pictures of people out of the report.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First fit temperature and threshold on dev, into the model's card.")
    ] = False,
    update_card: Annotated[bool, typer.Option("--update-card", help="Write the scores into the model's card.")] = False,
    folds: Annotated[
        bool,
        typer.Option("--folds", help="Each image by the network of its fold, which step3_best_model --folds trained."),
    ] = False,
) -> None:
    """Evaluate trained networks on a held-out split, and compare them."""
    if not 0 < target_accuracy < 1:
        raise InputError(f"--target-accuracy {target_accuracy} is not between 0 and 1, such as 0.8 for 80 %")
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    named = model_names(model or [models / dataset / "best.keras" if folds else default_model(models / dataset)])
    networks = {}
    if folds:
        one_network = {"--split": split, "--pictures": pictures, "--calibrate": calibrate, "--update-card": update_card}
        check_goes_with_folds(one_network | {"a second --model": len(named) > 1})
        networks = fold_networks(next(iter(named.values())), folder, table)
    # before Keras is imported: a mistake is told now
    cards = [
        read_card(file, train=step_command("training.step3_best_model", folder, "--output", file))
        for file in (networks or named).values()
    ]
    truth, truth_notes = truth_of(truth, cards, table)
    if truth == "majority":
        table = with_majority_labels(table)
    if group_table:
        from evaluation.sections.fairness import join_group_table  # imports matplotlib and fairlearn

        table = join_group_table(table, group_table)
    if folds:
        rows, split, notes = usable(table[table[SUBJECT_INDEPENDENT] != ""]), f"{len(networks)} folds", []
    else:
        rows, split, notes = rows_of_split(table, split, folder)
    notes = [*truth_notes, *notes]
    report_name = name_of_report("folds" if folds else split, truth, pictures, quick)
    options = replace(EVALUATION, target_accuracy=target_accuracy, resamples=resamples, seed=seed)
    if quick:
        options = replace(options, resamples=min(resamples, EVALUATION.quick_resamples))
    if groups:
        from evaluation.sections.fairness import check_columns

        check_columns(rows, groups)
    if pictures:
        check_pictures(pictures, cards)
    task = Task(folder, table, rows, split, notes, options, quick, not no_faces, groups or [], pictures, flip)
    if folds:
        for name, model_file in named.items():
            evaluate_folds(task, f"{name}-folds", model_file, networks, reports / dataset / name / report_name)
        return
    if calibrate:
        dev_rows, dev, _ = rows_of_split(table, "dev", folder)
        for name, model_file in named.items():
            calibrate_card(replace(task, rows=dev_rows, split=dev), name, model_file)
    for name, model_file in named.items():
        metrics = evaluate(task, name, model_file, reports / dataset / name / report_name)
        if update_card:
            update_scores(model_file, metrics)
            print(f"scores written into {model_file.with_suffix('.json')}")
    if len(named) > 1:
        report = reports / dataset / f"comparison-{'-'.join(named)}" / name_of_report(split, truth, None, quick)
        compare_models(replace(task, flip=False), named, report)


def check_goes_with_folds(given: dict[str, Any]) -> None:
    """Refuse what concerns a single network.

    Raises:
        InputError: with what was given.
    """
    refused = [name for name, value in given.items() if value]
    if refused:
        raise InputError(f"--folds does not go with {', '.join(refused)}: it asks one network per fold; leave one out")


def default_model(folder: Path) -> Path:
    """Return the network that is used where none is named: `best.keras`, or the only one of single faces there is.

    Args:
        folder: The data set's networks, `models/NAME`.

    Raises:
        InputError: `best.keras` is missing and there are several others.
    """
    best = folder / "best.keras"
    if best.is_file():
        return best
    found = [file for file in sorted(folder.glob("[!.]*.keras")) if file.is_file() and not _reads_sequences(file)]
    if len(found) > 1:
        listed = ", ".join(str(file) for file in found)
        raise InputError(f"{best} does not exist; choose one of these networks with --model: {listed}")
    if found:
        print(f"{best} does not exist; used instead: {found[0]}, the only network in {folder}")
        return found[0]
    return best


def _reads_sequences(model_file: Path) -> bool:
    try:
        return "window" in json.loads(card_path(model_file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def name_of_report(split: str, truth: str, pictures: Path | None, quick: bool) -> str:
    """Return the name of a report's folder, which differs wherever two reports do not replace each other."""
    whole = f"-pictures-{'-'.join(pictures.resolve().parts[1:][-2:])}" if pictures else ""
    return f"{split}-{truth}{whole}{'-quick' if quick else ''}"


def truth_of(asked: str | None, cards: list[ModelCard], table: pd.DataFrame) -> tuple[str, list[str]]:
    """Return what the models are scored against, and notes for the reader.

    That is what was asked for, or else what all models were trained on. A table without crowd votes has only labels.

    Raises:
        InputError: something else was asked for, or votes that the table does not have.
    """
    if asked not in (None, *TRUTHS):
        raise InputError(f"--truth {asked!r} is not one of {', '.join(TRUTHS)}")
    if asked == "majority" and not has_votes(table):
        raise InputError(
            "--truth majority needs crowd votes, which the table does not have (columns votes_<emotion>); leave "
            "--truth out to use the data set's own labels, or give votes to step 1 (--votes)"
        )
    if asked or not all(card.targets == "votes" for card in cards):
        return asked or "labels", []
    if has_votes(table):
        return "majority", []
    return "labels", ["the data set has no crowd votes, from which the model learnt: scored against its own labels"]


def check_pictures(pictures: Path, cards: list[ModelCard]) -> None:
    """Refuse pictures that cannot be scored, before anything else takes its time.

    Raises:
        InputError: no folder of labelled pictures, or no rule relates their labels to a model's.
    """
    from evaluation.sections.end_to_end import labelled_images

    labels = labels_of(labelled_images(pictures)[0])
    for card in cards:
        relate(card.labels, labels)


def model_names(files: list[Path]) -> dict[str, Path]:
    """Return what the reports call each network: its file's name, with its folder's where two are named alike.

    Raises:
        InputError: the same network twice, or two that cannot be told apart.
    """
    alike = Counter(file.stem for file in files)
    named = {}
    for file in files:
        name = f"{file.resolve().parent.name}-{file.stem}" if alike[file.stem] > 1 else file.stem
        if name in named:
            raise InputError(
                f"--model {file} and {named[name]} would share one report ({name}); give each once, or rename"
            )
        named[name] = file
    return named


def rows_of_split(table: pd.DataFrame, split: str | None, folder: Path) -> tuple[pd.DataFrame, str, list[str]]:
    """Return a split's usable rows, the split's name, and notes for the reader.

    Raises:
        InputError: the split has another name than `train`, `dev` or `test`, or no usable rows.
    """
    rows = usable(table)
    notes = []
    if split is None:
        split = "test" if (rows["split"] == "test").any() else "dev"
        if split == "dev":
            notes.append("the table has no test split: these are figures on dev, by which the epoch was chosen")
    if split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    chosen = rows.loc[rows["split"] == split]
    if chosen.empty:
        present = ", ".join(name for name in SPLITS if (rows["split"] == name).any()) or "none"
        raise InputError(f"{folder / 'split.csv'} has no usable rows in split {split!r}; it has: {present}")
    return chosen, split, notes


def evaluate(task: Task, name: str, model_file: Path, report: Path) -> dict[str, Any]:
    """Evaluate a network and write its report, unless it is there already for the same inputs.

    Args:
        task: What it is evaluated on.
        name: What the report calls it.
        model_file: The network.
        report: The report's folder.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: the model cannot be used, or no rule relates its labels to the data's.
    """
    from evaluation.predictions import label_rule, predict

    label_rule(model_file, task.table)
    inputs = _inputs(task, model_file)
    if earlier := kept_report(report, inputs):
        return earlier
    predictions = predict(model_file, name, task.folder, task.table, task.rows, task.split)
    return report_on(task, predictions, lambda folder: parts_of_report(task, predictions, folder), report, inputs)


def evaluate_folds(task: Task, name: str, model_file: Path, networks: dict[int, Path], report: Path) -> dict[str, Any]:
    """Evaluate the networks of all folds as one, and write the report, unless it is there for the same inputs.

    Args:
        task: What they are evaluated on; its rows are those of all folds.
        name: What the report calls them.
        model_file: The network that they stand for.
        networks: Fold number -> network.
        report: The report's folder.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: as `evaluate`.
    """
    subject_dependent, notes = {}, []
    try:
        subject_dependent = fold_networks(
            model_file, task.folder, read_table(task.folder, "split.csv"), SUBJECT_DEPENDENT
        )
    except InputError as error:
        notes.append(f"The looser protocol, people in training and test, was not measured: {error}.")
    from evaluation.sections.cross_dataset import ask_zero_shot, zero_shot_file

    start = None
    try:
        start = zero_shot_file(read_card(networks[0]), task.folder.name, task.table)
    except InputError as error:
        notes.append(f"Zero-shot was not measured: {error}.")
    inputs = _inputs(task, *networks.values(), *subject_dependent.values()) | {"not_measured": [*notes]}
    inputs["zero_shot"] = start and file_hash(start, card_path(start))
    if earlier := kept_report(report, inputs):
        return earlier
    from evaluation.sections.cross_validation import cross_validation_section, predict_folds, settings_differ

    predictions = predict_folds(networks, model_file, name, task.folder, task.table)
    others = {}
    if subject_dependent:
        title = "folds that ignore who is in the pictures"
        others[title] = predict_folds(
            subject_dependent, model_file, f"{name}, loose", task.folder, task.table, SUBJECT_DEPENDENT
        )
    if start:
        try:
            title, zero_shot = ask_zero_shot(predictions, start, task.table)
            others[title] = zero_shot
        except InputError as error:
            notes.append(f"Zero-shot was not measured: {error}.")
    warnings = [text] if (text := settings_differ([*networks.values(), *subject_dependent.values()])) else []

    def parts(folder: Path) -> list[Callable[[], Any]]:
        first, *rest = parts_of_report(task, predictions, folder, networks)
        return [
            first,
            lambda: cross_validation_section(
                predictions, others, networks, task.table, notes, warnings, folder, task.options
            ),
            *rest,
        ]

    return report_on(task, predictions, parts, report, inputs)


def kept_report(report: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an earlier report on the same inputs says, after printing it."""
    from evaluation.report.writer import read_report

    earlier = read_report(report, inputs)
    if earlier:
        _print_summary(earlier, report)
        print("unchanged: same model, same rows, same options; the report was kept and nothing was done")
    return earlier


def report_on(
    task: Task,
    predictions: Any,
    parts: Callable[[Path], list[Callable[[], Any]]],
    report: Path,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Write a report on some answers, and return what `metrics.json` holds.

    Args:
        task: What was evaluated.
        answers: What came of it.
        parts: Returns the report's parts in their order, as `parts_of_report` does, given the folder of their files.
        report: The report's folder.
        inputs: What it is made from.
    """
    from evaluation.report.writer import report_folder

    with report_folder(report) as folder:
        metrics = _write_parts(task, predictions, parts(folder), folder, inputs)
    _print_summary(metrics, report)
    return metrics


def _write_parts(
    task: Task, predictions: Any, parts: list[Callable[[], Any]], folder: Path, inputs: dict[str, Any]
) -> dict[str, Any]:
    from evaluation.report.writer import write_report
    from evaluation.sections.performance import measure
    from evaluation.sections.provenance import banner, protocol

    _write_predictions(predictions, folder)
    with progress_bar() as bar:
        sections = [part() for part in bar.track(parts, description=f"evaluating {predictions.name}")]
    sections = [section for section in sections if section]
    measured = measure(predictions)
    performance = next(section for section in sections if section.name == "performance").values
    metrics = {
        "dataset": task.folder.name,
        "split": task.split,
        "model": predictions.model_file.name,
        "protocol": protocol(predictions),
        "labels": list(predictions.labels),
        "label_rule": predictions.rule.text,
        "left_out": predictions.left_out,
        "held_out": predictions.exposure.held_out,
        "banner": banner(predictions),
        "notes": [warning for section in sections for warning in section.warnings],
        "n": len(predictions.rows),
        **{score: measured[score] for score in CARD_SCORES},
        "accuracy_interval": performance["intervals"]["accuracy"],
        "per_emotion": {
            label: {figure: measured[f"{figure}/{label}"] for figure in ("precision", "recall", "f1")}
            for label in predictions.labels
        },
        "inputs": inputs,
    }
    return write_report(folder, _page(task, predictions, performance, inputs), sections, metrics, task.show_faces)


def parts_of_report(
    task: Task, predictions: Any, report: Path, networks: Mapping[int, Path] | None = None
) -> list[Callable[[], Any]]:
    """Return the parts of a model's report in their order: each gives a `Section`, or None where it does not apply.

    A further part is one more line here.

    Args:
        task: What is evaluated.
        answers: What came of it.
        report: The report's folder.
        networks: Fold number -> network, for answers pooled over folds.
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

    options, prediction = task.options, predictions.prediction.tolist()
    parts = [
        lambda: performance_section(predictions, report, options),
        lambda: annotator_section(predictions, options),
        lambda: cross_dataset_section(predictions, task.table, options),
        lambda: provenance_section(predictions, task.folder, task.table, task.notes, options),
        lambda: calibration_section(predictions, report, options),
    ]
    if task.flip:
        parts.append(lambda: tta_section(predictions, networks or {}, task.table, options))
    if predictions.fold_column:  # no single network to look into
        parts.append(lambda: error_analysis_section(predictions, report, options, gallery=False))
    else:
        parts.append(
            lambda: error_analysis_section(predictions, report, options, gallery=task.show_faces and not task.quick)
        )
        parts.append(lambda: measure_robustness(task, [predictions], report))
    if task.grouped_by:
        parts.append(
            lambda: fairness_section(
                predictions.rows,
                prediction,
                predictions.labels,
                task.grouped_by,
                report,
                FAIRNESS,
                options,
                predictions.heading,
            )
        )
    if task.pictures:
        pictures, classifier = task.pictures, EmotionClassifier.load(predictions.model_file)  # float32, as all the rest
        detector, hashes = build_detector("mtcnn", classifier.faces), read_hashes(predictions.model_file)
        parts.append(lambda: end_to_end_section(classifier, detector, pictures, report, options, hashes))
    return parts


def measure_robustness(task: Task, models: list[Any], report: Path) -> Any:
    """Return the section on occlusion and corruption, for models that share their labels."""
    from evaluation.metrics.scores import apply_rule
    from evaluation.sections.comparison import check_aligned
    from evaluation.sections.robustness import robustness_section

    def predict(predictions: Any) -> Callable[[Any], Any]:
        classifier = EmotionClassifier.load(predictions.model_file)
        return lambda images: apply_rule(classifier.predict(images), predictions.rule)

    check_aligned(models)
    first = models[0]
    return robustness_section(
        {predictions.name: predict(predictions) for predictions in models},
        first.rows,
        first.images,
        first.labels,
        replace(FACES, **{name: crop_options(task.folder)[name] for name in ("size", "channels", "align")}),
        report,
        ROBUSTNESS.quick_images if task.quick else ROBUSTNESS.images,
        task.options,
        "\n".join(predictions.heading for predictions in models),  # each names a model that was trained on the split
    )


def calibrate_card(task: Task, name: str, model_file: Path) -> None:
    """Fit a model's temperature and threshold on the task's rows, and write both into its card.

    Raises:
        InputError: the model cannot be used, or the rows do not tell how sure it may be.
    """
    from evaluation.predictions import predict
    from evaluation.sections.calibration import fit_calibration

    predictions = predict(model_file, name, task.folder, task.table, task.rows, task.split)
    fitted = fit_calibration(predictions, task.options)
    fitted["calibration"]["truth"] = MAJORITY if predictions.scored_by_majority else "the data set's own labels"
    selected = ImageHashes.of(selection=predictions.rows["pixel_hash"])
    write_hashes(model_file, read_hashes(model_file) | selected)
    write_card(replace(read_card(model_file), **fitted), model_file)
    how = fitted["calibration"]
    print(
        f"{name}: temperature {fitted['temperature']}, unsure below {fitted['abstention_threshold']}, fitted on "
        f"{how['dataset']}'s {how['split']} split (n = {how['n']:,}); calibration error {how['ece_before']:.1%} before "
        f"and {how['ece_after']:.1%} after, measured on other folds; {how['selective_accuracy']:.1%} right of "
        f"{how['coverage']:.1%} answered; written into {model_file.with_suffix('.json')}"
    )


def compare_models(task: Task, named: dict[str, Path], report: Path) -> None:
    """Compare networks on the same images and write the comparison, unless it is there for the same inputs.

    Raises:
        InputError: the models have too few emotions in common.
    """
    from evaluation.predictions import predict
    from evaluation.report.writer import Page, read_report, report_folder, write_report
    from evaluation.sections.comparison import comparison_section, on_common_labels

    inputs = {name: _inputs(task, model_file) for name, model_file in named.items()}
    metrics = read_report(report, inputs)
    if metrics is None:
        models = [
            predict(model_file, name, task.folder, task.table, task.rows, task.split)
            for name, model_file in named.items()
        ]
        with report_folder(report) as folder:
            section = comparison_section(models, folder, task.options)
            sections = [section]
            models = on_common_labels(models)
            sections.append(measure_robustness(task, models, folder))
            if task.grouped_by:
                sections += balances(task, models)
            page = Page(
                title=" against ".join(named),
                subtitle=f"{task.folder.name}, {task.split} split",
                banner=section.values["banner"],
                tiles=[],
                made_by=_made_by() | {"models": ", ".join(f"{n}: SHA-256 {inputs[n]['model']}…" for n in named)},
            )
            notes = [*task.notes, *(warning for part in sections for warning in part.warnings)]
            facts = {"dataset": task.folder.name, "split": task.split, "notes": notes, "inputs": inputs}
            told = {"sentences": section.sentences}
            metrics = write_report(folder, page, sections, facts | told, task.show_faces)
    for note in metrics["notes"]:
        print(f"  ! {note}")
    print("\n".join(metrics["sentences"][:-1]))
    print(f"comparison: {report / 'report.html'}")


def balances(task: Task, models: list[Any]) -> list[Any]:
    """Return, for each model after the first, what changed for the groups since the first."""
    from evaluation.sections.comparison import check_aligned
    from evaluation.sections.mitigation import mitigation_section

    check_aligned(models)
    first, *others = models
    sections = []
    for other in others:
        found = mitigation_section(
            first.rows,
            first.prediction.tolist(),
            other.prediction.tolist(),
            (first.name, other.name),
            first.labels,
            task.grouped_by,
            FAIRNESS,
            task.options,
        )
        sections.append(replace(found, name=f"{found.name}_{other.name}"))
    return sections


def _made_by() -> dict[str, str]:
    return {"command": typed_command(), "with": f"Python {platform.python_version()}"}


def _page(task: Task, predictions: Any, performance: dict[str, Any], inputs: dict[str, Any]) -> Any:
    from evaluation.report.section import interval_text
    from evaluation.report.writer import Page, Tile
    from evaluation.sections.performance import HEADLINE, format_interval, format_score
    from evaluation.sections.provenance import banner

    level = interval_text(task.options.level)
    tiles = [
        Tile(text.split(" (")[0], format_score(name, performance["scores"][name]),
             f"{level} {format_interval(name, tuple(performance['intervals'][name]))}")
        for name, text in HEADLINE.items()
    ]  # fmt: skip
    return Page(
        title=f"{predictions.name} on {predictions.dataset}",
        subtitle=f"{predictions.part}, {len(predictions.rows):,} images, {len(predictions.labels)} emotions",
        banner=banner(predictions),
        tiles=tiles,
        made_by=_made_by()
        | {
            "model": f"{predictions.model_file.name}, SHA-256 {inputs['model']}…",
            "rows": f"SHA-256 {inputs['rows']}…",
        },
    )


def _write_predictions(predictions: Any, report: Path) -> None:
    from evaluation.metrics.scores import probability_columns

    table = pd.DataFrame(
        {"path": predictions.rows["path"], "truth": predictions.rows["emotion"], "prediction": predictions.prediction}
    )
    if predictions.fold_column:
        table.insert(1, "fold", predictions.rows[predictions.fold_column])
    table = table.assign(**probability_columns(predictions.probabilities, predictions.labels))
    write_table(table, report / "predictions.csv")


def _print_summary(metrics: dict[str, Any], report: Path) -> None:
    from evaluation.report.section import interval_text

    print(f"{metrics['model']} on {metrics['dataset']}, split {metrics['split']} ({metrics['protocol']})")
    for note in metrics["notes"]:
        print(f"  ! {note}")
    print((report / "classification_report.txt").read_text(encoding="utf-8"))
    low, high = metrics["accuracy_interval"]
    interval = interval_text(metrics["performance"]["interval_level"])
    print(
        f"n = {metrics['n']}  accuracy {metrics['accuracy']:.4f} ({interval} {low:.4f} to "
        f"{high:.4f})  balanced accuracy {metrics['balanced_accuracy']:.4f}  macro F1 {metrics['macro_f1']:.4f}"
    )
    if "folds" in metrics:
        print(metrics["folds"]["summary"])
        for row in metrics["folds"]["protocols"][1:]:
            print(
                f"  {row['protocol']}: accuracy {row['accuracy']:.1%}, macro F1 {row['macro_f1']:.3f}, n = {row['n']:,}"
            )
    if "test_time_averaging" in metrics:
        print(f"reported apart: {metrics['test_time_averaging']['summary']}")
    print(f"report: {report / 'report.html'}")


def _inputs(task: Task, *model_files: Path) -> dict[str, Any]:
    """Return what a report was made from; the same again means the same report."""
    cards = [replace(read_card(file), scores=[]) for file in model_files]
    entries = [card.to_json() for card in cards]  # scores are written by ourselves
    inputs = {
        "model": file_hash(*model_files),
        "images": file_hash(*(file for file in map(hashes_file, model_files) if file.is_file())),
        "card": hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16],
        "started_from": [str(card.pretrained.find()) for card in cards if card.pretrained],
        "rows": content_hash(task.rows),
        "table": content_hash(
            task.table.filter(
                ["pixel_hash", "subject", "emotion", "status", "split", SUBJECT_INDEPENDENT, SUBJECT_DEPENDENT]
            )
        ),
        "crops": crop_options(task.folder),
        "split": task.split,
        "notes": task.notes,
        "options": asdict(task.options),
        "quick": task.quick,
        "show_faces": task.show_faces,
        "robustness": asdict(ROBUSTNESS),
        "groups": [task.grouped_by, asdict(FAIRNESS)],
        "flip": task.flip,
        "pictures": task.pictures and _pictures_inputs(task.pictures),
        "code": _code_hash(),
    }
    return json.loads(json.dumps(inputs))  # tuples become the lists that a report's file gives back


def _pictures_inputs(folder: Path) -> list[Any]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [str(folder), fingerprint({str(file): file for file in files})]


def _code_hash() -> str:
    """Return a hash of this package, so that a newer version makes its own report."""
    files = sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".html"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def update_scores(model_file: Path, metrics: dict[str, Any]) -> None:
    """Write an evaluation's scores into the model's card, in place of earlier ones on the same data and protocol.

    What is left without the images that have a copy in training stands in the score's entry. What test-time averaging
    gave follows as an entry of its own, which says so in `tta` and in its protocol.
    """
    scores = [_card_score(metrics)]
    if duplicates := metrics.get("honesty", {}).get("copies_scores"):
        part = duplicates["without copies"]
        rounded = {name: round(part[name]["value"], 4) for name in CARD_SCORES}
        scores[0]["without_duplicates"] = {"n": part["n"], **rounded}
    if averaged := metrics.get("test_time_averaging"):
        row = averaged["averaged"]
        interval = {"accuracy_interval": [row["accuracy_low"], row["accuracy_high"]]}
        told = {name: averaged[name] for name in ("tta", "temperature")}  # its answers depend on the temperature
        scores.append(_card_score({**metrics, **row, **interval, "protocol": averaged["protocol"]}) | told)
    card, same = read_card(model_file), ("dataset", "split", "protocol")
    written = [[score[name] for name in same] for score in scores]
    kept = [old for old in card.scores if [old.get(name) for name in same] not in written]
    write_card(replace(card, scores=[*kept, *scores]), model_file)


def _card_score(metrics: dict[str, Any]) -> dict[str, Any]:
    score = {name: metrics[name] for name in ("dataset", "split", "protocol", "label_rule", "n")}
    score |= {name: round(metrics[name], 4) for name in CARD_SCORES}
    score["accuracy_interval"] = [round(limit, 4) for limit in metrics["accuracy_interval"]]
    score["measured"] = datetime.now(UTC).date().isoformat()
    if metrics["held_out"] is not True:
        score |= {name: metrics[name] for name in ("held_out", "banner")}
    return score


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
