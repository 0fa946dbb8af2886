"""End-to-end accuracy: detector and classifier on full images, where a missed face counts as incorrect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import matplotlib.figure
import numpy as np
import pandas as pd

from common.command_line import progress_bar
from common.emotions import LabelRule, relate
from common.errors import InputError
from common.images import pixel_hash, read_gray_or_bgr
from configuration import EVALUATION, EvaluationConfig
from evaluation.metrics.intervals import Estimate, estimate_share, subject_clusters
from evaluation.metrics.scores import apply_rule, predicted_labels, probability_columns
from evaluation.report.plots import BLUE, GRAY, ORANGE, save
from evaluation.report.section import Figure, Section, Table, interval_text
from inference.crops import detect_in_crop, is_face_crop, network_input, read_image_rgb
from inference.emotion_classifier import EmotionClassifier
from inference.faces import Detector, choose_face
from inference.lineage import UNKNOWN, ImageHashes, hash_codes
from preprocessing.datasets.archives import list_files
from preprocessing.datasets.folders import read_folders
from preprocessing.tables import BOX_COLUMNS, labels_of, read_table, usable, write_table

CORRECT, INCORRECT, MISSED, UNREADABLE = "correct", "incorrect", "no face found", "unreadable"
TRAINING, SELECTION = "training", "selection"  # role of an image in the lineage of the network
LOOKS = {CORRECT: (BLUE, ""), INCORRECT: (ORANGE, "//"), MISSED: (GRAY, "xx")}  # colour and hatching
MAX_FAILURES = 12  # images shown, missed faces first
BATCH_SIZE = 256  # crops classified at once


def labelled_images(source: Path) -> tuple[pd.DataFrame, Path]:
    """Return the labelled images of a folder, and the folder that their column `path` is relative to.

    Args:
        source: Folders named by emotion (`ROOT/happy/1.jpg`), or a data set's folder with its inventory.csv.

    Returns:
        Rows with `path`, `emotion` and `subject`.

    Raises:
        InputError: The folder is missing, a subfolder does not name an emotion, or there is no labelled image.
    """
    if not source.is_dir():
        raise InputError(f"--pictures {source} is no folder; give folders named by emotion, or a data set's folder")
    if (source / "inventory.csv").is_file():
        rows = usable(read_table(source, "inventory.csv"))
    else:
        rows = read_folders(list_files(source))
        if len(rows):
            rows["path"] = [file.relative_to(source).as_posix() for file in rows.pop("file")]
    if rows.empty:
        raise InputError(f"--pictures {source} holds no labelled image; give ROOT/happy/1.jpg, ROOT/sad/2.png, ...")
    return rows, source


def image_roles(rows: pd.DataFrame, folder: Path, hashes: ImageHashes) -> np.ndarray:
    """Return the role of each image in the lineage of a network: `training`, `selection` or empty, (n,).

    Args:
        rows: Images, with `path` and, for a data set, `pixel_hash`.
        folder: Folder that the paths are relative to.
        hashes: Training and selection images of the lineage.
    """
    own = rows["pixel_hash"] if "pixel_hash" in rows.columns else pd.Series("", index=rows.index)
    codes = hash_codes(known or _hash_of(folder / path) for known, path in zip(own, rows["path"], strict=True))
    return np.select([np.isin(codes, hashes.training), np.isin(codes, hashes.selection)], [TRAINING, SELECTION], "")


def _hash_of(file: Path) -> str:
    try:
        image = read_gray_or_bgr(file)
    except OSError:
        image = None
    return "" if image is None else pixel_hash(image)


def end_to_end_section(
    classifier: EmotionClassifier,
    detector: Detector,
    source: Path,
    report: Path,
    options: EvaluationConfig = EVALUATION,
    hashes: ImageHashes = UNKNOWN,
) -> Section:
    """Score a classifier on full images, together with the detector that finds the faces.

    Of several faces the largest is scored, or the most central of those about as large, as in step 2.

    Args:
        classifier: The classifier, in float32 as in the rest of the report.
        detector: The face detector.
        source: Folder of the images; see `labelled_images`.
        report: Folder for the figures.
        options: Resamples, level and seed.
        hashes: Training and selection images of the lineage.

    Raises:
        InputError: The images cannot be used, or their labels cannot be related to the classifier's.
    """
    rows, folder = labelled_images(source)
    rule = relate(classifier.labels, labels_of(rows))
    is_known = rows["emotion"].isin(rule.labels)
    left_out = int((~is_known).sum())
    found = classify(rows.loc[is_known].reset_index(drop=True), folder, classifier, detector, rule)
    found["known"] = image_roles(found, folder, hashes)
    scored = found.loc[found["outcome"] != UNREADABLE]
    if scored.empty:
        raise InputError(f"--pictures {source}: none of its {len(found)} images can be read; give PNG or JPEG files")
    estimates, per_emotion = score(scored, options), by_emotion(scored, rule.labels, options)
    warnings, known = _known_images(scored, options, hashes.complete)
    table = pd.DataFrame(estimates, index=["share", "low", "high"]).T.rename_axis("score")
    figures = [_draw_outcomes(scored, rule.labels, report / "end_to_end.png", " ".join(["", *warnings]))]
    failures = scored.loc[scored["outcome"] != CORRECT]
    if len(failures):
        figures.append(_draw_failures(failures, folder, report / "end_to_end_failures.png"))
    written = found.drop(columns=["pixel_hash"], errors="ignore")
    write_table(written, report / "end_to_end_images.csv")
    values = {name.replace(" ", "_"): estimate._asdict() for name, estimate in estimates.items()} | known
    values |= {
        "images": len(scored),
        "unreadable": len(found) - len(scored),
        "left_out": left_out,
        "label_rule": rule.text,
        "per_emotion": per_emotion.reset_index().to_dict("records"),
    }
    return Section(
        "end_to_end",
        "End-to-end accuracy on full images",
        [*_sentences(found, estimates, source, rule, left_out, options), *_known_sentences(values, hashes.complete)],
        warnings,
        [
            Table(table, f"Detector and classifier, {len(scored)} full images", ("share", "low", "high")),
            Table(per_emotion, "By emotion: a missed face is incorrect", ("correct", "low", "high", "missed")),
        ],
        figures,
        values,
    )


# ---------------------------------------------------------------- predictions


def classify(
    rows: pd.DataFrame, folder: Path, classifier: EmotionClassifier, detector: Detector, rule: LabelRule
) -> pd.DataFrame:
    """Return the rows with `outcome`, `face_count`, the box, `prediction` and the probabilities.

    Images are read one by one and their crops classified in batches, so that memory does not grow with their number.
    """
    places: list[dict[str, Any]] = []
    probabilities = np.full((len(rows), len(rule.labels)), np.nan)
    waiting: dict[int, np.ndarray] = {}

    def flush() -> None:
        if waiting:
            predicted = classifier.predict(np.stack(list(waiting.values())))
            probabilities[list(waiting)] = apply_rule(predicted, rule)
            waiting.clear()

    with progress_bar() as bar:
        crops = _crops(rows["path"], folder, classifier, detector)
        for number, (place, crop) in enumerate(bar.track(crops, total=len(rows), description="full images")):
            places.append(place)
            if crop is not None:
                waiting[number] = crop
            if len(waiting) == BATCH_SIZE:
                flush()
    flush()
    found = rows[[column for column in ("path", "emotion", "subject", "pixel_hash") if column in rows.columns]].join(
        pd.DataFrame(places, columns=["outcome", "face_count", *BOX_COLUMNS])
    )
    is_found = found["outcome"] == ""
    found["prediction"] = pd.Series(predicted_labels(probabilities, rule.labels)).where(is_found, "")
    correct = np.where(found["prediction"] == found["emotion"], CORRECT, INCORRECT)
    found["outcome"] = found["outcome"].where(~is_found, correct)
    return found.assign(**probability_columns(probabilities, rule.labels))


def _crops(
    paths: pd.Series, folder: Path, classifier: EmotionClassifier, detector: Detector
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Yield where the face of each image is, and its crop; None without a face."""
    options = classifier.faces
    for path in paths:
        try:
            image_rgb = read_image_rgb(folder / path)
        except InputError:
            yield {"outcome": UNREADABLE}, None
            continue
        faces = detect_in_crop(image_rgb, detector) if is_face_crop(image_rgb) else detector.detect(image_rgb)
        face = choose_face(faces, image_rgb.shape)
        if face is None:
            yield {"outcome": MISSED, "face_count": 0}, None
            continue
        edges = (round(float(edge), 2) for edge in (face.left, face.top, face.width, face.height))
        place = {"outcome": "", "face_count": len(faces), **dict(zip(BOX_COLUMNS, edges, strict=True))}
        yield place, network_input(image_rgb, face, options)


