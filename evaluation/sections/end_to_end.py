"""Whole pictures through detector and classifier together: a face that is missed counts as a mistake."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import matplotlib.figure
import numpy as np
import pandas as pd

from common.command_line import progress_bar
from common.emotions import relate
from common.errors import InputError
from common.files import atomic_file
from common.images import pixel_hash, read_gray_or_bgr
from configuration import END_TO_END, EndToEndConfig, FaceConfig
from evaluation.metrics.intervals import Estimate, estimate_share, subject_clusters
from evaluation.metrics.scores import apply_rule, predicted_labels
from evaluation.report.section import Figure, Section, Table, interval_text
from inference.crops import detect_in_crop, is_face_crop, network_input, read_image_rgb
from inference.emotion_classifier import EmotionClassifier
from inference.faces import Detector, Face, choose_face
from inference.lineage import UNKNOWN, ImageHashes, hash_codes
from preprocessing.datasets.archives import list_files
from preprocessing.datasets.folders import read_folders
from preprocessing.tables import BOX_COLUMNS, labels_of, read_table, usable, write_table

MISSED = "no face found"
UNREADABLE = "unreadable"
RIGHT, WRONG = "right", "wrong"
TRAINING, SELECTION = "training", "selection"  # what a picture was to the network
# Told apart by the colour-blind, and by their hatching.
LOOKS = {RIGHT: ("#0072B2", ""), WRONG: ("#E69F00", "//"), MISSED: ("0.35", "xx")}


def labelled_pictures(source: Path) -> tuple[pd.DataFrame, Path]:
    """Return the labelled pictures of a folder, and the folder that their column `path` is relative to.

    Args:
        source: Folders named by emotion (`ROOT/happy/1.jpg`), or a data set's folder with its inventory.csv.

    Returns:
        Rows with `path`, `emotion` and `subject`.

    Raises:
        InputError: no such folder, a picture whose folder names no emotion, or no labelled picture at all.
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
        raise InputError(f"--pictures {source} holds no labelled picture; give ROOT/happy/1.jpg, ROOT/sad/2.png, ...")
    return rows, source


def known_pictures(rows: pd.DataFrame, folder: Path, hashes: ImageHashes) -> tuple[np.ndarray, np.ndarray]:
    """Return which pictures have the pixels of images that a network's lineage was trained or selected on.

    Args:
        rows: The pictures, with `path` and, of a data set, `pixel_hash`.
        folder: The folder that the paths are relative to.
        hashes: The images that shaped the network.

    Returns:
        Two arrays, bool (pictures,): training images, and selection images that are no training images.
    """
    own = rows["pixel_hash"] if "pixel_hash" in rows.columns else pd.Series("", index=rows.index)
    codes = hash_codes(known or _hash_of(folder / path) for known, path in zip(own, rows["path"], strict=True))
    is_training = np.isin(codes, hashes.training)
    return is_training, np.isin(codes, hashes.selection) & ~is_training


def _hash_of(file: Path) -> str:
    try:
        image = read_gray_or_bgr(file)
    except OSError:
        image = None
    return "" if image is None else pixel_hash(image)


