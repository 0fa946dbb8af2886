"""Every path and every knob of every stage, in one place.

Each step's command-line options default to the values below, so a change here changes the program, and a typed
option changes one run. Importing this file costs nothing: no heavy import, no file is touched.
"""

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Paths:
    """Where things lie. Each data set, and what is trained or reported on it, has a folder of its own name."""

    data: Path = ROOT / "data"  # tables and images: data/NAME/{inventory,faces,split}.csv
    models: Path = ROOT / "models"  # networks: models/NAME/*.keras; the released ones at the top
    reports: Path = ROOT / "reports"  # evaluations: reports/NAME/MODEL/
    converted: Path = ROOT / "models" / "converted"  # networks converted for LiteRT, remade when they are missing
    pretrained: Path = ROOT / "models" / "pretrained.keras"  # the released network, which the webcam uses


@dataclass(frozen=True)
class Sample:
    """The embedded sample data set, made from one public-domain portrait. No score on it means anything."""

    name: str = "sample"
    subjects: int = 8  # "people": the portrait under different mirror, light, scale and background
    frames: int = 6  # frames of a sequence, from neutral to the peak
    unlabelled: int = 8  # sequences left without a label, as CK+ leaves 266 of 593
    width: int = 320  # pixels
    height: int = 240  # pixels
    seed: int = 7


@dataclass(frozen=True)
class Inventory:
    """Step 1."""

    neutral_first: bool = False  # CK+: also take each labelled sequence's first frame, as neutral
    frames: str = "peak"  # CK+: `peak` (the last frame), `last:K` (the last K), or `all`


@dataclass(frozen=True)
class Faces:
    """The detector, and how a face becomes a network's input. Step 2 and the webcam share these values."""

    size: int = 48  # pixels: side of the square crop
    channels: int = 1  # 1: gray, 3: RGB
    align: str = "landmarks"  # `landmarks`: similarity transform of five points to the template; `box`: plain square
    smallest_face: int = 40  # pixels: smaller faces are not looked for
    largest_side: int = 1280  # pixels: a larger picture is searched in a reduced copy; crops come from the full one
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)  # least confidence of mtcnn's three networks, 0-1
    scale_factor: float = 0.709  # ratio between neighbouring sizes of mtcnn's image pyramid
    detect: bool | None = None  # True: look for faces; False: take pictures whole; None: only those up to `crop_side`
    crop_side: int = 100  # pixels: a picture with no side longer than this is a face crop already, as in FER2013
    enlarge: int = 4  # times: pictures that are face crops already are enlarged before mtcnn sees them (--detect)


@dataclass(frozen=True)
class Split:
    """Step 3."""

    strategy: str = (
        "auto"  # `official`, `subject`, `random`, `folds`, or `auto`: the first of these that the data allows
    )
    copies: str = "keep"  # official splits only: `drop` leaves out training images with a copy in dev or test
    train: float = 0.8  # share of the images
    dev: float = 0.1  # share of the images; the rest is the test split
    folds: int = 10  # number of folds where folds are asked for
    seed: int = 7


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image. All of them run inside the training graph and are not saved."""

    flip: bool = True  # mirror left and right, half of the time
    rotation: float = 11.0  # degrees, at most, either way
    zoom: float = 0.15  # share of the size, at most, smaller or larger
    shift: float = 4.0  # pixels, at most, in each direction
    contrast: float = 0.2  # share of the contrast, at most, more or less
    brightness: float = 20.0  # gray levels of 255, at most, more or less
    scars: int = 2  # black boxes per image, at most; possibly none
    scar_length: int = 6  # pixels: longer side of a scar, at most
    scar_width: int = 2  # pixels: shorter side of a scar, at most


NO_AUGMENTATION = Augmentation(False, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
SCARS_ONLY = Augmentation(False, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Fitting:
    """One training run: the network, its optimiser, and when it stops."""

    network: str = "vgg"  # a name of `training.models.NETWORKS`
    epochs: int = 36  # passes over the training split
    batch_size: int = 128  # images
    optimizer: str = "adamw"  # `adamw`, `adam` or `sgd`
    learning_rate: float = 2e-3  # at the start
    schedule: str = "cosine"  # `cosine` (down to zero at the last epoch) or `constant`
    weight_decay: float = 1e-2  # adamw only
    momentum: float = 0.0  # sgd only
    label_smoothing: float = 0.1  # 0-1
    patience: int = 0  # epochs without a better dev accuracy before the run stops; 0: never
    precision: str = "auto"  # `float32`, `mixed_bfloat16`, or `auto`: the faster one here, measured at the start
    seed: int = 7
    augmentation: Augmentation = field(default_factory=Augmentation)


# The networks of the two student projects, as they trained them.
BASELINES = {
    "cifar10": Fitting(
        network="cifar10",
        epochs=30,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        label_smoothing=0.0,
        patience=5,
        precision="float32",
        augmentation=NO_AUGMENTATION,
    ),
    "project1": Fitting(
        network="project1",
        epochs=40,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.05,
        schedule="constant",
        label_smoothing=0.0,
        patience=8,
        precision="float32",
        augmentation=SCARS_ONLY,
    ),
}


@dataclass(frozen=True)
class Webcam:
    """The realtime program."""

    source: str = "0"  # a camera number, a video, an image, a folder or a stream address
    detector: str = "mtcnn"  # `mtcnn`, or `haar`: OpenCV's frontal cascade
    fallback_fps: float = 25.0  # frames per second, where the source does not tell


PATHS = Paths()
SAMPLE = Sample()
INVENTORY = Inventory()
FACES = Faces()
SPLIT = Split()
BEST = Fitting()
WEBCAM = Webcam()
