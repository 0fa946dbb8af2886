"""Updates of model cards: scores of an evaluation, and the calibration."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import InputError
from configuration import EvaluationConfig
from evaluation.predictions import Predictions
from inference.lineage import ImageHashes, read_hashes, write_hashes
from inference.model_card import read_card, write_card
from preprocessing.datasets.votes import MAJORITY

CARD_SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


def update_scores(model_file: Path, metrics: dict[str, Any]) -> None:
    """Write the scores of an evaluation into a card, replacing those of the same data and protocol.

    An entry also has the scores without duplicates of training images. TTA has an entry of its own.

    Args:
        model_file: The network.
        metrics: Content of `metrics.json`.
    """
    scores = [_entry(metrics)]
    if duplicate_scores := metrics["provenance"].get("duplicate_scores"):
        part = duplicate_scores["without duplicates"]
        rounded = {name: round(part[name]["value"], 4) for name in CARD_SCORES}
        scores[0]["without_duplicates"] = {"n": part["n"], **rounded}
    if tta := metrics.get("tta"):
        row = tta["averaged"]
        interval = {"accuracy_interval": [row["accuracy_low"], row["accuracy_high"]]}
        own = {name: tta[name] for name in ("tta", "temperature")}  # its predictions depend on the temperature
        scores.append(_entry({**metrics, **row, **interval, "protocol": tta["protocol"]}) | own)
    card, keys = read_card(model_file), ("dataset", "split", "protocol")
    written = [[score[name] for name in keys] for score in scores]
    kept = [old for old in card.scores if [old.get(name) for name in keys] not in written]
    write_card(replace(card, scores=[*kept, *scores]), model_file)
    print(f"scores written into {model_file.with_suffix('.json')}")


def _entry(metrics: dict[str, Any]) -> dict[str, Any]:
    score = {name: metrics[name] for name in ("dataset", "split", "protocol", "label_rule", "n")}
    score |= {name: round(metrics[name], 4) for name in CARD_SCORES}
    score["accuracy_interval"] = [round(limit, 4) for limit in metrics["accuracy_interval"]]
    score["measured"] = datetime.now(UTC).date().isoformat()
    if metrics["held_out"] is not True:
        score |= {name: metrics[name] for name in ("held_out", "banner")}
    return score


def calibrate(predictions: Predictions, options: EvaluationConfig) -> None:
    """Fit the temperature and the abstention threshold of a model to predictions, and write them into its card.

    The images become selection images of the network.

    Raises:
        InputError: The predictions are too few, or the network or its lineage was trained on their images.
    """
    from evaluation.sections.calibration import fit_calibration

    model_file = predictions.model_file
    if predictions.trained_on:
        raise InputError(
            f"{model_file} was trained on {predictions.exposure.trained:,} of the {len(predictions.rows):,} images of "
            f"{predictions.dataset}, {predictions.split} split. A calibration on these makes it overconfident; leave "
            "out --calibrate, or use the split of its training"
        )
    fitted = fit_calibration(predictions, options)
    found = fitted["calibration"]
    found["truth"] = MAJORITY if predictions.scored_by_majority else "labels of the data set"
    selected = ImageHashes.of(selection=predictions.rows["pixel_hash"])
    write_hashes(model_file, read_hashes(model_file) | selected)
    write_card(replace(read_card(model_file), **fitted), model_file)
    print(
        f"{predictions.name}: temperature {fitted['temperature']}, abstention threshold "
        f"{fitted['abstention_threshold']}, fitted on {found['dataset']}, {found['split']} split (n = {found['n']:,}). "
        f"Cross-fitted: calibration error {found['ece_before']:.1%} before, {found['ece_after']:.1%} after; coverage "
        f"{found['coverage']:.1%}, selective accuracy {found['selective_accuracy']:.1%}. Written into "
        f"{model_file.with_suffix('.json')}"
    )
