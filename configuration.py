"""Every path and every knob of every stage, in one place.

Each step's command-line options default to the values below, so a change here changes the program, and a typed
option changes one run. Importing this file costs nothing: no heavy import, no file is touched.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Paths:
    """Where things lie. Each data set, and what is trained or reported on it, has a folder of its own name."""

    data: Path = ROOT / "data"  # tables and images: data/NAME/{inventory,faces,split}.csv
    models: Path = ROOT / "models"  # networks: models/NAME/*.keras; the released ones at the top
    reports: Path = ROOT / "reports"  # evaluations: reports/NAME/MODEL/SPLIT-TRUTH/
    converted: Path = ROOT / "models" / "converted"  # networks converted for LiteRT, remade when they are missing
    shipped: Path = ROOT / "models" / "litert"  # the released networks and mtcnn's, converted
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
    """Random changes of training images. They run inside the training graph and are not saved with a network."""

    flip: bool = True  # flip horizontally with probability 0.5
    rotation: float = 11.0  # degrees: largest rotation in either direction
    zoom: float = 0.15  # largest relative change of the size
    shift: float = 4.0  # pixels: largest shift in each direction
    contrast: float = 0.2  # largest relative change of the contrast
    brightness: float = 20.0  # gray levels of 255: largest change
    small_erasing_count: int = 2  # black boxes per image, each with probability 0.5
    small_erasing_size: tuple[int, int] = (6, 2)  # pixels: largest longer and shorter side of a box
    cutout_max_size: int = 0  # pixels: largest side of one Cutout box, with probability 0.5; 0: off
    blur: float = 0.0  # pixels: largest standard deviation of a Gaussian blur, with probability 0.5; 0: off
    noise: float = 0.0  # gray levels of 255: largest standard deviation of noise, with probability 0.5; 0: off
    crop: float = 1.0  # train on crops of this share of the side; 1: full images (vgg only)
    full_image_epoch_fraction: float = 0.2  # share of the epochs, the last ones, with full images in spite of `crop`


NO_AUGMENTATION = AugmentationConfig(False, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
SMALL_ERASING_ONLY = AugmentationConfig(False, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run: network, targets, optimizer and stopping rule."""

    network: str = "vgg"  # `vgg`, `cifar10` or `project1`; see `training.models.NETWORKS`
    filters: tuple[int, ...] = (32, 64, 128, 256)  # of each stage; pooling halves the image between stages (vgg only)
    convolutions: int = 2  # per stage (vgg only)
    dropout: float = 0.4  # rate before the last layer, 0-1 (vgg only)
    pretrained: str = ""  # network whose architecture and weights are taken; empty: train from scratch
    teachers: tuple[str, ...] = ()  # networks with the same emotions, for knowledge distillation
    distillation_weight: float = 0.5  # share of the teachers in the loss, 0-1
    targets: str = "labels"  # `labels`, or `votes`: the distribution of the annotators' votes
    balance: str = ""  # balance the loss by `emotion`, a column such as `gender`, or `gender+emotion`
    epochs: int = 36
    batch_size: int = 128  # images
    optimizer: str = "adamw"  # `adamw`, `muon`, `adam` or `sgd`
    learning_rate: float = 2e-3  # after the warm-up
    first_layer_rate: float = 1.0  # learning rate of the first layer, as a share of that of the last; 1: all the same
    schedule: str = "cosine"  # `cosine` (to zero at the last epoch) or `constant`
    warmup_epochs: int = 0  # epochs in which the learning rate grows linearly from zero
    weight_decay: float = 1e-2  # adamw and muon only
    label_smoothing: float = 0.1  # 0-1; not used for votes
    logit_adjustment: float = 0.0  # share of the log class prior in the loss (Menon et al. 2021); 0: off, 1: balanced
    mixup: float = 0.0  # alpha of mixup's beta distribution; 0: off
    patience: int = 0  # early stopping: epochs without a better dev accuracy (logit adjustment: dev loss); 0: off
    precision: str = "auto"  # `float32`, `mixed_bfloat16`, or `auto`: the faster one, measured at the start
    seed: int = 7
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


# The networks of two student projects, with their own settings.
_BASELINE = TrainingConfig(schedule="constant", label_smoothing=0.0, precision="float32", augmentation=NO_AUGMENTATION)
BASELINES = {
    "cifar10": replace(
        _BASELINE, network="cifar10", epochs=30, batch_size=64, optimizer="adam", learning_rate=1e-3, patience=5
    ),
    "project1": replace(
        _BASELINE,
        network="project1",
        epochs=40,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.05,
        patience=8,
        augmentation=SMALL_ERASING_ONLY,
    ),
}


