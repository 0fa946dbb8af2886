"""Learn from finished networks as well as from labels: knowledge distillation.

The teachers' answers, at temperature 1, are mixed with the labels into one target per image (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531). They are asked once, about each training image and its mirror image, so a training by
teachers takes no longer than another one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.errors import InputError
from training.datasets import FaceBatches
from training.emotion_classifier import EmotionClassifier, check_crops, knows_another_split
from training.fine_tuning import Start


def read_teachers(files: Sequence[str], classes: Sequence[str], about: Mapping[str, Any]) -> list[Start]:
    """Return the networks to learn from.

    Args:
        files: The `.keras` files.
        classes: Class names of the data, in class order.
        about: What a card says of the data: at least `dataset`, `split_hash` and `crops`.

    Raises:
        InputError: one is missing, takes other crops, knows other emotions, or learnt (or what it learnt from did)
            from another split of the same data, so that it may know the very images that the new network is judged by.
    """
    teachers = [Start.read(Path(file)) for file in files]
    for teacher in teachers:
        check_crops(teacher.file, teacher.card, about["crops"], about["dataset"])
        if list(teacher.card["labels"]) != list(classes):
            raise InputError(
                f"teacher {teacher.file} knows {', '.join(teacher.card['labels'])}; it must know what is to be learnt: "
                f"{', '.join(classes)}"
            )
        if knows_another_split(teacher.card, about["dataset"], about["split_hash"]):
            raise InputError(
                f"teacher {teacher.file} learnt from another split of {about['dataset']}, so it may know the images "
                "that the new network is judged by; train it again on this split"
            )
    return teachers


def teach(train: FaceBatches, teachers: Sequence[Start], share: float, smoothing: float) -> None:
    """Give the batches targets in which the teachers have their share.

    Args:
        train: Batches to learn from; their targets are class indices or distributions.
        teachers: The networks.
        share: Share of each target that is the mean of their answers, 0-1.
        smoothing: Label smoothing, 0-1, of the batches' own targets; the answers are soft already.
    """
    answers = []
    for teacher in teachers:
        classifier = EmotionClassifier.load(teacher.file)
        classifier.card["temperature"] = 1.0  # calibrating a teacher later does not change what it taught
        answers += [classifier.predict(images) for images in (train.images, train.images[:, :, ::-1])]
    own: Any = train.labels
    if own.ndim == 1:
        own = np.eye(len(train.classes), dtype=np.float32)[own]
    own = (1 - smoothing) * own + smoothing / len(train.classes)
    train.set_targets((1 - share) * own + share * np.mean(answers, axis=0, dtype=np.float32))


def card_entries(teachers: Sequence[Start]) -> dict[str, Any]:
    """Return what a card says of the networks that its network learnt from; nothing without any."""
    return {"teachers": [teacher.entries() for teacher in teachers]} if teachers else {}
