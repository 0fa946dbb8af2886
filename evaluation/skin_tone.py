"""Skin tone estimated from colour pictures, for want of a column that tells whom a picture shows.

The individual typology angle, ITA = arctan((L* - 50) / b*) in degrees, over two cheek patches: A. Chardon, I. Cretois,
C. Hourseau, "Skin colour typology and suntanning pathways", International Journal of Cosmetic Science 13 (1991)
191-208; its six bins as in S. Del Bino, F. Bernerd, "Variations in skin colour and the biological consequences of
ultraviolet radiation exposure", British Journal of Dermatology 169 Suppl. 3 (2013) 33-40. Both measured skin with
instruments under known light: from a photograph it is an estimate that light, exposure, make-up and camera disturb.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from configuration import GROUPS, Faces, Groups
from evaluation.face_regions import LEFT_EYE, MOUTH_LEFT, MOUTH_RIGHT, NOSE, RIGHT_EYE, coverage, ellipse, faces_of
from evaluation.groups import audit_groups
from evaluation.sections import Section
from preprocessing.command_line import progress_bar
from preprocessing.errors import InputError
from preprocessing.faces import Face, landmarks_in_crop, network_input, read_image_rgb

COLUMN = "skin tone (estimated)"
# Least angle of each bin, degrees.
BINS = {"very light": 55.0, "light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0, "dark": -90.0}
# Between eye, nose and corner of the mouth; fractions of the template's side.
CHEEKS = (
    ellipse(0.27, 0.60, 0.065, 0.055, (LEFT_EYE, NOSE, MOUTH_LEFT)),
    ellipse(0.73, 0.60, 0.065, 0.055, (RIGHT_EYE, NOSE, MOUTH_RIGHT)),
)
SIDE = 96  # pixels: crop in which the patches are read
LIT = (5.0, 97.0)  # L*: darker or brighter pixels have lost their colour
FEW = 60  # pictures: looked at first, to decline soon where they are gray
GRAY = 2  # levels: a picture whose channels differ by no more is gray


def typology_angle(lightness: float, blue_yellow: float) -> float:
    """Return the individual typology angle of L* and b* (CIELAB, D65), degrees; NaN where b* is not yellow.

    Skin is yellower than gray under white light. Where b* is zero or below, the light is too blue for the angle to mean
    anything.
    """
    if not blue_yellow > 0:
        return float("nan")
    return float(np.degrees(np.arctan((lightness - 50) / blue_yellow)))


def tone(angle: float) -> str:
    """Return the bin of an angle in degrees; empty for NaN."""
    return next((name for name, least in BINS.items() if angle > least), "")


def estimate_angle(image_rgb: np.ndarray, face: Face | None) -> float | None:
    """Return the typology angle of a face's cheeks, degrees; NaN where no skin colour can be read; None: gray picture.

    Args:
        image_rgb: uint8 (h, w, 3): the picture.
        face: Where the face is; None: the picture is one.
    """
    options = Faces(size=SIDE, channels=3)
    crop_rgb = network_input(image_rgb, face, options)
    if np.ptp(crop_rgb.astype(int), axis=2).max() <= GRAY:
        return None
    patches = coverage(CHEEKS, landmarks_in_crop(face, options), SIDE) > 0.5
    lab = cv2.cvtColor(crop_rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[patches]
    lab = lab[(lab[:, 0] > LIT[0]) & (lab[:, 0] < LIT[1])]
    if len(lab) < patches.sum() / 2 or not len(lab):
        return float("nan")
    lightness, _, blue_yellow = np.median(lab, axis=0)
    return typology_angle(float(lightness), float(blue_yellow))


def skin_tones(
    rows: pd.DataFrame,
    prediction: Sequence[str],
    labels: Sequence[str],
    folder: Path,
    report: Path,
    options: Groups = GROUPS,
    title: str = "",
) -> Section:
    """Compare a model's scores between estimated skin tones, or decline and say why.

    Args:
        rows: The evaluated rows, with `path`, `emotion`, `face_status`, box and landmarks.
        prediction: The model's answer to each of them.
        labels: What it tells apart.
        folder: The data set's folder, that `path` is relative to.
        report: Folder for the figures.
        options: Number of images, least group, resamples, seed.
        title: What was measured on what: the line above each figure.
    """
    random = np.random.default_rng(options.seed)
    order = random.permutation(len(rows))[: options.skin_tones]
    rows, answers = rows.iloc[order], [str(prediction[int(number)]) for number in order]
    angles: list[float | None] = []
    with progress_bar() as bar:
        task = bar.add_task("skin tones", total=len(rows))
        for angle in _angles(rows, folder):
            angles.append(angle)
            bar.advance(task)
            if len(angles) == min(FEW, len(rows)) and 2 * angles.count(None) > len(angles):
                return _declined(angles.count(None), len(angles))
    known = [float("nan") if angle is None else angle for angle in angles]
    tones = pd.Series([tone(angle) for angle in known], index=rows.index)
    unread = int((tones == "").sum())
    about = (
        "No column tells whom a picture shows, so skin tone was ESTIMATED from the colour of the cheeks in "
        f"{len(rows)} images ({unread} gave none): the individual typology angle (Chardon et al. 1991) in the bins "
        "of Del Bino and Bernerd (2013). Light, exposure, make-up and camera disturb it; it is no measurement of a "
        "person, and a dark picture of a light skin counts as dark. A difference here may be one of light. Labels of "
        "your own are better: join them with --group-table FILE --groups COLUMN."
    )
    warning = "skin tones are estimates from pictures, which light disturbs"
    sizes = tones[tones != ""].value_counts()
    if len(sizes) < 2:
        sizes_text = ", ".join(f"{name} ({size})" for name, size in sizes.items()) or "none"
        not_compared = f"groups not compared: the only skin tone found is {sizes_text}"
        return _section(
            [about, f"Nothing was compared: the only tone found is {sizes_text}."], [warning, not_compared], angles
        )
    section = audit_groups(rows.assign(**{COLUMN: tones}), answers, labels, [COLUMN], report, options, title)
    return replace(section, sentences=[about, *section.sentences], warnings=[warning, *section.warnings])


def _angles(rows: pd.DataFrame, folder: Path) -> Iterator[float | None]:
    def read(place: tuple[str, Face | None]) -> float | None:
        path, face = place
        try:
            return estimate_angle(read_image_rgb(folder / path), face)
        except InputError:  # the crop was made, the picture is gone: nothing can be read from it
            return float("nan")

    step = 4 * FEW  # pictures read ahead at most
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), step):
            part = rows.iloc[start : start + step]
            yield from pool.map(read, zip(part["path"], faces_of(part), strict=True))


def _declined(gray: int, looked_at: int) -> Section:
    return _section(
        [
            "For whom the model fails was NOT measured: no column tells whom a picture shows, and skin tone cannot be "
            f"estimated, because the pictures are gray ({gray} of the {looked_at} looked at). Gray levels mix skin and "
            "light, and nothing in them parts the two. Join labels that you have with --group-table FILE (columns path "
            "and, say, gender) and --groups gender."
        ],
        ["groups not compared: no column tells who is in the pictures, and they are gray (--groups, --group-table)"],
        [],
    )


def _section(sentences: list[str], warnings: list[str], angles: list[float | None]) -> Section:
    return Section("groups", "For whom", sentences, warnings, values={"measured": False, "looked_at": len(angles)})
