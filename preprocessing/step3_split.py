"""Decide which images train a network, which choose between networks, and which test it.

Reads:   data/NAME/faces.csv
Writes:  data/NAME/split.csv (every row of faces.csv, with the column `split`; where folds are asked for `fold`, and
         `subject_dependent_fold` where the data has subjects)

    python -m preprocessing.step3_split --dataset NAME

Strategies: `official` keeps the data set's own splits. `subject` puts nobody into two splits. `random` ignores who
is in the pictures. `folds` gives K folds, by subject where the data has subjects; its column `split` makes fold 0 the
test split, fold 1 the dev split and the rest the training split. `auto` is official where the data set has splits of
its own and no subject is in two of them, else subject where it has subjects, else random. All but `official` keep exact
copies of an image together, and all frames of a sequence, and keep the emotions' shares alike. Rows that cannot be used
(no label or face, constant, unreadable), or whose emotion `--without` names, get an empty `split`.

`subject_dependent_fold` numbers as many folds that ignore the subject, as most published scores on CK+ do. Train and
evaluate on both to see the difference.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.emotions import canonical, in_class_order
from common.errors import InputError
from common.processes import exclusive_lock
from configuration import PATHS, SAMPLE_NAME, SPLIT
from preprocessing.audit import count_images, format_counts
from preprocessing.splitting import Duplicates, Strategy, choose_strategy, split_table, subjects_across_splits
from preprocessing.tables import (
    OFFICIAL_SPLITS,
    content_hash,
    is_up_to_date,
    is_usable,
    read_provenance,
    read_table,
    write_provenance,
    write_table,
)


def write_split(folder: Path, strategy: Strategy, **options) -> pd.DataFrame | None:
    """Write `split.csv` from `faces.csv`, unless it is there already for the same faces and options.

    The data set is locked meanwhile.

    Args:
        folder: The data set's folder, `data/NAME`.
        strategy: As for `split_table`.
        **options: As for `split_table`.

    Returns:
        The table; None where there was nothing to do.

    Raises:
        InputError: as `split_table`, or the inventory has changed since the faces were cut, or another process writes
            the data set; then nothing is written.
    """
    with exclusive_lock(folder):
        faces = read_table(folder, "faces.csv")
        _check_current(folder)
        strategy = choose_strategy(faces) if strategy is Strategy.AUTO else strategy
        made_from = json.dumps({"faces": content_hash(faces), "strategy": strategy, **options})
        if is_up_to_date(folder, "split.csv", made_from):
            return None
        table = split_table(faces, strategy, **options)
        (folder / "split.json").unlink(missing_ok=True)
        write_table(table, folder / "split.csv")
        write_provenance(folder, "split.csv", made_from)
        return table


def _check_current(folder: Path) -> None:
    """Refuse crops of another inventory than the one that is there now."""
    origin = read_provenance(folder, "faces.csv")
    if not origin or not (folder / "inventory.csv").is_file():
        return
    if origin.get("inventory") != content_hash(read_table(folder, "inventory.csv")):
        raise InputError(
            f"{folder / 'faces.csv'} was made from another inventory.csv than the present one; run first: "
            f"python -m preprocessing.step2_face_crops --dataset {folder.name}"
        )


def describe(table: pd.DataFrame, strategy: Strategy, without: Sequence[str] = ()) -> str:
    """Return in words how a table was split: the strategy, what was left out, and the images per emotion and split."""
    chosen = choose_strategy(table) if strategy is Strategy.AUTO else strategy
    inside = table["split"] != ""
    lines = [format_counts(count_images(table[inside], "split")), f"strategy: {chosen}"]
    crossing, people = subjects_across_splits(table)
    if crossing and strategy is Strategy.AUTO:
        lines[-1] += (
            f": the data set's own splits are not kept, since {crossing:,} of {people:,} subjects are in several of "
            "them (--strategy official keeps them)"
        )
    strategy = chosen
    reasons = {
        "unreadable": table["status"] == "unreadable",
        "constant": table["status"] == "constant",
        "without a label": table["emotion"] == "",
        "without a face": table["face_status"] == "not_found",
        **{f"of {emotion} (--without)": table["emotion"] == emotion for emotion in without},
        "copies of dev or test images": is_usable(table) & ~inside,
    }
    left_out, unexplained = [], ~inside
    for name, reason in reasons.items():  # an image counts once, by the first reason
        if (unexplained & reason).any():
            left_out.append(f"{(unexplained & reason).sum():,} {name}")
        unexplained &= ~reason
    lines.append(f"left out: {(~inside).sum():,} images" + (f" ({', '.join(left_out)})" if left_out else ""))
    if strategy is Strategy.OFFICIAL:
        if "dev" not in set(table.loc[inside, "usage"].str.lower().map(OFFICIAL_SPLITS)):
            lines.append("the data set publishes no dev split: the dev images were taken from its training images")
        duplicates = int((table["cross_split_duplicate"] == "true").sum())
        lines.append(f"images with an exact copy in another split: {duplicates:,} (column cross_split_duplicate)")
        if crossing:
            lines.append(
                f"warning: {crossing:,} of {people:,} subjects are in several splits; scores on dev and test are too "
                "high for people whom the network has not seen (--strategy subject)"
            )
    if strategy is Strategy.FOLDS:
        subject_dependent = "subject_dependent_fold" in table.columns
        kind = "subject" if subject_dependent else "groups of copies and sequences: not every image has a subject"
        lines.append(f"folds by {kind}; column split: fold 0 is test, fold 1 dev, the others train")
        if subject_dependent:
            people = table[inside].groupby("subject")["subject_dependent_fold"].nunique()
            lines.append(
                "column subject_dependent_fold: folds that ignore who is in the pictures, as most published scores do; "
                f"{(people > 1).sum():,} of {len(people):,} people are in several"
            )
    return "\n".join(lines)


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    strategy: Annotated[Strategy, typer.Option(help="How images are divided; see above.")] = Strategy.AUTO,
    folds: Annotated[int, typer.Option(help="Number of folds, for --strategy folds.")] = SPLIT.folds,
    train: Annotated[float, typer.Option(help="Training share of the images, 0-1; not for official.")] = SPLIT.train,
    dev: Annotated[float, typer.Option(help="Dev share of the images, 0-1; the rest is the test split.")] = SPLIT.dev,
    duplicates: Annotated[
        Duplicates, typer.Option(help="official only: drop leaves out training images with a copy in dev or test.")
    ] = Duplicates.KEEP,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same split on every machine.")
    ] = SPLIT.seed,
    without: Annotated[
        list[str] | None, typer.Option(help="Emotion to leave out, such as contempt; repeat for several.")
    ] = None,
) -> None:
    """Step 3: divide the face crops into training, dev and test images (data/NAME/split.csv).

    official keeps the data set's own splits (where it has no dev split, dev comes out of training); subject puts
    nobody into two splits; random ignores who is in the pictures; folds makes K folds, by subject where there are
    subjects; auto is the first of official (if no subject is in two splits), subject and random that the data allows.
    """
    folder = dataset_folder(data, dataset)
    file = folder / "split.csv"
    left_out = in_class_order({canonical(name) for name in without or []})
    options = {"folds": folds, "train": train, "dev": dev, "duplicates": duplicates, "seed": seed, "without": left_out}
    table = write_split(folder, strategy, **options)
    if table is None:
        print(f"unchanged: {file} was made from the same faces with the same options; nothing to do")
        return
    print(describe(table, strategy, left_out))
    print(f"wrote {file}")


if __name__ == "__main__":
    run(main)
