"""The embedded sample data set: a small CK+-shaped tree made from one portrait, without a download.

The portrait shows Rear Admiral Grace Hopper (US Navy, public domain; the file is matplotlib's copy). "Subjects" differ
in mirror, light, tint, proportions, size, tilt and background. Their sequences run from neutral to the peak of an
expression, which is drawn by warping mouth, brows and eyelids. The sample lets every step run. Scores on it are
meaningless.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from common.emotions import CKPLUS_CODES
from common.files import named_errors
from common.images import read_image

PORTRAIT = Path(__file__).with_name("portrait.jpg")
# The portrait's five landmarks in pixels, in the order of `tables.LANDMARKS`, as `FaceDetector` finds them. They are
# constants, so that the sample needs no network.
PORTRAIT_LANDMARKS = np.array([[219.9, 191.7], [307.3, 186.4], [265.2, 237.4], [230.5, 278.2], [306.3, 273.4]])
# The person's outline in the portrait, in pixels; the background outside is replaced.
OUTLINE = np.array(
    [
        (155, 95), (175, 88), (180, 62), (215, 35), (265, 22), (310, 30), (345, 60), (353, 88), (370, 95), (371, 150),
        (377, 190), (372, 230), (360, 268), (350, 300), (332, 318), (400, 352), (470, 380), (495, 405), (512, 440),
        (512, 600), (20, 600), (30, 480), (45, 400), (70, 375), (140, 350), (198, 325), (176, 285), (162, 250),
        (153, 210), (150, 180), (148, 130),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class SampleConfig:
    """Size and content of the sample data set.

    Attributes:
        subjects: "People": the portrait under different mirror, light, scale and background.
        frames: Frames of a sequence, from neutral to the peak.
        unlabelled: Sequences without a label, as CK+ has 266 of 593.
        width, height: Of each picture, in pixels.
        seed: The same seed gives the same files.
    """

    subjects: int = 8
    frames: int = 6
    unlabelled: int = 8
    width: int = 320
    height: int = 240
    seed: int = 7


SAMPLE = SampleConfig()

MOUTH = np.array([20, 14, 50, 255], np.float32)  # inside of an open mouth: blue, green, red, opacity

# A push moves the skin around a point: (x, y, dx, dy, standard deviation), in distances between the eyes. The origin
# is between the eyes, x points to the viewer's right, y down. `_sides` mirrors a push to both halves of the face.
Push = tuple[float, float, float, float, float]


def _sides(x: float, y: float, dx: float, dy: float, reach: float) -> list[Push]:
    return [(x, y, dx, dy, reach), (-x, y, -dx, dy, reach)]


_WIDE_EYES = _sides(0.5, -0.12, 0, -0.05, 0.12) + _sides(0.5, 0.13, 0, 0.03, 0.12)
_NARROW_EYES = _sides(0.5, -0.12, 0, 0.05, 0.12) + _sides(0.5, 0.13, 0, -0.05, 0.12)


@dataclass(frozen=True)
class Expression:
    """An expression at its peak: the pushes of the skin, and the opening of the lips in distances between the eyes."""

    pushes: tuple[Push, ...] = ()
    opening: float = 0.0


EXPRESSIONS = {
    "neutral": Expression(),
    "anger": Expression((
        *_sides(0.18, -0.32, -0.07, 0.16, 0.15), *_sides(0.68, -0.3, 0, -0.1, 0.15), *_NARROW_EYES,
        (0, 0.95, 0, 0.06, 0.15), (0, 1.12, 0, -0.05, 0.15), *_sides(0.45, 1.0, -0.05, 0.06, 0.15),
    )),
    "disgust": Expression((
        *_sides(0.18, 0.5, 0.02, -0.13, 0.16), *_sides(0.2, 0.92, 0.02, -0.14, 0.15), *_sides(0.48, 1.05, 0, 0.1, 0.13),
        *_sides(0.3, -0.3, -0.03, 0.09, 0.18), *_sides(0.5, 0.18, 0, -0.07, 0.13), (0, 1.15, 0, 0.06, 0.15),
    ), opening=0.035),
    "fear": Expression((
        *_sides(0.18, -0.32, -0.06, -0.16, 0.16), *_sides(0.65, -0.3, 0, 0.04, 0.15), *_WIDE_EYES,
        *_sides(0.45, 1.02, 0.15, 0.07, 0.15), (0, 0.95, 0, -0.03, 0.2), (0, 1.15, 0, 0.08, 0.2),
    ), opening=0.05),
    "happiness": Expression((
        *_sides(0.45, 1.0, 0.14, -0.2, 0.19), *_sides(0.55, 0.6, 0.04, -0.08, 0.2), *_sides(0.5, 0.18, 0, -0.06, 0.12),
        (0, 0.95, 0, -0.01, 0.15), (0, 1.13, 0, 0.08, 0.18),
    ), opening=0.045),
    "sadness": Expression((
        *_sides(0.45, 1.0, -0.01, 0.18, 0.15), *_sides(0.16, -0.32, -0.03, -0.15, 0.14),
        *_sides(0.68, -0.28, 0, 0.12, 0.16), (0, 1.0, 0, -0.06, 0.16), *_sides(0.5, -0.1, 0, 0.05, 0.12),
    )),
    "surprise": Expression((
        *_sides(0.2, -0.36, 0, -0.16, 0.16), *_sides(0.6, -0.36, 0, -0.16, 0.16), *_WIDE_EYES,
        *_sides(0.45, 1.02, -0.12, 0.03, 0.15), (0, 0.95, 0, -0.06, 0.17), (0, 1.2, 0, 0.26, 0.28),
    ), opening=0.14),
}  # fmt: skip

README = """A sample data set made from one public-domain portrait (Rear Admiral Grace Hopper, US Navy).

