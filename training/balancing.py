"""Weights that balance a training split: each image's share in the loss, so that no emotion or group is drowned.

A single column (`emotion`, `gender`, ...) gives inverse frequencies: every value counts as much as every other. A
column with the emotion (`gender+emotion`) gives reweighing, which leaves both shares as they are and takes away what
ties them together: F. Kamiran, T. Calders, "Data preprocessing techniques for classification without discrimination",
Knowledge and Information Systems 33 (2012) 1-33: w = P(group) P(emotion) / P(group, emotion).
"""

import numpy as np
import pandas as pd

from common.errors import InputError

EMOTION = "emotion"


def sample_weights(rows: pd.DataFrame, balance: str) -> np.ndarray:
    """Return each row's weight in training.

    Args:
        rows: The training rows, with `emotion` and the named column.
        balance: `emotion`, another column of the table such as `gender`, or such a column with the emotion:
            `gender+emotion`.

    Returns:
        float32 (n,), positive, mean 1. Rows whose group is unknown (empty) have weight 1.

    Raises:
        InputError: `balance` is none of these, or the column is not there or has fewer than two values.
    """
    names = [name.strip() for name in balance.split("+")]
    columns = [name for name in names if name != EMOTION]
    if not all(names) or len(columns) > 1 or len(names) - len(columns) > 1:
        raise InputError(
            f"--balance {balance!r} is not understood; accepted are emotion, a column such as gender or race, "
            "or such a column with the emotion: gender+emotion"
        )
    values = [_values(rows, name) for name in names]
    known = np.logical_and.reduce([column != "" for column in values])
    for name, column in zip(names, values, strict=True):
        present = sorted(set(column[known]))
        if len(present) < 2:
            raise InputError(
                f"--balance {balance}: the training images have {'only ' + present[0] if present else 'no value'} "
                f"in {name}; there is nothing to balance"
            )
    weights = np.ones(len(rows))
    codes = [pd.factorize(column[known])[0] for column in values]
    weights[known] = _inverse_frequency(codes[0]) if len(codes) == 1 else _reweighing(*codes)
    weights[known] /= weights[known].mean()
    return weights.astype(np.float32)


def _values(rows: pd.DataFrame, name: str) -> np.ndarray:
    if name not in rows.columns:
        raise InputError(f"--balance: the table has no column {name!r}; add it to inventory.csv and run steps 2 and 3")
    return rows[name].fillna("").astype(str).str.strip().to_numpy(object)


def _inverse_frequency(codes: np.ndarray) -> np.ndarray:
    return 1 / np.bincount(codes)[codes]


def _reweighing(group: np.ndarray, emotion: np.ndarray) -> np.ndarray:
    joint = np.zeros((group.max() + 1, emotion.max() + 1))
    np.add.at(joint, (group, emotion), 1)
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / len(group)
    return expected[group, emotion] / joint[group, emotion]
