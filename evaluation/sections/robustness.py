"""How accuracy falls as a face is covered or its picture gets worse: a table, curves, and the comparison of two models.

Every cover is a small function from a crop and its landmarks to a covered crop. All of them see the same images, and
an image's random numbers are the same under every cover and for every model, so that all differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from common.command_line import progress_bar
from common.files import atomic_file
from configuration import ROBUSTNESS, FaceConfig, RobustnessConfig
from evaluation.metrics.intervals import (
    Estimate,
    boundary_interval,
    percentile_interval,
    resampled_means,
    subject_clusters,
)
from evaluation.report.section import Figure, Section, Table, interval_text
from evaluation.sections.face_regions import (
    EYES,
    LEFT_EYE,
    MOUTH,
    NOSE,
    RIGHT_EYE,
    Region,
    coverage,
    ellipse,
    faces_of,
    points_in_crops,
    rectangle,
)
from inference.faces import Face
from preprocessing.tables import write_table

Apply = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]

TRAINED_AT = 48  # pixels: side of the crop to which lengths in pixels refer; they grow with larger crops
BLACK = (0, 0, 0)
DARK = (20, 20, 22)
HAIR = (52, 40, 32)
CLOTH = (160, 200, 225)  # a surgical mask's light blue
# Okabe and Ito's colours, told apart also by the colour-blind; every line has its own marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Candidate:
    """A model under test.

    Attributes:
        predict: From images, uint8 (n, size, size, channels), to probabilities, (n, labels), in the order of `labels`.
        card: Its card, which says whether its training images were covered.
    """

    predict: Predict
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cover:
    """One way of covering a face, or of making its picture worse.

    Attributes:
        name: What the tables call it.
        apply: From image, landmarks (5, 2) in its pixels, and a random generator to the changed image.
        kind: `scars`, `part of the face`, `random box` or `picture quality`.
        curve: The curve that it is a point of; empty where it stands alone.
        strength: Its place on the curve.
    """

    name: str
    apply: Apply
    kind: str
    curve: str = ""
    strength: float = 0.0


# ---------------------------------------------------------------- covers


def _paint(image: np.ndarray, share: np.ndarray, colour: tuple[int, int, int], grain: np.ndarray | float = 0.0):
    """Return the image with a colour (its gray level, in gray images) laid over it, 0-1 per pixel."""
    wanted = np.array(colour) if image.shape[2] == 3 else np.array([np.dot(colour, (0.299, 0.587, 0.114))])
    share = share[:, :, None]
    painted = image * (1 - share) + (wanted + np.asarray(grain)) * share
    return np.clip(np.round(painted), 0, 255).astype(np.uint8)


def _regions(regions: Sequence[Region], colour: tuple[int, int, int]) -> Apply:
    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _paint(image, coverage(regions, points, image.shape[0]), colour)

    return apply


def small_erasing_count(count: float) -> Apply:
    """Return a cover of that many black boxes of 6 x 2 pixels, as `training.augmentation.RandomScars` makes them."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        covered, size = image.copy(), image.shape[0]
        long, short = (max(round(length * size / TRAINED_AT), 1) for length in (6, 2))
        for _ in range(int(count)):
            lying, x, y = random.random(3)
            width, height = (long, short) if lying < 0.5 else (short, long)
            left, top = int(x * (size - width + 1)), int(y * (size - height + 1))
            covered[top : top + height, left : left + width] = 0
        return covered

    return apply


def random_box(share: float) -> Apply:
    """Return a cover of one black box, of any place and proportions, over that share of the picture's area."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        covered, size = image.copy(), image.shape[0]
        proportions, x, y = 2 ** random.uniform(-1, 1), *random.random(2)
        height = float(np.clip(np.sqrt(share * proportions), share, 1))
        rows, columns = round(height * size), round(share / height * size) if share else 0
        left, top = int(x * (size - columns + 1)), int(y * (size - rows + 1))
        covered[top : top + rows, left : left + columns] = 0
        return covered

    return apply


def one_eye(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cover the left or the right eye, as chance has it."""
    region = LEFT_EYE_BAR if random.random() < 0.5 else RIGHT_EYE_BAR
    return _paint(image, coverage([region], points, image.shape[0]), BLACK)


