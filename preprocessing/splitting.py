"""Divide images into train, dev and test splits, or into cross-validation folds."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.errors import InputError
from configuration import SPLIT
from preprocessing.tables import (
    OFFICIAL_SPLITS,
    SPLITS,
    is_usable,
    labels_of,
    split_by_fold,
)


class Strategy(StrEnum):
    """How images are divided."""

    AUTO = "auto"
    OFFICIAL = "official"
    SUBJECT = "subject"
    RANDOM = "random"
    FOLDS = "folds"


class Duplicates(StrEnum):
    """What becomes of training images with an exact copy in another official split."""

    KEEP = "keep"
    DROP = "drop"


def split_table(
    table: pd.DataFrame,
    strategy: Strategy,
    *,
    folds: int = SPLIT.folds,
    train: float = SPLIT.train,
    dev: float = SPLIT.dev,
    duplicates: Duplicates = Duplicates.KEEP,
    seed: int = SPLIT.seed,
    without: Sequence[str] = (),
) -> pd.DataFrame:
    """Divide a table of crops.

    Args:
        table: `faces.csv`.
        strategy: How; what `AUTO` means for a table tells `choose_strategy`.
        folds: Number of folds, for `FOLDS`.
        train: Share of the images, for `SUBJECT` and `RANDOM`.
        dev: Share of the images; the rest is the test split. For `OFFICIAL`, see `hold_out_dev`.
        copies: For `OFFICIAL`.
        seed: The same seed and table give the same split on every machine.
        without: Canonical emotions whose images belong to no split.

    Returns:
        All rows with the column `split`. `OFFICIAL` adds `cross_split_duplicate`: `true` where an exact duplicate lies
        in another split. `FOLDS` adds `fold` (`0` ... `K-1`), and `subject_dependent_fold` where the data has subjects.

    Raises:
        InputError: the data does not allow it, or an emotion would have no training image.
    """
    table = table.drop(columns=["split", "fold", "subject_dependent_fold", "cross_split_duplicate"], errors="ignore")
    rows = table[is_usable(table) & ~table["emotion"].isin(without)]
    if rows.empty:
        left_out = f" but {', '.join(without)}" if without else ""
        raise InputError(
            f"no image can be used (readable, with a face and a label{left_out}): there is nothing to split"
        )
    strategy = choose_strategy(table) if strategy is Strategy.AUTO else strategy
    columns = pd.DataFrame(index=rows.index)
    if strategy is Strategy.OFFICIAL:
        columns["split"] = hold_out_dev(rows, official_splits(rows), dev, seed)
        columns["cross_split_duplicate"] = cross_split_duplicates(rows["pixel_hash"], columns["split"])
        if duplicates is Duplicates.DROP:
            columns.loc[columns["cross_split_duplicate"] & (columns["split"] == "train"), "split"] = ""
        columns["cross_split_duplicate"] = columns["cross_split_duplicate"].map({True: "true", False: "false"})
    elif strategy is Strategy.FOLDS:
        if folds < 3:
            raise InputError(f"--folds {folds}: at least 3 are needed, for test, dev and training")
        by_subject = bool((rows["subject"] != "").all())
        kinds = {"fold": by_subject, "subject_dependent_fold": False} if by_subject else {"fold": False}
        for column, kind in kinds.items():
            groups = group_rows(rows, by_subject=kind)
            columns[column] = allocate(rows["emotion"], groups, [1] * folds, seed).astype(str)
        columns["split"] = split_by_fold(columns, 0)["split"]
    else:
        groups = group_rows(rows, strategy is Strategy.SUBJECT)
        number = allocate(rows["emotion"], groups, _shares(train, dev), seed)
        columns["split"] = pd.Series(number, index=rows.index).map(dict(enumerate(SPLITS)))
    in_training = [columns["split"] == "train"]
    if strategy is Strategy.FOLDS:
        in_training = [split_by_fold(columns, fold)["split"] == "train" for fold in range(folds)]
    for trained in in_training:
        untrained = [emotion for emotion in labels_of(rows) if emotion not in set(rows.loc[trained, "emotion"])]
        if untrained:
            raise InputError(
                f"no training image would be left for {', '.join(untrained)} (strategy {strategy}); use another "
                "--strategy or --seed, add such images, or split --without them"
            )
    unused = {**dict.fromkeys(columns, ""), "cross_split_duplicate": "false"}  # never empty: a column of one type
    return table.join(columns).fillna({column: unused[column] for column in columns})


def choose_strategy(table: pd.DataFrame) -> Strategy:
    """Return what `auto` means for a table: its own splits where it has them, else by subject, else random.

    Splits that a subject (or, without subjects, a sequence) crosses measure how well known people are recognised, so
    they are not kept.

    Raises:
        InputError: subjects cross the data set's splits, and some images have no subject to divide them by.
    """
    rows = table[is_usable(table)]
    crossing, _ = subjects_across_splits(table)
    if _has_official_splits(rows) and not crossing:
        return Strategy.OFFICIAL
    nameless = int((rows["subject"] == "").sum())
    if crossing and 0 < nameless < len(rows):
        raise InputError(
            f"{crossing:,} subjects are in several of the data set's own splits, and {nameless:,} usable images have "
            "no subject to divide them by; choose --strategy official or random, or complete the subjects"
        )
    return Strategy.RANDOM if nameless else Strategy.SUBJECT


def _has_official_splits(rows: pd.DataFrame) -> bool:
    return set(rows["usage"].str.lower()) <= set(OFFICIAL_SPLITS)


def subjects_across_splits(table: pd.DataFrame) -> tuple[int, int]:
    """Return how many subjects are in several of the data set's own splits, and how many subjects there are.

    Only usable images count. An image without a subject counts for its sequence, which shows one person. Where the data
    set does not put every image into a split, it has no splits to cross.
    """
    rows = table[is_usable(table)]
    if not _has_official_splits(rows):
        return 0, 0
    people = rows["subject"].where(rows["subject"] != "", rows["sequence"])
    splits = rows["usage"].str.lower().map(OFFICIAL_SPLITS)
    counts = splits[people != ""].groupby(people[people != ""]).nunique()
    return int((counts > 1).sum()), len(counts)


def official_splits(rows: pd.DataFrame) -> pd.Series:
    """Return each row's split as the data set publishes it.

    Raises:
        InputError: a row has no usage, or an unknown one.
    """
    unknown = sorted(set(rows["usage"]) - {usage for usage in rows["usage"] if usage.lower() in OFFICIAL_SPLITS})
    if unknown:
        raise InputError(
            f"strategy official: images of usage {unknown[0]!r} belong to no split; known are "
            f"{', '.join(OFFICIAL_SPLITS)}; use another --strategy"
        )
    return rows["usage"].str.lower().map(OFFICIAL_SPLITS)


def hold_out_dev(rows: pd.DataFrame, splits: pd.Series, dev: float, seed: int) -> pd.Series:
    """Return the splits with a dev part, which training needs to choose its epoch by.

    Where the data set publishes none, such as plain `train/` and `test/` folders, a share `dev` of the training images
    is taken, copies (and people, where they are known) kept together. The test images stay as published.
    """
    training = splits == "train"
    if (splits == "dev").any() or not training.any():
        return splits
    part = rows[training]
    subjects = part["subject"].where(part["subject"] != "", part["path"])
    groups = group_rows(part.assign(subject=subjects), by_subject=True)
    held_out = allocate(part["emotion"], groups, _shares(1 - dev, dev), seed) == 1
    return splits.where(~splits.index.isin(part.index[held_out]), "dev")


def cross_split_duplicates(pixel_hashes: pd.Series, splits: pd.Series) -> pd.Series:
    """Return, for each row, whether an exact copy of it lies in another split."""
    return splits.groupby(pixel_hashes).transform("nunique") > 1


def group_rows(rows: pd.DataFrame, by_subject: bool) -> np.ndarray:
    """Number the groups of rows that must stay together: copies, sequences and, if asked for, a subject's images.

    Frames of one sequence are nearly copies of each other. Subjects who share a copy become one group, so that neither
    the copy nor the subject is in two splits.

    Returns:
        int array (rows,): group numbers in order of first appearance.

    Raises:
        InputError: by subject, but an image has none.
    """
    if by_subject and (rows["subject"] == "").any():
        nameless = int((rows["subject"] == "").sum())
        raise InputError(f"strategy subject: {nameless:,} usable images have no subject; use --strategy random")
    shared = ["pixel_hash", "sequence", *(["subject"] if by_subject else [])]
    # The graph's nodes: the rows, then all that rows can have in common. A row without a sequence has its own.
    names = [column + ":" + rows[column].where(rows[column] != "", rows["path"]) for column in shared]
    things = pd.factorize(pd.concat(names))[0].reshape(len(shared), len(rows))
    size = len(rows) + things.max() + 1
    row_nodes = np.tile(np.arange(len(rows)), len(shared))
    edges = coo_array((np.ones(things.size), (row_nodes, len(rows) + things.ravel())), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return pd.factorize(component[: len(rows)])[0]


def _shares(train: float, dev: float) -> list[int]:
    """Return the three splits' shares in thousandths.

    Raises:
        InputError: shares that are none.
    """
    if not (train > 0 and dev >= 0 and train + dev <= 1):
        raise InputError(f"--train {train} --dev {dev}: shares lie in 0-1, train above 0, and sum to at most 1")
    return [round(1000 * train), round(1000 * dev), 1000 - round(1000 * train) - round(1000 * dev)]


def allocate(emotions: pd.Series, groups: np.ndarray, shares: list[int], seed: int) -> np.ndarray:
    """Put whole groups into parts so that every part has its share of every emotion, as nearly as the groups allow.

    The largest groups go first, each to the part where it lessens most the squared distance to the wanted numbers,
    relative to the emotion's frequency; equally large groups come in random order. All arithmetic is on integers and
    numpy's legacy generator is frozen, so the result is the same on every machine.

    Args:
        emotions: Each row's emotion.
        groups: int array (rows,): each row's group, numbered from 0.
        shares: Each part's share of the images, in any unit.
        seed: For the random order.

    Returns:
        int array (rows,): the number of each row's part; no part with a share is empty.

    Raises:
        InputError: fewer groups than parts.
    """
    codes, names = pd.factorize(emotions)
    counts = np.zeros((groups.max() + 1, len(names)), np.int64)  # images per group and emotion
    np.add.at(counts, (groups, codes), 1)
    share = np.array(shares, np.int64)
    if len(counts) < np.count_nonzero(share):
        raise InputError(
            f"{len(counts)} groups (subjects, or distinct images) cannot fill {np.count_nonzero(share)} parts; "
            "use fewer folds, or another --strategy"
        )
    order = np.random.RandomState(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    weight = 10**9 // counts.sum(axis=0)  # an image of a rare emotion weighs more
    excess = -share[:, None] * counts.sum(axis=0)  # images in each part beyond those wanted, times the sum of shares
    empty = share > 0
    part_of_group = np.empty(len(counts), np.int64)
    for done, group in enumerate(order):
        count = counts[group] * share.sum()
        cost = (count * (2 * excess + count) // share.sum() * weight).sum(axis=1)
        must_fill = len(order) - done <= np.count_nonzero(empty)
        candidates = np.flatnonzero(empty if must_fill else share > 0)
        part = candidates[np.argmin(cost[candidates])]
        part_of_group[group] = part
        excess[part] += count
        empty[part] = False
    return part_of_group[groups]
