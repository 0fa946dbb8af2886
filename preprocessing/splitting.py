"""Divide images into train, dev and test splits, or into cross-validation folds."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.errors import InputError
from common.processes import exclusive_lock
from configuration import SPLIT
from preprocessing.tables import (
    OFFICIAL_SPLITS,
    SPLITS,
    content_hash,
    is_up_to_date,
    is_usable,
    labels_of,
    make_command,
    read_provenance,
    read_table,
    split_by_fold,
    write_provenance,
    write_table,
)


class Strategy(StrEnum):
    """How images are divided."""

    AUTO = "auto"
    OFFICIAL = "official"
    SUBJECT = "subject"
    RANDOM = "random"
    FOLDS = "folds"


class Duplicates(StrEnum):
    """Whether training images with a duplicate in the dev or test split are kept."""

    KEEP = "keep"
    DROP = "drop"


def write_split(folder: Path, strategy: Strategy, **options: Any) -> tuple[pd.DataFrame, Strategy] | None:
    """Write `split.csv` from `faces.csv`, unless it is up to date. The data set is locked meanwhile.

    Args:
        folder: The data set's folder, `data/NAME`.
        strategy: As for `split_table`, or `AUTO`; see `choose_strategy`.
        **options: As for `split_table`.

    Returns:
        The table and its strategy; None where it is up to date.

    Raises:
        InputError: As `split_table`, or the inventory has changed since step 2, or another process writes the data set.
            Nothing is written then.
    """
    with exclusive_lock(folder):
        faces = read_table(folder, "faces.csv")
        check_current(folder)
        strategy = choose_strategy(faces) if strategy is Strategy.AUTO else strategy
        provenance = json.dumps({"faces": content_hash(faces), "strategy": strategy, **options})
        if is_up_to_date(folder, "split.csv", provenance):
            return None
        table = split_table(faces, strategy, **options)
        (folder / "split.json").unlink(missing_ok=True)
        write_table(table, folder / "split.csv")
        write_provenance(folder, "split.csv", provenance)
        return table, strategy


def check_current(folder: Path) -> None:
    """Refuse crops that were made from another inventory.

    Raises:
        InputError: `inventory.csv` has changed since step 2.
    """
    provenance = read_provenance(folder, "faces.csv")
    if not provenance or not (folder / "inventory.csv").is_file():
        return
    if provenance.get("inventory") != content_hash(read_table(folder, "inventory.csv")):
        raise InputError(
            f"{folder / 'faces.csv'} was made from another inventory.csv; run first: "
            f"{make_command(folder, 'faces.csv')}"
        )


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
        strategy: See `Strategy`; not `AUTO`.
        folds: Number of folds, at least 3, for `FOLDS`.
        train: Share of the images, 0-1, for `SUBJECT` and `RANDOM`.
        dev: Share of the images, 0-1; the rest is the test split. For `OFFICIAL`, see `hold_out_dev`.
        duplicates: For `OFFICIAL`: whether training images with a duplicate in dev or test are kept.
        seed: The same seed and table give the same split on every machine.
        without: Canonical emotions to leave out.

    Returns:
        All rows with the column `split`. `OFFICIAL` adds `cross_split_duplicate`: `true` where a duplicate is in
        another split. `FOLDS` adds `fold` (`0` ... `K-1`), and `subject_dependent_fold` where the data has subjects.

    Raises:
        InputError: The data does not allow the strategy, or an emotion would have no training image.
    """
    assert strategy is not Strategy.AUTO
    table = table.drop(columns=["split", "fold", "subject_dependent_fold", "cross_split_duplicate"], errors="ignore")
    rows = table[is_usable(table) & ~table["emotion"].isin(without)]
    if rows.empty:
        left_out = f" other than {', '.join(without)}" if without else ""
        raise InputError(f"nothing to split: no readable image has a face and a label{left_out}")
    columns = pd.DataFrame(index=rows.index)
    if strategy is Strategy.OFFICIAL:
        columns["split"] = hold_out_dev(rows, official_splits(rows), dev, seed)
        columns["cross_split_duplicate"] = cross_split_duplicates(rows["pixel_hash"], columns["split"])
        if duplicates is Duplicates.DROP:
            columns.loc[columns["cross_split_duplicate"] & (columns["split"] == "train"), "split"] = ""
        columns["cross_split_duplicate"] = columns["cross_split_duplicate"].map({True: "true", False: "false"})
    elif strategy is Strategy.FOLDS:
        if folds < 3:
            raise InputError(f"--folds {folds}: at least 3 are needed, for test, dev and train")
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
                f"strategy {strategy} leaves no training image of {', '.join(untrained)}; use another --strategy or "
                "--seed, add images, or leave the emotion out with --without"
            )
    unused = {
        **dict.fromkeys(columns, ""),
        "cross_split_duplicate": "false",
    }  # not empty, so that pandas reads booleans
    return table.join(columns).fillna({column: unused[column] for column in columns})


def choose_strategy(table: pd.DataFrame) -> Strategy:
    """Return the strategy that `auto` selects: the data set's own splits, else by subject, else random.

    The data set's own splits are not used where a subject (or, without subjects, a sequence) is in several of them,
    because such splits leak identity.

    Raises:
        InputError: Some images have a subject and others have none, and the data set's own splits cannot be used.
    """
    rows = table[is_usable(table)]
    crossing, _ = subjects_across_splits(table)
    if _has_official_splits(rows) and not crossing:
        return Strategy.OFFICIAL
    nameless = int((rows["subject"] == "").sum())
    if 0 < nameless < len(rows):
        reason = f"{crossing:,} subjects are in several of the data set's own splits, and " if crossing else ""
        others = "official or random" if crossing else "random"
        raise InputError(
            f"{reason}{nameless:,} of {len(rows):,} usable images have no subject, so they cannot be split by subject; "
            f"choose --strategy {others}, or complete the column subject of inventory.csv"
        )
    return Strategy.RANDOM if nameless else Strategy.SUBJECT