def in_the_wild(
    classifier: EmotionClassifier,
    detector: Detector,
    source: Path,
    report: Path,
    options: EndToEndConfig = END_TO_END,
    hashes: ImageHashes = UNKNOWN,
) -> Section:
    """Score a network on whole pictures, together with the detector that finds the faces for it.

    Of several faces in a picture the largest counts, or the most central of those about as large, as in step 2.
    Pictures that the network learnt from, or that chose it, are counted and named.

    Args:
        classifier: The network, of the precision of the rest of the report: float32.
        detector: What finds the faces.
        source: The pictures; see `labelled_pictures`.
        report: Folder for the figures.
        options: Repeats, seed, and how many failures are shown.
        hashes: The images that shaped the network and its lineage.

    Raises:
        InputError: the pictures cannot be used, or no rule relates their labels to the network's.
    """
    rows, folder = labelled_pictures(source)
    rule = relate(classifier.labels, labels_of(rows))
    left_out = int((~rows["emotion"].isin(rule.labels)).sum())
    rows = rows.loc[rows["emotion"].isin(rule.labels)].reset_index(drop=True)
    places, probabilities = _look(rows, folder, classifier, detector)
    scaled = apply_rule(probabilities, rule)
    predictions = pd.Series(predicted_labels(scaled, rule.labels), index=rows.index)
    is_learnt, is_chosen = known_pictures(rows, folder, hashes)
    unchecked = []
    if not hashes.complete:
        unchecked = ["Whether pictures are training images is not known: the network has no complete list of these."]
    found = rows[[column for column in ("path", "emotion", "subject") if column in rows.columns]].join(places)
    is_found = found["outcome"] == ""
    found["prediction"] = predictions.where(is_found, "")
    found.loc[is_found, "outcome"] = np.where(found["prediction"] == found["emotion"], RIGHT, WRONG)[is_found]
    scaled[~is_found] = np.nan  # no face, no probabilities
    found["known"] = np.select([is_learnt, is_chosen], [TRAINING, SELECTION], "")
    found = found.join(pd.DataFrame(scaled, columns=[f"p_{label}" for label in rule.labels]).round(6))
    scored = found.loc[found["outcome"] != UNREADABLE]
    if scored.empty:
        raise InputError(f"--pictures {source}: none of its {len(found)} pictures can be read; give PNG or JPEG files")
    estimates = score(scored, options)
    per_emotion = by_emotion(scored, rule.labels, options)
    warnings, seen = _known(scored, options, hashes.complete)
    sentences = [_summary(scored, estimates, source, options), *_notes(found, classifier, rule.text, left_out)]
    sentences += [*seen.pop("sentences"), *unchecked, "The network runs in float32, as in the rest of the report."]
    tables = [
        Table(_printed(estimates), f"Detector and classifier, {len(scored)} whole pictures", ("share", "low", "high")),
        Table(per_emotion, "By emotion: a missed face counts as a mistake", ("right", "low", "high", "missed")),
    ]
    unfit = f" {' '.join(warnings)}" if warnings else ""
    figures = [_draw_outcomes(scored, rule.labels, report / "in_the_wild.png", unfit)]
    failures = scored.loc[scored["outcome"] != RIGHT]
    if len(failures):
        figures.append(_draw_failures(failures, folder, report / "in_the_wild_failures.png", options))
    write_table(found, report / "in_the_wild_pictures.csv")
    values: dict[str, Any] = {name: estimate._asdict() for name, estimate in estimates.items()}
    values |= {
        "pictures": len(scored),
        "unreadable": len(found) - len(scored),
        "left_out": left_out,
        "label_rule": rule.text,
        "per_emotion": per_emotion.reset_index().to_dict("records"),
        **seen,
        "not_checked": unchecked,
        "precision": "float32",
    }
    return Section("in_the_wild", "In the wild, end to end", sentences, warnings, tables, figures, values)


def _known(scored: pd.DataFrame, options: EndToEndConfig, complete: bool) -> tuple[list[str], dict[str, Any]]:
    """Return warnings where scored pictures are known to the network, and the numbers and sentences about them."""
    learnt, chosen = ((scored["known"] == kind).to_numpy() for kind in (TRAINING, SELECTION))
    warnings, sentences = list[str](), list[str]()
    values: dict[str, Any] = {
        "training_pictures": int(learnt.sum()),
        "selection_pictures": int(chosen.sum()),
        "held_out": False if learnt.any() else True if complete else None,
    }
    if learnt.any():
        warnings.append(
            f"NOT A HELD-OUT SCORE: {learnt.sum():,} of the {len(scored):,} whole pictures are training images of the "
            "network or of one that it learnt from"
        )
    if chosen.any():
        warnings.append(f"{chosen.sum():,} of the {len(scored):,} whole pictures chose the network or its calibration")
    new = scored.loc[~learnt & ~chosen]
    if warnings and len(new):
        without = _estimate(new, (new["outcome"] == RIGHT).to_numpy(), options)
        values["without_known"] = {"pictures": len(new)} | without._asdict()
        sentences.append(f"Of the {len(new):,} other pictures {without} % are right, end to end.")
    return warnings, values | {"sentences": sentences}


# ---------------------------------------------------------------- looking