@dataclass(frozen=True)
class SequenceConfig:
    """Step 4: the network over the frames of a sequence, and its training."""

    window: int = 64  # frames: longest history, about two seconds of CK+
    rate: float = 30.0  # frames per second of the sequences; live faces are resampled to it
    config: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            network="convolution",  # causal dilated convolutions over time
            filters=(32,),  # of each convolution
            convolutions=5,  # blocks with dilations 1, 2, 4, 8 and 16: a receptive field of 63 frames
            epochs=80,
            batch_size=32,  # sequences
            learning_rate=3e-3,
            precision="float32",
            augmentation=NO_AUGMENTATION,
        )
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of a trained network."""

    resamples: int = 1000  # bootstrap resamples of each interval
    level: float = 0.95  # confidence level of the intervals, 0-1
    target_accuracy: float = 0.8  # selective accuracy, 0-1, of the abstention threshold
    min_coverage: float = 0.5  # minimum share of images above the abstention threshold, 0-1
    seed: int = 7


@dataclass(frozen=True)
class FairnessConfig:
    """Fairness: the comparison of groups."""

    min_images: int = 30  # smaller groups are named, but not scored
    min_subjects: int = 5  # groups of fewer known subjects are named, but not scored
    min_emotion_images: int = 10  # with fewer images of an emotion in a group, its rates are not compared
    permutations: int = 4000  # for each p-value
    significance: float = 0.05  # adjusted p-value, 0-1, below which a difference is reported


@dataclass(frozen=True)
class TuningConfig:
    """Step 2: the budget of the hyperparameter search. `training.tuning` holds the search space."""

    trials: int = 60  # of the whole study, over all processes and restarts
    epochs: int = 18  # of one trial, at most
    train_images: int = 0  # random subset of the training images, the same for all trials; 0: all
    seed: int = 7


@dataclass(frozen=True)
class WebcamConfig:
    """The realtime program."""

    source: str = "0"  # a camera number, a video, an image, a folder or a stream address
    detector: str = "mtcnn"  # `mtcnn`, or `haar`: OpenCV's frontal cascade
    hidden_before: float = 0.5  # seconds: --anonymous covers a face this long before its detection
    hidden_after: float = 1.0  # seconds: and this long after its loss
    reconnect_seconds: float = 30.0  # a lost camera or stream is given up after this


@dataclass(frozen=True)
class WebConfig:
    """The realtime program in a browser: what one visitor may use."""

    port: int = 8000
    visitors: int = 8  # open pages at once; further ones are refused
    rate: float = 120.0  # messages per second of a visitor; more are slowed down
    message: int = 4_000_000  # bytes: largest message, such as a camera frame
    upload: int = 500_000_000  # bytes: largest video
    pixels: int = 9_000_000  # largest frame or picture, such as 4K
    log: int = 200_000_000  # bytes: a visitor's log ends at this size


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
# Multiples of 16: other numbers of filters take up to three times as long in bfloat16.
_WIDE = replace(BEST, filters=(32, 64, 160, 384), augmentation=replace(BEST.augmentation, cutout_max_size=16))
TEACHERS = (  # networks that `training.teachers` trains
    replace(_WIDE, epochs=32, optimizer="muon"),
    replace(BEST, epochs=44, optimizer="muon", seed=8),
)
STUDENT = replace(_WIDE, mixup=0.4, distillation_weight=0.8)  # settings with --teacher, without --pretrained
PRETRAINED_STUDENT = replace(  # settings with --teacher and --pretrained
    STUDENT, epochs=84, optimizer="muon", learning_rate=1.5e-3
)
FINE_TUNING = TrainingConfig(  # settings with --pretrained, without --teacher
    epochs=20, batch_size=32, learning_rate=3e-4, first_layer_rate=0.017, warmup_epochs=1, logit_adjustment=0.5
)
TUNING = TuningConfig()
SAMPLE_TUNING = TuningConfig(trials=4, epochs=3)  # a quick demonstration
SEQUENCES = SequenceConfig()
EVALUATION = EvaluationConfig()
FAIRNESS = FairnessConfig()
WEBCAM = WebcamConfig()
WEB = WebConfig()
SERVING = ServingConfig()
TRACKING = TrackingConfig()
SMOOTHING = SmoothingConfig()