def _has_official_splits(rows: pd.DataFrame) -> bool:
    return set(rows["usage"].str.lower()) <= set(OFFICIAL_SPLITS)


def subjects_across_splits(table: pd.DataFrame) -> tuple[int, int]:
    """Return the number of subjects in several of the data set's own splits, and the number of subjects.

    Only usable images count. An image without a subject counts for its sequence, which shows one person. Both numbers
    are 0 where an image is in none of the data set's own splits.
    """
    rows = table[is_usable(table)]
    if not _has_official_splits(rows):
        return 0, 0
    people = rows["subject"].where(rows["subject"] != "", rows["sequence"])
    splits = rows["usage"].str.lower().map(OFFICIAL_SPLITS)
    counts = splits[people != ""].groupby(people[people != ""]).nunique()
    return int((counts > 1).sum()), len(counts)


def official_splits(rows: pd.DataFrame) -> pd.Series:
    """Return each row's split as published with the data set.

    Raises:
        InputError: A row's usage is empty or unknown.
    """
    unknown = sorted(set(rows["usage"]) - {usage for usage in rows["usage"] if usage.lower() in OFFICIAL_SPLITS})
    if unknown:
        raise InputError(
            f"strategy official: usage {unknown[0]!r} is no split; accepted are "
            f"{', '.join(OFFICIAL_SPLITS)}; use another --strategy"
        )
    return rows["usage"].str.lower().map(OFFICIAL_SPLITS)


def hold_out_dev(rows: pd.DataFrame, splits: pd.Series, dev: float, seed: int) -> pd.Series:
    """Return the splits with a dev split, by which training selects its epoch.

    Where the data set has none, a share `dev` of the training images becomes the dev split. Duplicates and subjects
    stay together. The test split does not change.
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
    """Return a mask of the rows with a duplicate in another split."""
    return splits.groupby(pixel_hashes).transform("nunique") > 1


def group_rows(rows: pd.DataFrame, by_subject: bool) -> np.ndarray:
    """Number the groups of rows that must stay together: duplicates, sequences and, if `by_subject`, subjects.

    Frames of a sequence are near-duplicates. Subjects who share a duplicate become one group, so that neither the
    duplicate nor a subject is in two splits.

    Returns:
        int array (rows,): group numbers in order of first appearance.

    Raises:
        InputError: `by_subject` is true, but an image has no subject.
    """
    if by_subject and (rows["subject"] == "").any():
        nameless = int((rows["subject"] == "").sum())
        raise InputError(f"strategy subject: {nameless:,} usable images have no subject; use --strategy random")
    shared = ["pixel_hash", "sequence", *(["subject"] if by_subject else [])]
    # Nodes of the graph: the rows, then the values they can share. A row without a sequence gets a value of its own.
    names = [column + ":" + rows[column].where(rows[column] != "", rows["path"]) for column in shared]
    values = pd.factorize(pd.concat(names))[0].reshape(len(shared), len(rows))
    size = len(rows) + values.max() + 1
    row_nodes = np.tile(np.arange(len(rows)), len(shared))
    edges = coo_array((np.ones(values.size), (row_nodes, len(rows) + values.ravel())), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return pd.factorize(component[: len(rows)])[0]


def _shares(train: float, dev: float) -> list[int]:
    """Return the three splits' shares in thousandths.

    Raises:
        InputError: The shares are out of range.
    """
    if not (train > 0 and dev >= 0 and train + dev <= 1):
        raise InputError(f"train {train}, dev {dev}: train must be above 0, dev at least 0, their sum at most 1")
    return [round(1000 * train), round(1000 * dev), 1000 - round(1000 * train) - round(1000 * dev)]


def allocate(emotions: pd.Series, groups: np.ndarray, shares: list[int], seed: int) -> np.ndarray:
    """Assign whole groups to parts so that each part's emotions have the given shares as nearly as possible.

    Greedy: the largest groups come first, each goes to the part where it most reduces the squared distance to the
    target counts, weighted by the inverse frequency of the emotion. Groups of equal size come in random order. Integer
    arithmetic and numpy's frozen legacy generator make the result the same on every machine.

    Args:
        emotions: Each row's emotion.
        groups: int array (rows,): each row's group, numbered from 0.
        shares: Each part's share of the images, in any unit.
        seed: For the random order.

    Returns:
        int array (rows,): the number of each row's part; parts with a positive share are not empty.

    Raises:
        InputError: There are fewer groups than parts.
    """
    codes, names = pd.factorize(emotions)
    counts = np.zeros((groups.max() + 1, len(names)), np.int64)  # images per group and emotion
    np.add.at(counts, (groups, codes), 1)
    share = np.array(shares, np.int64)
    if len(counts) < np.count_nonzero(share):
        raise InputError(
            f"{len(counts)} groups (subjects, or distinct images) are fewer than {np.count_nonzero(share)} parts; "
            f"use at most {len(counts)} folds, or another --strategy"
        )
    order = np.random.RandomState(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    weight = 10**9 // counts.sum(axis=0)  # inverse frequency
    excess = -share[:, None] * counts.sum(axis=0)  # images of each part beyond its target, times the sum of shares
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
