"""Loss weights that balance a training split.

A single column (`emotion`, `gender`, ...) gives inverse frequencies: every value has the same total weight. A column
together with the emotion (`gender+emotion`) gives reweighing, which makes the two statistically independent and keeps
their frequencies: w = P(group) P(emotion) / P(group, emotion) (F. Kamiran, T. Calders, "Data preprocessing techniques
for classification without discrimination", Knowledge and Information Systems 33 (2012) 1-33).
"""

import numpy as np
import pandas as pd

from common.errors import InputError

EMOTION = "emotion"


def sample_weights(rows: pd.DataFrame, balance: str) -> np.ndarray:
    """Return the loss weight of each training row.

    Args:
        rows: The training rows, with `emotion` and the named column.
        balance: `emotion`, another column such as `gender`, or that column with the emotion: `gender+emotion`.

    Returns:
        float32 (n,), positive, mean 1. Rows of an unknown group have weight 1.

    Raises:
        InputError: `balance` has another form, or its column is missing or has fewer than two values.
    """
    names = [name.strip() for name in balance.split("+")]
    columns = [name for name in names if name != EMOTION]
    if not all(names) or len(columns) > 1 or len(names) - len(columns) > 1:
        raise InputError(
            f"--balance {balance!r} is not accepted; give emotion, a column such as gender, or both: gender+emotion"
        )
    values = [_values(rows, name) for name in names]
    known = np.logical_and.reduce([column != "" for column in values])
    for name, column in zip(names, values, strict=True):
        if len(present := sorted(set(column[known]))) < 2:
            found = f"only {present[0]}" if present else "no value"
            raise InputError(f"--balance {balance}: the training images have {found} in {name}; leave out --balance")
    weights = np.ones(len(rows))
    codes = [pd.factorize(column[known])[0] for column in values]
    weights[known] = 1 / np.bincount(codes[0])[codes[0]] if len(codes) == 1 else _reweighing(*codes)
    weights[known] /= weights[known].mean()
    return weights.astype(np.float32)


def _values(rows: pd.DataFrame, name: str) -> np.ndarray:
    if name not in rows.columns:
        raise InputError(f"--balance: the table has no column {name!r}; add it to inventory.csv and run steps 2 and 3")
    return rows[name].fillna("").astype(str).str.strip().to_numpy(object)


def _reweighing(group: np.ndarray, emotion: np.ndarray) -> np.ndarray:
    joint = np.zeros((group.max() + 1, emotion.max() + 1))
    np.add.at(joint, (group, emotion), 1)
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / len(group)
    return expected[group, emotion] / joint[group, emotion]