# ---------------------------------------------------------------- scores


def score(scored: pd.DataFrame, options: EvaluationConfig = EVALUATION) -> dict[str, Estimate]:
    """Return `accuracy` (a missed face is incorrect), `missed`, and `accuracy where found` unless all are missed.

    Args:
        scored: `outcome` of each image, and `subject`.
        options: Resamples, level and seed.
    """
    missed = scored["outcome"] == MISSED
    outcomes = {"accuracy": CORRECT, "missed": MISSED}
    estimates = {name: _share(scored, scored, outcome, options) for name, outcome in outcomes.items()}
    if missed.all():
        return estimates
    return estimates | {"accuracy where found": _share(scored.loc[~missed], scored, CORRECT, options)}


def _share(rows: pd.DataFrame, scored: pd.DataFrame, outcome: str, options: EvaluationConfig) -> Estimate:
    """Return the share of an outcome among some of the scored rows."""
    subjects = None if subject_clusters(scored) is None else pd.factorize(rows["subject"])[0]
    hits = (rows["outcome"] == outcome).to_numpy()
    return estimate_share(hits, subjects, options.resamples, options.seed, options.level)


def by_emotion(scored: pd.DataFrame, labels: tuple[str, ...], options: EvaluationConfig = EVALUATION) -> pd.DataFrame:
    """Return `images`, the share `correct` with `low` and `high`, and the share `missed`, by true emotion."""
    parts = {label: part for label in labels if len(part := scored.loc[scored["emotion"] == label])}
    rows = [
        (label, len(part), *_share(part, scored, CORRECT, options), float((part["outcome"] == MISSED).mean()))
        for label, part in parts.items()
    ]
    return pd.DataFrame(rows, columns=["emotion", "images", "correct", "low", "high", "missed"]).set_index("emotion")


