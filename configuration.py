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
    reports: Path = ROOT / "reports"  # evaluations: reports/NAME/MODEL/SPLIT-TRUTH/
    converted: Path = ROOT / "models" / "converted"  # networks converted for LiteRT, remade when they are missing
    pretrained: Path = ROOT / "models" / "pretrained.keras"  # the released network, which the webcam uses
    captures: Path = ROOT / "reports" / "webcam"  # what the webcam's keys write: snapshots and recordings


@dataclass(frozen=True)
class FaceConfig:
    """The face detector and the crop. Step 2 and the webcam share these values."""

    size: int = 48  # pixels: side of the square crop
    channels: int = 1  # 1: gray, 3: RGB
    align: str = "landmarks"  # `landmarks`: similarity transform of five points to the template; `box`: plain square
    min_face_size: int = 40  # pixels: smallest face that the detector searches
    largest_side: int = 1280  # pixels: larger pictures are searched in a reduced copy; crops come from the full one
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)  # minimum confidence of P-Net, R-Net and O-Net, 0-1
    detect: bool | None = None  # True: search for faces; False: use whole images; None: search larger images only


@dataclass(frozen=True)
class SplitConfig:
    """Step 3: train, dev and test splits."""

    train: float = 0.8  # share of the images
    dev: float = 0.1  # share of the images; the rest is the test split
    folds: int = 10  # cross-validation folds
    seed: int = 7


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a training image. All of them run inside the training graph and are not saved."""

    flip: bool = True  # mirror left and right, half of the time
    rotation: float = 11.0  # degrees, at most, either way
    zoom: float = 0.15  # share of the size, at most, smaller or larger
    shift: float = 4.0  # pixels, at most, in each direction
    contrast: float = 0.2  # share of the contrast, at most, more or less
    brightness: float = 20.0  # gray levels of 255, at most, more or less
    small_erasing_count: int = 2  # black boxes per image, at most; possibly none
    small_erasing_length: int = 6  # pixels: longer side of a scar, at most
    small_erasing_width: int = 2  # pixels: shorter side of a scar, at most
    cutout_max_size: int = 0  # pixels: side of one larger black box, at most, over half of the images; 0: none
    noise: float = 0.0  # gray levels of 255: standard deviation of a camera's noise, at most, over half of the images
    crop: float = 1.0  # share of a face's side that is trained on, the part moved by `shift`; 1: the whole (vgg only)
    full_image_epoch_fraction: float = (
        0.2  # share of the epochs, the last ones, that train on whole faces in spite of `crop`
    )


NO_AUGMENTATION = AugmentationConfig(False, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
SMALL_ERASING_ONLY = AugmentationConfig(False, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run: the network, its optimiser, and when it stops."""

    network: str = "vgg"  # a name of `training.models.NETWORKS`
    filters: tuple[int, ...] = (32, 64, 128, 256)  # filters of each stage; images are halved between stages (vgg only)
    convolutions: int = 2  # per stage (vgg only)
    se_reduction: int = (
        0  # each stage weighs its filters by a bottleneck of a squeeze-th of them; 0: it does not (vgg only)
    )
    dropout: float = 0.4  # share of the last features left out, 0-1 (vgg only)
    pretrained: str = ""  # a finished network, whose layers and weights are taken instead; empty: from scratch
    teachers: tuple[str, ...] = ()  # finished networks of the same emotions, whose answers are learnt too
    distillation_weight: float = 0.5  # share of each target that is the mean of the teachers' answers, 0-1
    teacher_targets: str = (
        "precomputed"  # `precomputed`: they answer about each training image; `per_view`: about what the network sees
    )
    targets: str = "labels"  # `labels`: the data set's own; `votes`: the crowd's votes as a distribution
    balance: str = ""  # `emotion`, a column such as `gender`, or `gender+emotion`: images weigh so that it is balanced
    epochs: int = 36  # passes over the training split
    batch_size: int = 128  # images
    optimizer: str = "adamw"  # `adamw`, `adam` or `sgd`
    learning_rate: float = 2e-3  # at the start, after the warm-up
    schedule: str = "cosine"  # `cosine` (down to zero at the last epoch) or `constant`
    warmup_epochs: int = 0  # epochs in which the learning rate grows from zero
    beta_1: float = 0.9  # adam and adamw: share of the earlier mean gradient that each step keeps
    beta_2: float = 0.999  # adam and adamw: the same of the squared gradient
    weight_decay: float = 1e-2  # adamw only
    momentum: float = 0.0  # sgd only
    label_smoothing: float = 0.1  # 0-1; of labels only: votes are soft already
    mixup: float = 0.0  # both parameters of the beta distribution by which pairs of images are mixed; 0: none are
    patience: int = 0  # epochs without a better dev accuracy before the run stops; 0: never
    precision: str = "auto"  # `float32`, `mixed_bfloat16`, or `auto`: the faster one here, measured at the start
    seed: int = 7
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