def beard(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Let a dark full beard grow around the mouth."""
    size = image.shape[0]
    share = 0.9 * coverage([BEARD], points, size, holes=[LIPS])
    return _paint(image, share, HAIR, grain=random.normal(0, 12, (size, size, 1)))


def rimmed_glasses(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Put on glasses of clear glass with dark rims."""
    size = image.shape[0]
    rims = np.maximum(coverage(LENSES, points, size, line=0.035), coverage(GLASSES_FRAME, points, size))
    return _paint(image, rims, DARK)


def blur(sigma: float) -> Apply:
    """Return a Gaussian blur; its standard deviation in pixels of a crop of 48."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), sigma * image.shape[0] / TRAINED_AT).reshape(image.shape)

    return apply


def noise(deviation: float) -> Apply:
    """Return Gaussian noise of that standard deviation, in gray levels."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        noisy = image + deviation * random.standard_normal(image.shape)
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    return apply


def darkness(lost: float) -> Apply:
    """Return a loss of that share of the light; what is left is rounded to whole gray levels again."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return np.round(image * (1 - lost)).astype(np.uint8)

    return apply


def jpeg(quality: float) -> Apply:
    """Return a JPEG compression of that quality, 1-100."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        stored = image[:, :, ::-1]  # RGB to BGR; gray stays
        code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
        flags = cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR
        decoded = cv2.imdecode(code, flags)
        assert decoded is not None  # it was encoded here
        return decoded.reshape(image.shape)[:, :, ::-1]

    return apply


def low_resolution(side: float) -> Apply:
    """Return a loss of detail: the face shrunk to that many pixels a side, and enlarged again."""

    def apply(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
        small = cv2.resize(image, (int(side), int(side)), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).reshape(image.shape)

    return apply


# In fractions of the template's side; left and right as the viewer sees them.
EYE_BAR = rectangle(0.16, 0.29, 0.84, 0.475, EYES)
LEFT_EYE_BAR = rectangle(0.16, 0.29, 0.47, 0.475, (LEFT_EYE,))
RIGHT_EYE_BAR = rectangle(0.53, 0.29, 0.84, 0.475, (RIGHT_EYE,))
MOUTH_BAR = rectangle(0.27, 0.67, 0.73, 0.90, MOUTH)
MASK = Region(
    np.array([
        [0.5, 0.50], [0.60, 0.545], [0.90, 0.62], [0.88, 0.82], [0.72, 1.0], [0.5, 1.06],
        [0.28, 1.0], [0.12, 0.82], [0.10, 0.62], [0.40, 0.545],
    ]),
    (NOSE, *MOUTH),
)  # fmt: skip
BEARD = Region(
    np.array([
        [0.08, 0.52], [0.16, 0.66], [0.30, 0.70], [0.42, 0.675], [0.5, 0.685], [0.58, 0.675], [0.70, 0.70],
        [0.84, 0.66], [0.92, 0.52], [0.92, 0.80], [0.74, 1.03], [0.5, 1.10], [0.26, 1.03], [0.08, 0.80],
    ]),
    MOUTH,
)  # fmt: skip
LIPS = ellipse(0.5, 0.785, 0.17, 0.062, MOUTH)
LENSES = (ellipse(0.3135, 0.39, 0.145, 0.095, (LEFT_EYE,)), ellipse(0.6865, 0.39, 0.145, 0.095, (RIGHT_EYE,)))
GLASSES_FRAME = (
    rectangle(0.45, 0.355, 0.55, 0.385, EYES),
    rectangle(-0.1, 0.345, 0.175, 0.375, (LEFT_EYE,)),
    rectangle(0.825, 0.345, 1.1, 0.375, (RIGHT_EYE,)),
)
LEFT_HALF = rectangle(-2, -2, 0.5, 3, (NOSE, *EYES))
RIGHT_HALF = rectangle(0.5, -2, 3, 3, (NOSE, *EYES))

PART = "part of the face"
PARTS: dict[str, Apply] = {
    "eyes": _regions([EYE_BAR], BLACK),
    "one eye": one_eye,
    "mouth": _regions([MOUTH_BAR], BLACK),
    "nose and mouth (black)": _regions([MASK], BLACK),
    "nose and mouth (mask)": _regions([MASK], CLOTH),
    "beard": beard,
    "dark glasses": _regions([*LENSES, *GLASSES_FRAME], DARK),
    "rimmed glasses": rimmed_glasses,
    "left half": _regions([LEFT_HALF], BLACK),
    "right half": _regions([RIGHT_HALF], BLACK),
}


@dataclass(frozen=True)
class Curve:
    """A cover that grows: what makes one of a strength, the axis, and what a strength without cover is."""

    make: Callable[[float], Apply]
    kind: str
    axis: str
    name: str  # with the strength to be filled in
    none: float = 0.0


CURVES = {
    "scars": Curve(small_erasing_count, "scars", "black boxes of 6 x 2 px", "{:.0f} scars"),
    "boxes": Curve(random_box, "random box", "share of the area covered", "random box {:.0%}"),
    "blur": Curve(blur, "picture quality", "blur (σ, px of 48)", "blur {:g} px"),
    "noise": Curve(noise, "picture quality", "noise (σ, gray levels)", "noise {:g}"),
    "darkness": Curve(darkness, "picture quality", "light lost", "{:.0%} darker"),
    "jpeg": Curve(jpeg, "picture quality", "JPEG quality", "JPEG quality {:.0f}", none=100),
    "resolution": Curve(low_resolution, "picture quality", "face width (px)", "{:.0f} px wide", none=TRAINED_AT),
}


def build_covers(options: RobustnessConfig = ROBUSTNESS) -> list[Cover]:
    """Return every cover, in the order of the report."""
    covers = [Cover(name, apply, PART) for name, apply in PARTS.items()]
    for name, curve in CURVES.items():
        for strength in getattr(options, name):
            covers.append(Cover(curve.name.format(strength), curve.make(strength), curve.kind, name, strength))
    return covers


def apply_cover(cover: Cover, images: np.ndarray, points: np.ndarray, seed: int) -> np.ndarray:
    """Return covered copies of the images; an image's random numbers depend on the seed and its place alone."""
    return np.stack(
        [
            cover.apply(image, landmarks, np.random.default_rng([seed, number]))
            for number, (image, landmarks) in enumerate(zip(images, points, strict=True))
        ]
    )


# ---------------------------------------------------------------- the measurement


def covered_faces(
    models: Mapping[str, Candidate],
    rows: pd.DataFrame,
    images: np.ndarray,
    labels: Sequence[str],
    crops: FaceConfig,
    report: Path,
    options: RobustnessConfig = ROBUSTNESS,
    title: str = "",
) -> Section:
    """Measure how accuracy falls as faces are covered.

    Args:
        models: By name; the others are compared with the first.
        rows: The images' rows: `emotion`, all of them among `labels`; `face_status`, box and landmarks; `subject`.
        images: uint8 (n, size, size, channels), the crops of these rows.
        labels: What the models tell apart, in the order of their probabilities.
        crops: How the crops were made: size and alignment.
        report: Folder for the figures.
        options: Number of images, strengths, resamples, seed.
        title: What was measured on what: the line above each figure.

    Returns:
        The report's part.
    """
    random = np.random.default_rng(options.seed)
    total, count = len(rows), min(options.images, len(rows))
    chosen = np.sort(random.choice(len(rows), count, replace=False))
    rows, images = rows.iloc[chosen], np.asarray(images[chosen])
    faces = faces_of(rows)
    points = points_in_crops(faces, crops)
    truth = np.array([list(labels).index(emotion) for emotion in rows["emotion"]])
    covers = build_covers(options)
    correct = _measure(models, images, points, truth, covers, options.seed)
    clusters = subject_clusters(rows)
    resampled = _resample(correct, clusters, options)
    frame = accuracy_table(correct, resampled, covers, clusters, options.level)
    interval = interval_text(options.level)
    values: dict[str, Any] = {"n": count, "covers": frame.to_dict("records")}
    sentences = [_method(faces, total, clusters, interval), *(_summary(name, frame) for name in models)]
    warnings: list[str] = []
    tables = [Table(_printed(frame, list(models)), f"Accuracy as the face is covered, with {interval}s")]
    first, *others = models
    for other in others:
        comparison = compare(resampled[first], resampled[other], correct[first], correct[other], covers, options.level)
        tables.append(
            Table(
                comparison.set_index("cover"),
                f"Points of accuracy that {first} loses more than {other} (negative: fewer), with {interval}s",
                ("difference of drops", "low", "high"),
            )
        )
        values[f"{first} against {other}"] = comparison.to_dict("records")
        sentence, warning = describe(first, models[first].card, other, models[other].card, comparison)
        sentences.append(sentence)
        warnings += warning
    commonest = float(np.bincount(truth).max() / count)
    figures = [
        _draw_parts(frame, list(models), commonest, (count, title), report / "covered_parts.png", interval),
        _draw_curves(frame, list(models), commonest, (count, title), report / "covered_curves.png", interval),
        _draw_sheet(images, points, covers, options.seed, report / "covers.png"),
    ]
    return Section("covered_faces", "Covered faces", sentences, warnings, tables, figures, values)


def _measure(
    models: Mapping[str, Candidate],
    images: np.ndarray,
    points: np.ndarray,
    truth: np.ndarray,
    covers: list[Cover],
    seed: int,
) -> dict[str, np.ndarray]:
    """Return for each model whether it was right, bool (n, 1 + covers); the first column is without cover."""
    correct = {name: np.empty((len(truth), len(covers) + 1), bool) for name in models}
    with progress_bar() as bar:
        for column, cover in enumerate(bar.track([None, *covers], description="covered faces")):
            shown = images if cover is None else apply_cover(cover, images, points, seed)
            for name, model in models.items():
                probabilities = model.predict(shown)
                if len(probabilities) != len(truth):
                    raise ValueError(f"{name} gives {len(probabilities)} predictions for {len(truth)} images")
                correct[name][:, column] = probabilities.argmax(axis=1) == truth
    return correct


def _resample(
    correct: Mapping[str, np.ndarray], clusters: np.ndarray | None, options: RobustnessConfig
) -> dict[str, np.ndarray]:
    """Return each model's accuracies in the same resamples, (resamples, 1 + covers)."""
    joined = np.concatenate(list(correct.values()), axis=1)
    means = resampled_means(joined, clusters, options.resamples, options.seed)
    return dict(zip(correct, np.split(means, len(correct), axis=1), strict=True))


def accuracy_table(
    correct: Mapping[str, np.ndarray],
    resampled: Mapping[str, np.ndarray],
    covers: list[Cover],
    clusters: np.ndarray | None,
    level: float,
) -> pd.DataFrame:
    """Return accuracy and its drop under each cover, with intervals: one row per model and cover, none first."""
    about = pd.DataFrame(
        {
            "cover": ["none", *(cover.name for cover in covers)],
            "kind": ["", *(cover.kind for cover in covers)],
            "curve": ["", *(cover.curve for cover in covers)],
            "strength": [0.0, *(cover.strength for cover in covers)],
        }
    )
    parts = []
    for name, right in correct.items():
        accuracy, drawn = right.mean(axis=0), resampled[name]
        every = np.ones(len(right))
        own = zip(*percentile_interval(drawn, level), strict=True)
        ends = [
            boundary_interval(hits, every, clusters, level) or pair for hits, pair in zip(right.T, own, strict=True)
        ]
        low, high = np.array(ends).T
        drop_low, drop_high = percentile_interval(drawn[:, :1] - drawn, level)
        figures = {"accuracy": accuracy, "low": low, "high": high}
        figures |= {"drop": accuracy[0] - accuracy, "drop_low": drop_low, "drop_high": drop_high}
        parts.append(pd.concat([about.assign(model=name), pd.DataFrame(figures)], axis=1))
    return pd.concat(parts, ignore_index=True)


def compare(
    first: np.ndarray,
    second: np.ndarray,
    first_right: np.ndarray,
    second_right: np.ndarray,
    covers: list[Cover],
    level: float,
) -> pd.DataFrame:
    """Return how much more the first model loses than the second: per cover, per kind, and over all covers.

    Args:
        first: (resamples, 1 + covers) accuracies in resamples; of the same images as `second`.
        second: The same of the second model.
        first_right: bool (n, 1 + covers).
        second_right: The same of the second model.
        covers: The covers, in that order.
        level: Level of the intervals, 0-1.

    Returns:
        `cover`, `difference of drops`, `low`, `high`: negative where the first model loses less.

    Raises:
        ValueError: the two models did not answer the same images and covers.
    """
    if first.shape != second.shape or first_right.shape != second_right.shape:
        raise ValueError(
            f"paired models need the same images and covers. Received: {first_right.shape}, {second_right.shape}"
        )
    kinds = np.array([cover.kind for cover in covers])
    groups = {cover.name: np.array([number]) for number, cover in enumerate(covers)}
    groups |= {f"mean: {kind}": np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds)}
    groups["mean: all covers"] = np.arange(len(covers))
    exact = _drops(first_right.mean(axis=0)[None]) - _drops(second_right.mean(axis=0)[None])
    drawn = _drops(first) - _drops(second)
    rows = []
    for name, members in groups.items():
        low, high = percentile_interval(drawn[:, members].mean(axis=1), level)
        rows.append((name, float(exact[0, members].mean()), float(low), float(high)))
    return pd.DataFrame(rows, columns=["cover", "difference of drops", "low", "high"])


def _drops(accuracies: np.ndarray) -> np.ndarray:
    return accuracies[:, :1] - accuracies[:, 1:]


# ---------------------------------------------------------------- words


def _method(faces: list[Face | None], total: int, clusters: np.ndarray | None, interval: str) -> str:
    by_landmarks = sum(face is not None and face.landmarks is not None for face in faces)
    sample = f", a seeded sample of {total}" if len(faces) < total else ""
    return (
        f"{len(faces)} images{sample}; the parts of the face were found by its landmarks in {by_landmarks} of them and "
        f"by the template in {len(faces) - by_landmarks}. The crop is covered, not the picture: whether the face would "
        f"still be found is not measured here. Each {interval} is by bootstrap over "
        f"{'images' if clusters is None else 'subjects'}, or Wilson's for an accuracy of 0 or 100 %."
    )


def _summary(name: str, frame: pd.DataFrame) -> str:
    own = frame.loc[frame["model"] == name]
    plain, parts = own.iloc[0], own.loc[own["kind"] == PART].sort_values("drop", ascending=False)

    def cost(row: pd.Series) -> str:  # without an interval, which would not count in that the cover was chosen by it
        return f"{row['cover']}, {100 * row['drop']:.1f} points"

    return (
        f"{name}: {Estimate(plain['accuracy'], plain['low'], plain['high'])} % right uncovered. Of the parts of the "
        f"face, those whose cover costs most and least: {cost(parts.iloc[0])}; {cost(parts.iloc[-1])}."
    )


TWINS = {"scars": "small black scars", "cover": "a larger black box"}  # settings of the augmentation: what they add


def boxes_of(card: Mapping[str, Any], setting: str) -> int | None:
    """Return a setting of `TWINS` by which a model's training images were covered; None where its card has none."""
    try:
        return int(card["hyperparameters"]["augmentation"][setting])
    except (KeyError, TypeError, ValueError):
        return None


def describe(
    first: str, first_card: Mapping[str, Any], second: str, second_card: Mapping[str, Any], comparison: pd.DataFrame
) -> tuple[str, list[str]]:
    """Return what `compare` of two models says, by their names and cards, and warnings where they are no twins."""
    drops = {name: Estimate(*figures) for name, *figures in comparison.itertuples(index=False)}
    with_boxes = {setting: (boxes_of(first_card, setting), boxes_of(second_card, setting)) for setting in TWINS}
    apart = [s for s, (own, other) in with_boxes.items() if None not in (own, other) and bool(own) != bool(other)]
    if not apart:
        all_covers = drops["mean: all covers"]
        verdict = _verdict(all_covers, f"{first} is the more robust one", f"{second} is the more robust one")
        return (
            f"Points lost over all covers by {first} minus those by {second}: {all_covers}, {verdict}. Whether "
            "scars in training help cannot be told from these two: that takes a model with them and its twin without.",
            [],
        )
    setting = apart[0]
    covered, plain = (first, second) if with_boxes[setting][0] else (second, first)
    found = []
    for kind in ("scars", PART, "random box", "picture quality", "all covers"):
        drop = drops[f"mean: {kind}"] if covered == first else -drops[f"mean: {kind}"]
        found.append(f"{kind}: {-drop} points, {_verdict(drop, 'it helps', 'it harms')}")
    return (
        f"Does the first project's idea work, to train with {TWINS[setting]} so that no single feature decides? "
        f"Accuracy kept by {covered} (with) beyond what {plain} (without) keeps, on average over the covers: "
        f"{'; '.join(found)}.",
        _differences(first_card, second_card, setting),
    )


def _verdict(drop: Estimate, better: str, worse: str) -> str:
    if drop.high < 0:
        return better
    if drop.low > 0:
        return worse
    return "not shown either way: the interval includes no difference"


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], setting: str) -> list[str]:
    """Return a warning where two models differ in more than one of `TWINS`."""
    own, others = _settings(first, setting), _settings(second, setting)
    names = [name for name in sorted(own.keys() | others.keys()) if own.get(name) != others.get(name)]
    if not names:
        return []
    return [
        f"the two models also differ in {', '.join(names)}: what separates them need not be the {setting}; train a "
        "twin that differs in nothing else"
    ]