def _known_images(scored: pd.DataFrame, options: EvaluationConfig, complete: bool) -> tuple[list[str], dict[str, Any]]:
    """Return warnings about training and selection images among the scored ones, and their numbers."""
    trained, selected = (int((scored["known"] == role).sum()) for role in (TRAINING, SELECTION))
    warnings = []
    if trained:
        warnings.append(
            f"NOT A HELD-OUT SCORE: {trained:,} of the {len(scored):,} full images are training images of the network "
            "or of its lineage"
        )
    if selected:
        warnings.append(f"{selected:,} of the {len(scored):,} full images were used to select or calibrate the network")
    values: dict[str, Any] = {
        "training_images": trained,
        "selection_images": selected,
        "held_out": False if trained else True if complete else None,
    }
    new = scored.loc[scored["known"] == ""]
    if warnings and len(new):
        values["without_known"] = {"images": len(new)} | _share(new, scored, CORRECT, options)._asdict()
    return warnings, values


# ---------------------------------------------------------------- display


def _sentences(
    found: pd.DataFrame,
    estimates: dict[str, Estimate],
    source: Path,
    rule: LabelRule,
    left_out: int,
    options: EvaluationConfig,
) -> list[str]:
    unread = found.loc[found["outcome"] == UNREADABLE, "path"]
    clusters = "images" if subject_clusters(found) is None else "subjects"
    where_found = f", {estimates['accuracy where found']} % where one was found" if len(estimates) == 3 else ""
    labels = rule.text or f"the same in the images and in the model ({', '.join(rule.labels)})"
    sentences = [
        f"{len(found) - len(unread)} full images of {source.name}: accuracy {estimates['accuracy']} %{where_found}. "
        f"{estimates['missed']} % of the faces were missed. Each {interval_text(options.level)} is over {clusters}.",
        f"Labels: {labels}" + (f" ({left_out} images)." if left_out else "."),
    ]
    if len(unread):
        named = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        sentences.append(f"{len(unread)} images cannot be read and are not scored: {named}.")
    if several := int((found["face_count"] > 1).sum()):
        sentences.append(
            f"{several} images have several faces; the largest, or the most central of those about as large, is scored."
        )
    return sentences


