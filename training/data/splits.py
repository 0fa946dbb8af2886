"""The training and dev splits of a run: their rows, targets, loss weights and batches."""

from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import InputError
from configuration import TrainingConfig
from inference.lineage import ImageHashes
from preprocessing.datasets.votes import majority, vote_shares, voted_emotions
from preprocessing.tables import check_unchanged, content_hash, crop_options, labels_of, split_hash, usable
from training.data.balancing import sample_weights
from training.data.batches import FaceBatches, flow_from_dataframe

USE_CAVEAT = (
    "The network classifies the visible expression, not what a person feels; do not use it for decisions about people."
)


def read_batches(
    table: pd.DataFrame, folder: Path, config: TrainingConfig
) -> tuple[FaceBatches, FaceBatches, dict[str, Any]]:
    """Return the training batches, the dev batches, and the card entries about the data.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        config: Settings of the run.

    Raises:
        InputError: A split has no usable rows, there are fewer than two emotions, an emotion has no training image, or
            the crops changed while they were read.
    """
    by_votes = config.targets == "votes"
    rows = learning_rows(table, folder, config.targets)
    splits = {name: rows.loc[rows["split"] == name] for name in ("train", "dev")}
    classes = voted_emotions(rows) if by_votes else labels_of(rows)
    if len(classes) < 2:
        raise InputError(f"all images of {folder / 'split.csv'} show {classes[0]}; at least two emotions are needed")
    missing = [label for label in classes if not by_votes and label not in set(splits["train"]["emotion"])]
    if missing:
        raise InputError(f"no training image shows {', '.join(missing)}; split again with step3_split")
    if config.balance:
        emotion = majority(splits["train"]) if by_votes else splits["train"]["emotion"]
        weight = sample_weights(splits["train"].assign(emotion=emotion), config.balance)
        splits["train"] = splits["train"].assign(weight=weight)
    crops = crop_options(folder)
    common: dict[str, Any] = {
        "target_size": (crops["size"], crops["size"]),
        "color_mode": "grayscale" if crops["channels"] == 1 else "rgb",
        "classes": classes,
        "y_col": classes if by_votes else "emotion",
        "class_mode": "raw" if by_votes else "categorical",
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    weights = "weight" if config.balance else None
    train = flow_from_dataframe(splits["train"], folder, weight_col=weights, mixup=config.mixup, **common)
    dev = flow_from_dataframe(splits["dev"], folder, shuffle=False, **common)
    if crop_options(folder) != crops:
        raise InputError(f"crops in {folder} changed while they were read; wait for step 2, then retry")
    check_unchanged(rows, folder)
    about = {
        "dataset": folder.name,
        "split_hash": split_hash(table),
        "targets": config.targets,
        "votes_hash": content_hash(rows[classes]) if by_votes else "",
        "weights_hash": content_hash(splits["train"][["weight"]]) if config.balance else "",
        "align": crops["align"],
        "crops": crops,
        "caveats": caveats(rows, crops["channels"], by_votes),
    }
    return train, dev, about


def own_hashes(table: pd.DataFrame, folder: Path, targets: str) -> ImageHashes:
    """Return the hashes of the images that a run is trained and selected on itself."""
    rows = learning_rows(table, folder, targets)
    train, dev = (rows.loc[rows["split"] == name, "pixel_hash"] for name in ("train", "dev"))
    return ImageHashes.of(train, dev)


def learning_rows(table: pd.DataFrame, folder: Path, targets: str) -> pd.DataFrame:
    """Return the training and dev rows of a run, with the shares of the votes if these are its targets.

    With votes, training uses every image with a vote for an emotion. Dev uses the images with a majority, so that
    accuracy is agreement with the majority.

    Raises:
        InputError: A split has no usable rows.
    """
    rows = usable(table)
    rows = rows.loc[rows["split"].isin(["train", "dev"])]
    if targets == "votes":
        shares = vote_shares(rows)
        has_majority = majority(rows) != ""
        rows = rows.join(shares).loc[(shares.sum(axis=1) > 0) & ((rows["split"] == "train") | has_majority)]
    for name in ("train", "dev"):
        if not (rows["split"] == name).any():
            raise InputError(f"{folder / 'split.csv'} has no usable {name} images; split again with step3_split")
    return rows


def caveats(rows: pd.DataFrame, channels: int, by_votes: bool = False) -> list[str]:
    """Return the caveats of a model card about the training data."""
    lines = [USE_CAVEAT]
    if set(rows["usage"]) <= {"Training", "PublicTest", "PrivateTest"}:
        lines.append("FER2013 contains small gray web images with noisy labels; it is for research use only.")
        if by_votes:
            lines.append("The annotator votes are FER+ (Barsoum et al. 2016), published under the MIT licence.")
    if channels == 1:
        lines.append("The input is gray: colour, such as skin tone, is neither used nor examined.")
    unknown = [name for name in ("gender", "race", "age") if name not in rows.columns]
    if unknown:
        names = " and ".join([", ".join(unknown[:-1]), unknown[-1]] if len(unknown) > 1 else unknown)
        lines.append(f"The data has no columns for {names}, so bias by any of these is not measured.")
    return lines