Its tree has the shape of CK+, but it is not CK+: all "subjects" are the same person under other light, size, tilt and
background, and the expressions are drawn by warping the picture. It lets the programs run without a download. Scores
on it are meaningless.

Made with: {}
"""


def write_raw(folder: Path, sample: SampleConfig = SAMPLE) -> None:
    """Write the sample as a CK+-shaped tree; the same options give the same files.

    Every subject shows every emotion once. `sample.unlabelled` further sequences have no label: half of them have an
    empty label folder, half have none, as in CK+.

    Args:
        folder: The root to write, with `cohn-kanade-images/`, `Emotion/` and `README.txt`; absent or empty.
        sample: Size and content of the sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with named_errors(folder), ThreadPoolExecutor() as pool:  # OpenCV draws outside Python's lock
        for _ in pool.map(lambda number: _write_subject(folder, number, sample), range(1, sample.subjects + 1)):
            pass  # raises a subject's error
    (folder / "README.txt").write_text(README.format(sample), encoding="utf-8")


def _write_subject(root: Path, subject: int, sample: SampleConfig) -> None:
    rng = np.random.default_rng([sample.seed, subject])
    look = _draw_look(rng, sample)
    for number, (emotion, label) in enumerate(_plan(subject, rng, sample), start=1):
        place, name = f"S{subject:03d}/{number:03d}", f"S{subject:03d}_{number:03d}"
        images, labels = root / "cohn-kanade-images" / place, root / "Emotion" / place
        images.mkdir(parents=True)
        for frame, image_bgr in enumerate(_draw_sequence(look, emotion, rng, sample), start=1):
            png = cv2.imencode(".png", image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            (images / f"{name}_{frame:08d}.png").write_bytes(png.tobytes())
        if label != "none":
            labels.mkdir(parents=True)
        if label == "emotion":
            text = f"   {CKPLUS_CODES.index(emotion):.7e}\n"
            (labels / f"{name}_{sample.frames:08d}_emotion.txt").write_text(text, encoding="ascii")


def _plan(subject: int, rng: np.random.Generator, sample: SampleConfig) -> list[tuple[str, str]]:
    """Return a subject's sequences in random order: the emotion, and `emotion`, `empty` or `none` for its label."""
    sequences = [(emotion, "emotion") for emotion in EXPRESSIONS]
    for extra in range(subject - 1, sample.unlabelled, sample.subjects):
        sequences.append((list(EXPRESSIONS)[rng.integers(len(EXPRESSIONS))], "empty" if extra % 2 else "none"))
    return [sequences[index] for index in rng.permutation(len(sequences))]


@dataclass(frozen=True)
class _Look:
    """The appearance of a subject.

    Attributes:
        portrait: The person, uint8 (h, w, 4) BGR and opacity, `scale` times the size of the original.
        scale: Of the portrait.
        background: float32 (height, width, 3) BGR.
        light: float32 (height, width, 3), factors.
        size: Of the person in the picture, as a factor of the portrait's.
        stretch: Width over height of the person, 1 is as in the portrait.
        tilt: Degrees.
        mirrored: Left and right are exchanged.
        is_gray: The images are gray, as most of CK+.
    """

    portrait: np.ndarray
    scale: float
    background: np.ndarray
    light: np.ndarray
    size: float
    stretch: float
    tilt: float
    mirrored: bool
    is_gray: bool


def _draw_look(rng: np.random.Generator, sample: SampleConfig) -> _Look:
    scale = sample.height / 400  # the face then fills 0.6 of the picture's height
    places = [(0.5, 0.5), (-0.5, 0.5), (0.45, 1.3), (-0.45, 1.3), (0.5, -0.3), (-0.5, -0.3)]
    features = [(x, y, *rng.normal(0, 0.035, 2), 0.3) for x, y in places]  # cheeks, jaw, brows
    portrait = _portrait(scale)
    across = np.linspace(-1, 1, sample.width)[None, :, None] * rng.uniform(-0.35, 0.35)
    down = np.linspace(-1, 1, sample.height)[:, None, None] * rng.uniform(-0.2, 0.2)
    tint = rng.uniform(0.88, 1.12, 3)
    clouds = rng.uniform(-40, 40, (sample.height // 40 + 1, sample.width // 40 + 1))
    clouds = cv2.resize(clouds, (sample.width, sample.height), interpolation=cv2.INTER_CUBIC)[..., None]
    return _Look(
        portrait=_warp(portrait, _field(tuple(features), scale, portrait.shape[:2]), 1.0),
        scale=scale,
        background=np.clip(rng.uniform(60, 200, 3) + clouds, 0, 255).astype(np.float32),
        light=((1 + across + down) * tint * rng.uniform(0.7, 1.15)).astype(np.float32),
        size=rng.uniform(0.75, 1.05),
        stretch=rng.uniform(0.93, 1.07),
        tilt=rng.uniform(-9, 9),
        mirrored=bool(rng.integers(2)),
        is_gray=bool(rng.integers(2)),
    )


@lru_cache(maxsize=1)
def _portrait(scale: float) -> np.ndarray:
    """Return the portrait without its background, uint8 (h, w, 4) BGR and opacity."""
    image_bgr = read_image(PORTRAIT)
    assert image_bgr is not None
    opacity = np.zeros(image_bgr.shape[:2], np.uint8)
    cv2.fillPoly(opacity, [OUTLINE], 255)
    opacity = cv2.GaussianBlur(
        cv2.erode(opacity, np.ones((5, 5), np.uint8)), (0, 0), 2, borderType=cv2.BORDER_REPLICATE
    )
    return cv2.resize(np.dstack([image_bgr, opacity]), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _face_frame(scale: float) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the point between the portrait's eyes, their distance, and the unit vectors right and down of the face."""
    left_eye, right_eye = PORTRAIT_LANDMARKS[:2] * scale
    distance = float(np.hypot(*(right_eye - left_eye)))
    right = (right_eye - left_eye) / distance
    return (left_eye + right_eye) / 2, distance, np.array([right, [-right[1], right[0]]])


@lru_cache(maxsize=32)  # every subject shows the same expressions
def _field(pushes: tuple[Push, ...], scale: float, shape: tuple[int, int]) -> np.ndarray:
    """Return the displacement of every pixel of the portrait, float32 (h, w, 2): a sum of Gaussian bumps."""
    origin, distance, axes = _face_frame(scale)
    y, x = np.mgrid[: shape[0], : shape[1]]
    across, down = np.tensordot(axes / distance, [x - origin[0], y - origin[1]], axes=1)
    field = np.zeros((*shape, 2), np.float32)
    for x, y, dx, dy, reach in pushes:
        bump = np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * reach**2))
        field += bump[..., None] * ((dx, dy) @ axes * distance)
    return field


def _warp(image: np.ndarray, field: np.ndarray, amount: float) -> np.ndarray:
    """Return the image, its pixels moved by `amount` of the field (backward warping, accurate for smooth fields)."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    return cv2.remap(
        image, x - amount * field[..., 0], y - amount * field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _open_mouth(portrait: np.ndarray, opening: float, scale: float) -> np.ndarray:
    """Return the portrait with a dark mouth, `opening` times the eye distance above and below the line of the lips."""
    origin, distance, axes = _face_frame(scale)
    centre = origin + (0, distance) @ axes
    angle = np.degrees(np.arctan2(axes[0, 1], axes[0, 0]))
    mask = np.zeros(portrait.shape[:2], np.uint8)
    cv2.ellipse(mask, (tuple(centre), (0.6 * distance, 2 * opening * distance), angle), 255, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.025 * distance)[..., None] / np.float32(255)
    return (portrait + (MOUTH - portrait) * mask).astype(np.uint8)


def _draw_sequence(look: _Look, emotion: str, rng: np.random.Generator, sample: SampleConfig) -> Iterator[np.ndarray]:
    """Draw the frames from neutral to the peak, uint8 (height, width, 3) BGR or (height, width) gray."""
    expression = EXPRESSIONS[emotion]
    field = _field(expression.pushes, look.scale, look.portrait.shape[:2])
    peak = rng.uniform(0.85, 1.15)
    pose = rng.normal(0, (1.5, 0.02, 0.02))  # degrees, shares of the picture's height
    drift = rng.normal(0, (1.5, 0.015, 0.015))  # of the head, over the sequence
    for time in np.linspace(0, 1, sample.frames):
        amount = float(peak * (3 * time**2 - 2 * time**3))
        portrait = look.portrait
        if expression.opening * amount > 0:
            portrait = _open_mouth(portrait, expression.opening * amount, look.scale)
        yield _place(_warp(portrait, field, amount), look, pose + time * drift, sample)


def _place(portrait: np.ndarray, look: _Look, pose: np.ndarray, sample: SampleConfig) -> np.ndarray:
    """Draw the person in front of the background, in the subject's light."""
    tilt, right, down = pose
    angle = np.radians(look.tilt + tilt)
    sine, cosine = look.size * np.sin(angle), look.size * np.cos(angle)
    matrix = np.array([[cosine * look.stretch, -sine], [sine * look.stretch, cosine]])
    if look.mirrored:
        matrix[0] *= -1
    centre = np.array([sample.width / 2, sample.height / 2]) + np.array([right, down]) * sample.height
    shift = centre - matrix @ (PORTRAIT_LANDMARKS[2] * look.scale)
    person = cv2.warpAffine(
        portrait, np.column_stack([matrix, shift]), (sample.width, sample.height), borderMode=cv2.BORDER_REPLICATE
    )
    opacity = person[..., 3:] / np.float32(255)
    image = (person[..., :3] * opacity + look.background * (1 - opacity)) * look.light
    image_bgr = np.clip(image, 0, 255).astype(np.uint8)
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY) if look.is_gray else image_bgr