def _known_sentences(values: dict[str, Any], complete: bool) -> list[str]:
    sentences = []
    if new := values.get("without_known"):
        estimate = Estimate(new["value"], new["low"], new["high"])
        sentences.append(f"Accuracy on the {new['images']:,} other images: {estimate} %.")
    if not complete:
        sentences.append("Training images were not checked: the network has no complete list of them.")
    return sentences


def _draw_outcomes(scored: pd.DataFrame, labels: tuple[str, ...], file: Path, warning: str) -> Figure:
    counts = pd.crosstab(scored["emotion"], scored["outcome"]).reindex(
        index=[label for label in labels if (scored["emotion"] == label).any()], columns=list(LOOKS), fill_value=0
    )
    figure = matplotlib.figure.Figure(figsize=(7.5, 0.45 * len(counts) + 1.6), layout="constrained")
    axes = figure.subplots()
    names = [f"{label} ({number})" for label, number in counts.sum(axis=1).items()]
    shares = counts.div(counts.sum(axis=1), axis=0)
    left = shares.cumsum(axis=1) - shares
    for outcome, (color, hatch) in LOOKS.items():
        axes.barh(
            names, shares[outcome], left=left[outcome], color=color, hatch=hatch, edgecolor="white", label=outcome
        )
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="share of the images", xlim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3)
    write_table(counts.reset_index(), file.with_suffix(".csv"))
    listed = (
        f"{label}: {', '.join(f'{row[outcome]} {outcome}' for outcome in LOOKS)}" for label, row in counts.iterrows()
    )
    return Figure(
        save(figure, file), f"Outcomes of {len(scored)} full images by true emotion.{warning}", "; ".join(listed)
    )


def _draw_failures(failures: pd.DataFrame, folder: Path, file: Path) -> Figure:
    """Draw images whose face was missed or classified incorrectly, missed ones first, with the face's box."""
    missed_first = failures.sort_values("outcome", key=lambda outcome: outcome != MISSED, kind="stable")
    shown = missed_first.iloc[:MAX_FAILURES]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = matplotlib.figure.Figure(figsize=(2.6 * columns, 2.6 * lines), layout="constrained")
    panels = cast(np.ndarray, figure.subplots(lines, columns, squeeze=False)).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (_, row) in zip(panels, shown.iterrows(), strict=False):
        axes.imshow(_with_box(read_image_rgb(folder / str(row["path"])), row))
        axes.set_title(f"{row['emotion']}: {row['prediction'] or MISSED}", fontsize=9)
    return Figure(
        save(figure, file),
        f"{len(shown)} of {len(failures)} failures, missed faces first: true emotion, then prediction.",
        "Small images; an orange frame marks the face that was found.",
        shows_faces=True,
    )


def _with_box(image_rgb: np.ndarray, row: pd.Series, side: int = 320) -> np.ndarray:
    """Return a small copy of an image with the box of the face."""
    scale = side / max(image_rgb.shape[:2])
    size = tuple(max(round(length * scale), 1) for length in image_rgb.shape[1::-1])
    small_rgb = cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA)
    if row["outcome"] != MISSED:
        left, top, width, height = (float(row[column]) * scale for column in BOX_COLUMNS)
        corners = (round(left), round(top)), (round(left + width), round(top + height))
        cv2.rectangle(small_rgb, *corners, (230, 159, 0), 3)
    return small_rgb