def _settings(card: Mapping[str, Any], left_out: str) -> dict[str, Any]:
    own = dict(card.get("hyperparameters", {}))
    of_boxes = left_out.removesuffix("s")  # scars, scar_length, scar_width
    augmentation = {name: value for name, value in own.pop("augmentation", {}).items() if not name.startswith(of_boxes)}
    facts = {name: card.get(name) for name in ("dataset", "split_hash")}
    return own | augmentation | facts


def _printed(frame: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Return the table as one reads it, the models side by side; drops in percentage points."""
    printed = pd.DataFrame(index=pd.Index(frame["cover"].unique(), name="cover"))
    for name in models:
        own = frame.loc[frame["model"] == name].set_index("cover")
        for what, heading, low, high in (
            ("accuracy", "accuracy, %", "low", "high"),
            ("drop", "points lost", "drop_low", "drop_high"),
        ):
            estimates = [str(Estimate(*figures)) for figures in own[[what, low, high]].to_numpy().tolist()]
            printed[f"{name}: {heading}"] = pd.Series(estimates, index=own.index)
    printed.loc["none", [f"{name}: points lost" for name in models]] = "–"
    return printed


# ---------------------------------------------------------------- figures


def _write(figure: matplotlib.figure.Figure, file: Path) -> None:
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)


def _errors(frame: pd.DataFrame) -> np.ndarray:
    return np.stack([frame["accuracy"] - frame["low"], frame["high"] - frame["accuracy"]]).clip(0)


def _draw_parts(
    frame: pd.DataFrame, models: list[str], commonest: float, about: tuple[int, str], file: Path, interval: str
) -> Figure:
    shown = frame.loc[(frame["kind"] == PART) | (frame["cover"] == "none")]
    names = list(dict.fromkeys(shown["cover"]))
    figure = matplotlib.figure.Figure(figsize=(7.5, 0.42 * len(names) + 1.4), layout="constrained")
    figure.suptitle(about[1], fontsize=10, x=0.01, ha="left")
    axes = figure.subplots()
    for number, name in enumerate(models):
        own = shown.loc[shown["model"] == name]
        places = np.arange(len(own)) + (number - (len(models) - 1) / 2) * 0.25
        look = {"fmt": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)], "capsize": 2}
        axes.errorbar(own["accuracy"], places, xerr=_errors(own), label=name, **look)
    axes.axvline(commonest, color="0.5", linestyle=":", label="always the commonest emotion")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy, {interval}", xlim=(0, 1))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    _write(figure, file)
    write_table(shown, file.with_suffix(".csv"))
    worst = shown.sort_values("accuracy").iloc[0]
    return Figure(
        file,
        f"Accuracy with parts of the face covered ({about[0]:,} images, {interval}s).",
        f"A dot with an interval for each covered part; lowest is {worst['cover']} with {worst['accuracy']:.0%}.",
    )


def _draw_curves(
    frame: pd.DataFrame, models: list[str], commonest: float, about: tuple[int, str], file: Path, interval: str
) -> Figure:
    figure = matplotlib.figure.Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle(about[1], fontsize=10, x=0.01, ha="left")
    panels = cast(np.ndarray, figure.subplots(2, 4, sharey=True)).ravel()
    for axes, (key, curve) in zip(panels, CURVES.items(), strict=False):
        _draw_curve(axes, frame, key, curve, models)
        axes.axhline(commonest, color="0.5", linestyle=":")
    for axes in panels[:: len(panels) // 2]:
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylim(0, 1)
    panels[-1].axis("off")
    handles, names = panels[0].get_legend_handles_labels()
    dotted = panels[-1].plot([], [], color="0.5", linestyle=":")[0]
    panels[-1].legend([*handles, dotted], [*names, "always the commonest emotion"], loc="center", fontsize="small")
    _write(figure, file)
    write_table(frame.loc[(frame["curve"] != "") | (frame["cover"] == "none")], file.with_suffix(".csv"))
    return Figure(
        file,
        f"Accuracy as covers grow and pictures get worse ({about[0]:,} images; the bands are {interval}s).",
        "Seven curves, one for each kind of cover; each starts at the accuracy without cover and mostly falls.",
    )


def _draw_curve(axes: Axes, frame: pd.DataFrame, key: str, curve: Curve, models: list[str]) -> None:
    for number, name in enumerate(models):
        own = frame.loc[(frame["model"] == name) & ((frame["curve"] == key) | (frame["cover"] == "none"))]
        own = own.assign(strength=own["strength"].where(own["cover"] != "none", curve.none)).sort_values("strength")
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(own["strength"], own["accuracy"], color=colour, marker=MARKERS[number % len(MARKERS)], label=name)
        axes.fill_between(own["strength"], own["low"], own["high"], color=colour, alpha=0.18, linewidth=0)
    if curve.none:
        axes.invert_xaxis()  # every curve gets worse to the right
    if "share" in curve.axis or "lost" in curve.axis:
        axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(curve.axis)
    axes.grid(alpha=0.3)


def _draw_sheet(images: np.ndarray, points: np.ndarray, covers: list[Cover], seed: int, file: Path) -> Figure:
    """Draw two faces under every cover."""
    few = slice(0, 2)
    columns = 7
    rows = -(-(len(covers) + 1) // columns)
    figure = matplotlib.figure.Figure(figsize=(1.75 * columns, 1.2 * rows), layout="constrained")
    panels = cast(np.ndarray, figure.subplots(rows, columns)).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, cover in zip(panels, [None, *covers], strict=False):
        shown = images[few] if cover is None else apply_cover(cover, images[few], points[few], seed)
        axes.imshow(np.repeat(np.concatenate(list(shown), axis=1), 3 // images.shape[3], axis=2))
        axes.set_title("none" if cover is None else cover.name, fontsize=8)
    _write(figure, file)
    return Figure(
        file,
        "Two of the images under every cover.",
        f"A sheet of {len(covers) + 1} small pictures: two faces as they are, then under each cover.",
        shows_faces=True,
    )
