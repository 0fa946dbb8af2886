"""Where the networks of a cross-validation lie: one per fold, beside the network that they stand for."""

from pathlib import Path


def fold_file(model_file: Path, fold: int, loose: bool = False) -> Path:
    """Return where the network that was trained without a fold lies: `best.keras` -> `best-folds/3.keras`.

    Args:
        model_file: The network that the folds stand for; it need not exist.
        fold: Number of the fold that it is tested on, from 0.
        loose: Of the folds that ignore who is in the pictures: `best-loose-folds/3.keras`.
    """
    return model_file.with_name(f"{model_file.stem}{'-loose' if loose else ''}-folds") / f"{fold}{model_file.suffix}"