# The networks of the two student projects, as they trained them.
BASELINES = {
    "cifar10": TrainingConfig(
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
    "project1": TrainingConfig(
        network="project1",
        epochs=40,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.05,
        schedule="constant",
        label_smoothing=0.0,
        patience=8,
        precision="float32",
        augmentation=SMALL_ERASING_ONLY,
    ),
}


@dataclass(frozen=True)
class SequenceConfig:
    """The network over the frames of a sequence (step 4): what it looks back over, and how it is trained."""

    window: int = 64  # frames that it looks back over at most: two seconds of CK+
    rate: float = 30.0  # frames per second of the data set's sequences; live faces are resampled to it
    ramp: float = 2.0  # a step that has seen the share s of its sequence weighs s ** ramp in the loss; the last one 1
    cut: float = 0.5  # share of a training sequence, at most, that is cut off its start, half of the time
    speed: float = 1.5  # times, at most, that a training sequence is played faster or slower
    mirror: bool = True  # mirrored faces, half of the time
    config: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            network="convolution",  # causal dilated convolutions over time
            filters=(32,),  # size of the temporal part
            convolutions=5,  # blocks with dilations 1, 2, 4, 8, 16, which see 63 frames
            dropout=0.4,
            epochs=80,
            batch_size=32,  # sequences
            learning_rate=3e-3,
            precision="float32",  # it is small, and reads numbers instead of pixels
            augmentation=NO_AUGMENTATION,  # of pixels
        )
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of a trained network."""

    resamples: int = 1000  # bootstrap resamples of each interval
    level: float = 0.95  # confidence level of the intervals, 0-1
    target_accuracy: float = 0.8  # selective accuracy, 0-1, of the abstention threshold
    min_coverage: float = 0.5  # minimum share of images above the abstention threshold, 0-1
    gallery: int = 4  # examples of each emotion and kind of error
    seed: int = 7


@dataclass(frozen=True)
class RobustnessConfig:
    """Robustness to occlusion and corruption."""

    images: int = 500  # maximum number of images of the split, subsampled with the seed
    quick_images: int = 60  # the same with --quick


@dataclass(frozen=True)
class FairnessConfig:
    """Fairness: the comparison of groups."""

    min_images: int = 30  # smaller groups are named, but not scored
    min_emotion_images: int = 10  # with fewer images of an emotion in a group, its rates are not compared
    permutations: int = 4000  # for each p-value
    significance: float = 0.05  # adjusted p-value, 0-1, below which a difference is reported


@dataclass(frozen=True)
class TuningConfig:
    """The search for better settings: its budget, then what it searches, from the least to the most."""

    trials: int = 60  # of the whole study: all processes and restarts together
    epochs: int = 18  # passes of one trial, at most
    first_check: int = 2  # epochs after which a trial may be pruned at the earliest
    reduction: int = 3  # at each check the best 1 / reduction of the trials go on
    train_images: int = 0  # images that a trial learns from, drawn once for all trials; 0: all
    timeout: float = 0.0  # minutes after which this process starts no further trial; 0: never
    attempts: int = 3  # how often settings are tried whose process died
    heartbeat: int = 60  # seconds between signs of life in a database; after three without one a trial is dead
    seed: int = 7
    learning_rate: tuple[float, float] = (3e-4, 1e-2)  # by its logarithm
    schedules: tuple[str, ...] = ("cosine", "constant")
    warmup_epochs: tuple[int, int] = (0, 3)  # epochs
    beta_1: tuple[float, float] = (0.8, 0.95)
    beta_2: tuple[float, ...] = (0.95, 0.98, 0.99, 0.999)  # these values
    weight_decay: tuple[float, float] = (1e-4, 1e-1)  # by its logarithm
    batch_sizes: tuple[int, ...] = (64, 128, 256)  # images
    width: tuple[int, int, int] = (16, 40, 8)  # filters of the first stage, and their step; the others in ratio
    parameters: int = 2_400_000  # of the network, at most: a larger one is pruned before its first epoch
    convolutions: tuple[int, int] = (1, 3)  # per stage
    dropout: tuple[float, float] = (0.0, 0.6)
    label_smoothing: tuple[float, float] = (0.0, 0.2)
    augmentation: tuple[float, float] = (0.0, 1.5)  # times the configured turning, scaling, shifting and light
    small_erasing_count: tuple[int, int] = (0, 4)  # times the configured size of the scars; 0: none


@dataclass(frozen=True)
class WebcamConfig:
    """The realtime program."""

    source: str = "0"  # a camera number, a video, an image, a folder or a stream address
    detector: str = "mtcnn"  # `mtcnn`, or `haar`: OpenCV's frontal cascade
    hidden_before: float = 0.5  # seconds: --anonymous covers a face this long before its detection
    hidden_after: float = 1.0  # seconds: and this long after its loss
    reconnect_seconds: float = 30.0  # a lost camera or stream is given up after this


@dataclass(frozen=True)
class ServingConfig:
    """A classifier run by LiteRT, as the realtime program does."""

    int8: bool = True  # 8-bit weights: three times as fast, 0.1 points less accurate (benchmarks.quantization)


@dataclass(frozen=True)
class TrackingConfig:
    """Multi-face tracking."""

    detect_every: float = 0.13  # seconds between two full detections; faces are propagated in between
    background_after: float = 0.02  # seconds: slower detections of live sources run in the background
    min_hits: int = 2  # detections that confirm a track (`min_hits` of SORT)
    max_hidden_seconds: float = 1.0  # a face hidden for no longer keeps its track ID


@dataclass(frozen=True)
class SmoothingConfig:
    """Temporal smoothing of the probabilities and labels of each track; off with --raw."""

    fast_seconds: float = 0.3  # time constant of the average that notices changes
    slow_seconds: float = 2.0  # time constant of the average that is shown
    change_threshold: float = 0.1  # difference of both averages, 0-1, from which the fast one is shown
    margin: float = 0.1  # lead in probability, 0-1, that another emotion needs to replace the label
    new_track_margin_factor: float = 3.0  # times the margin on a new track; shrinks to 1 within `fast_seconds`


PATHS = Paths()
SAMPLE_NAME = "sample"  # the embedded data set, which every command uses by default
FACES = FaceConfig()
SPLIT = SplitConfig()
BEST = TrainingConfig(
    epochs=110, warmup_epochs=2, mixup=0.2, weight_decay=0.05, augmentation=AugmentationConfig(crop=5 / 6)
)
FINE_TUNING = TrainingConfig(
    epochs=20, batch_size=32, learning_rate=3e-4, warmup_epochs=1
)  # from a network that learnt elsewhere
TUNING = TuningConfig()
SAMPLE_TUNING = TuningConfig(trials=4, epochs=3, first_check=1)  # the sample shows that it runs, not what is best
SEQUENCES = SequenceConfig()
EVALUATION = EvaluationConfig()
ROBUSTNESS = RobustnessConfig()
FAIRNESS = FairnessConfig()
WEBCAM = WebcamConfig()
SERVING = ServingConfig()
TRACKING = TrackingConfig()
SMOOTHING = SmoothingConfig()