def _look(
    rows: pd.DataFrame, folder: Path, classifier: EmotionClassifier, detector: Detector
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return where each picture's face is and what became of it, and the network's probabilities (rows, classes).

    Pictures are read one by one and their crops classified in batches, so that memory does not grow with their number.
    """
    places: list[dict[str, Any]] = []
    probabilities = np.zeros((len(rows), len(classifier.labels)), np.float32)
    waiting: list[tuple[int, np.ndarray]] = []

    def classify() -> None:
        if waiting:
            numbers, crops = zip(*waiting, strict=True)
            probabilities[list(numbers)] = classifier.predict(np.stack(crops))
            waiting.clear()

    with progress_bar() as bar:
        looked_at = _crops(rows["path"], folder, classifier.faces, detector)
        for number, (place, crop) in enumerate(bar.track(looked_at, total=len(rows), description="pictures")):
            places.append(place)
            if crop is not None:
                waiting.append((number, crop))
            if len(waiting) == 256:
                classify()
    classify()
    return pd.DataFrame(places, columns=["outcome", "face_count", *BOX_COLUMNS]), probabilities


def _crops(
    paths: pd.Series, folder: Path, options: FaceConfig, detector: Detector
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    for path in paths:
        try:
            image_rgb = read_image_rgb(folder / path)
        except InputError:
            yield {"outcome": UNREADABLE}, None
            continue
        found = detect_in_crop(image_rgb, detector) if is_face_crop(image_rgb) else detector.detect(image_rgb)
        face = choose_face(found, image_rgb.shape)
        if face is None:
            yield {"outcome": MISSED, "face_count": 0}, None
        else:
            yield {"outcome": "", "face_count": len(found), **_box(face)}, network_input(image_rgb, face, options)


def _box(face: Face) -> dict[str, float]:
    edges = face.left, face.top, face.width, face.height
    return dict(zip(BOX_COLUMNS, (round(float(edge), 2) for edge in edges), strict=True))


# ---------------------------------------------------------------- scores


def score(scored: pd.DataFrame, options: EndToEndConfig = END_TO_END) -> dict[str, Estimate]:
    """Return `end_to_end` accuracy (a missed face is a mistake), `missed`, and accuracy `where_found`.

    Args:
        scored: `outcome` (right, wrong, or no face found) of each picture, and `subject`.
        options: Repeats and seed.
    """
    right, missed = (scored["outcome"] == RIGHT).to_numpy(), (scored["outcome"] == MISSED).to_numpy()
    estimates = {
        "end_to_end": _estimate(scored, right, options),
        "missed": _estimate(scored, missed, options),
    }
    if not missed.all():
        estimates["where_found"] = _estimate(scored.loc[~missed], right[~missed], options)
    return estimates


def _estimate(rows: pd.DataFrame, hits: np.ndarray, options: EndToEndConfig) -> Estimate:
    return estimate_share(hits, subject_clusters(rows), options.resamples, options.seed, options.level)


def by_emotion(scored: pd.DataFrame, labels: tuple[str, ...], options: EndToEndConfig = END_TO_END) -> pd.DataFrame:
    """Return `pictures`, the share `right` with `low` and `high`, and the share `missed`, by true emotion."""
    rows = []
    for label in labels:
        own = scored.loc[scored["emotion"] == label]
        if len(own):
            right = _estimate(own, (own["outcome"] == RIGHT).to_numpy(), options)
            rows.append((label, len(own), *right, float((own["outcome"] == MISSED).mean())))
    return pd.DataFrame(rows, columns=["emotion", "pictures", "right", "low", "high", "missed"]).set_index("emotion")


def _printed(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    names = {"end_to_end": "right, end to end", "missed": "face missed", "where_found": "right where a face was found"}
    rows = [(names[name], *estimate) for name, estimate in estimates.items()]
    return pd.DataFrame(rows, columns=["what", "share", "low", "high"]).set_index("what")


# ---------------------------------------------------------------- words


def _summary(scored: pd.DataFrame, estimates: Mapping[str, Estimate], source: Path, options: EndToEndConfig) -> str:
    drawn = "subjects" if subject_clusters(scored) is not None else "pictures"
    where_found = f"; where a face was found, {estimates['where_found']} %" if "where_found" in estimates else ""
    return (
        f"{len(scored)} whole pictures of {source.name}: {estimates['end_to_end']} % right when a missed face counts "
        f"as a mistake; {estimates['missed']} % of the faces were missed{where_found}. "
        f"Each {interval_text(options.level)} is over {drawn}."
    )


def _notes(found: pd.DataFrame, classifier: EmotionClassifier, rule: str, left_out: int) -> list[str]:
    labels = rule or f"the same in the pictures and in the model ({', '.join(classifier.labels)})"
    notes = [f"Labels: {labels}" + (f" ({left_out} pictures)." if left_out else ".")]
    unread = found.loc[found["outcome"] == UNREADABLE, "path"]
    if len(unread):
        named = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        notes.append(f"{len(unread)} pictures cannot be read and are in no figure: {named}.")
    several = int((found["face_count"] > 1).sum())
    if several:
        notes.append(
            f"{several} pictures show several faces; the largest one, or the most central of those about as large, was "
            "taken for the labelled one."
        )
    return notes


# ---------------------------------------------------------------- figures


def _draw_outcomes(scored: pd.DataFrame, labels: tuple[str, ...], file: Path, unfit: str) -> Figure:
    counts = pd.crosstab(scored["emotion"], scored["outcome"]).reindex(
        index=[label for label in labels if label in set(scored["emotion"])], columns=list(LOOKS), fill_value=0
    )
    figure = matplotlib.figure.Figure(figsize=(7.5, 0.45 * len(counts) + 1.6), layout="constrained")
    axes = figure.subplots()
    names = [f"{label} ({number})" for label, number in counts.sum(axis=1).items()]
    shares = counts.div(counts.sum(axis=1), axis=0)
    left = np.zeros(len(counts))
    for outcome, (colour, hatch) in LOOKS.items():
        own = shares[outcome].to_numpy()
        axes.barh(names, own, left=left, color=colour, hatch=hatch, edgecolor="white", label=outcome)
        left = left + own
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="share of the pictures", xlim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
    write_table(counts.reset_index(), file.with_suffix(".csv"))
    rows = counts.to_dict("index").items()
    return Figure(
        file,
        f"What became of {len(scored)} whole pictures, by true emotion.{unfit}",
        "; ".join(
            f"{label}: {row[RIGHT]} {RIGHT}, {row[WRONG]} {WRONG}, {row[MISSED]} {MISSED}" for label, row in rows
        ),
    )


def _draw_failures(failures: pd.DataFrame, folder: Path, file: Path, options: EndToEndConfig) -> Figure:
    """Draw pictures whose face was missed or misread, missed ones first, with the face's box."""
    missed_first = failures.sort_values("outcome", key=lambda outcome: outcome != MISSED, kind="stable")
    shown = missed_first.iloc[: options.failures]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = matplotlib.figure.Figure(figsize=(2.6 * columns, 2.6 * lines), layout="constrained")
    panels = cast(np.ndarray, figure.subplots(lines, columns, squeeze=False)).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (_, row) in zip(panels, shown.iterrows(), strict=False):
        axes.imshow(_with_box(read_image_rgb(folder / str(row["path"])), row))
        axes.set_title(f"{row['emotion']}: {row['prediction'] or MISSED}", fontsize=9)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
    return Figure(
        file,
        f"{len(shown)} of {len(failures)} failures, missed faces first: the true emotion, then the answer.",
        "Small pictures, the face found in each framed in orange.",
        shows_faces=True,
    )


def _with_box(image_rgb: np.ndarray, row: pd.Series, side: int = 320) -> np.ndarray:
    """Return a small copy of a picture with the box of the face found, if one was."""
    scale = side / max(image_rgb.shape[:2])
    size = tuple(max(round(length * scale), 1) for length in image_rgb.shape[1::-1])
    small_rgb = cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA)
    if row["outcome"] != MISSED:
        left, top, width, height = (float(row[column]) * scale for column in BOX_COLUMNS)
        corners = (round(left), round(top)), (round(left + width), round(top + height))
        cv2.rectangle(small_rgb, *corners, (230, 159, 0), 3)
    return small_rgb
