"""Step 3: divide the face crops into train, dev and test images, or into cross-validation folds.

Reads:   data/NAME/faces.csv
Writes:  data/NAME/split.csv: adds `split`, and with `--strategy folds` also `fold` and `subject_dependent_fold`

    python -m preprocessing.step3_split --dataset NAME

Strategies: `official` uses the data set's own splits. `subject` keeps each subject in one split. `random` ignores
subjects. `folds` makes K folds, by subject where the data has subjects; the column `split` then makes fold 0 the test
split and fold 1 the dev split. `auto` selects `official` if the data set has splits that no subject crosses, else
`subject` if all images have a subject, and `random` if none has one. If only some have one, it stops. All but
`official` keep duplicates and sequences together and preserve the shares of the emotions. Unusable rows (no label or
face, constant, unreadable) have an empty `split`.

`subject_dependent_fold` numbers folds that ignore subjects, as most published scores on CK+ do. Train and evaluate on
both to compare.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.emotions import canonical, in_class_order
from common.errors import InputError
from configuration import PATHS, SAMPLE_NAME, SPLIT
from preprocessing.audit import count_images, format_counts
from preprocessing.splitting import (
    Duplicates,
    Strategy,
    subjects_across_splits,
    write_split,
)
from preprocessing.tables import OFFICIAL_SPLITS, is_usable


def describe(table: pd.DataFrame, chosen: Strategy, is_automatic: bool, without: Sequence[str] = ()) -> str:
    """Return the images per emotion and split, the strategy and what was left out, as text.

    Args:
        table: `split.csv`.
        chosen: The strategy that was used.
        is_automatic: Whether `auto` chose it.
        without: The emotions that were left out.
    """
    rows = table[table["split"] != ""]
    crossing, people = subjects_across_splits(table)
    leak = f"{crossing:,} of {people:,} subjects are in several of the data set's own splits"
    lines = [format_counts(count_images(rows, "split")), f"strategy: {chosen}", _describe_unused(table, without)]
    if crossing and is_automatic:
        lines[1] += f", because {leak} (--strategy official uses them)"
    if crossing and chosen is Strategy.OFFICIAL:
        lines.append(f"warning: {leak}, so dev and test scores are too high for unknown people (--strategy subject)")
    if chosen is Strategy.OFFICIAL:
        if "dev" not in set(rows["usage"].str.lower().map(OFFICIAL_SPLITS)):
            lines.append("the data set has no dev split: dev images were taken from its training images")
        duplicates = int((table["cross_split_duplicate"] == "true").sum())
        lines.append(f"images with a duplicate in another split: {duplicates:,} (column cross_split_duplicate)")
    if chosen is Strategy.FOLDS:
        by_subject = "subject_dependent_fold" in rows.columns
        kind = "subject" if by_subject else "duplicates and sequences, because not every image has a subject"
        lines.append(f"folds by {kind}; column split: fold 0 is test, fold 1 dev, the others train")
        if by_subject:
            in_folds = rows.groupby("subject")["subject_dependent_fold"].nunique()
            several = f"{(in_folds > 1).sum():,} of {len(in_folds):,} subjects are in several"
            lines.append(f"column subject_dependent_fold: folds that ignore subjects; {several}")
    return "\n".join(lines)


def _describe_unused(table: pd.DataFrame, without: Sequence[str]) -> str:
    """Return how many images have no split, by the first reason that applies."""
    reasons = {
        "unreadable": table["status"] == "unreadable",
        "constant": table["status"] == "constant",
        "without a label": table["emotion"] == "",
        "without a face": table["face_status"] == "not_found",
        **{f"of {emotion} (--without)": table["emotion"] == emotion for emotion in without},
        "duplicates of dev or test images": is_usable(table),
    }
    unused = table["split"] == ""
    reason = np.select([mask.to_numpy() for mask in reasons.values()], list(reasons), "")[unused.to_numpy()]
    counts = ", ".join(f"{(reason == name).sum():,} {name}" for name in reasons if name in reason)
    return f"left out: {unused.sum():,} images" + (f" ({counts})" if counts else "")


def main(
    dataset: DatasetName = SAMPLE_NAME,
    strategy: Annotated[
        Strategy, typer.Option(help="official, subject, random or folds; auto: the best that the data allows.")
    ] = Strategy.AUTO,
    folds: Annotated[
        int | None, typer.Option(help="Number of folds, for --strategy folds.", show_default=str(SPLIT.folds))
    ] = None,
    duplicates: Annotated[
        Duplicates, typer.Option(help="official: keep or drop training images with a duplicate in dev or test.")
    ] = Duplicates.KEEP,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Random seed; the same seed gives the same split.")
    ] = SPLIT.seed,
    without: Annotated[
        list[str] | None, typer.Option(help="Emotion to leave out, such as contempt; repeatable.")
    ] = None,
    data: DataRoot = PATHS.data,
) -> None:
    """Step 3: divide the face crops into train, dev and test images (data/NAME/split.csv)."""
    folder = dataset_folder(data, dataset)
    if folds is not None and strategy is not Strategy.FOLDS:
        raise InputError(f"--folds {folds} needs --strategy folds")
    left_out = in_class_order({canonical(name) for name in without or []})
    written = write_split(
        folder,
        strategy,
        folds=SPLIT.folds if folds is None else folds,
        train=SPLIT.train,
        dev=SPLIT.dev,
        duplicates=duplicates,
        seed=seed,
        without=left_out,
    )
    file = folder / "split.csv"
    if written is None:
        print(f"unchanged: {file} was made from the same faces with the same options; nothing to do")
        return
    print(describe(*written, strategy is Strategy.AUTO, left_out))
    print(f"wrote {file}")


if __name__ == "__main__":
    run(main)
