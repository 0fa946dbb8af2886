"""Several models side by side on the same images: paired differences with intervals, and McNemar's test."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from common.emotions import LabelRule
from common.errors import InputError
from configuration import EvaluationConfig
from evaluation.metrics.intervals import bootstrap, percentile_intervals
from evaluation.metrics.paired import holm, mcnemar
from evaluation.metrics.scores import apply_rule, score_intervals, score_statistic
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_differences
from evaluation.report.section import Figure, Section, Table, interval_text
from evaluation.sections.performance import HEADLINE, SHARES, format_interval, format_score
from evaluation.sections.provenance import banner
from preprocessing.tables import write_table

COMPARED = {**HEADLINE, "brier": "Brier score (less is better)"}


def on_common_labels(models: Sequence[Predictions]) -> list[Predictions]:
    """Return the models' answers on the images, and with the labels, that all of them are scored on.

    Raises:
        InputError: fewer than two labels are common to all.
    """
    common = tuple(label for label in models[0].labels if all(label in predictions.labels for predictions in models))
    if len(common) < 2:
        known = "; ".join(f"{predictions.name}: {', '.join(predictions.labels)}" for predictions in models)
        raise InputError(f"the models share fewer than two emotions and cannot be compared ({known})")
    restricted = []
    for predictions in models:
        part = predictions.select(predictions.rows["emotion"].isin(common).to_numpy())
        inner = tuple(predictions.labels.index(label) for label in common)
        rule = LabelRule(common, tuple(predictions.rule.columns[index] for index in inner), predictions.rule.text)
        probabilities = apply_rule(part.probabilities, LabelRule(common, inner, ""))
        restricted.append(replace(part, rule=rule, probabilities=probabilities))
    return restricted


def check_aligned(models: Sequence[Predictions]) -> None:
    """Refuse models that did not answer the same images, with the same labels, in the same order.

    Raises:
        InputError: with the two models and how many images differ.
    """
    first, *others = models
    for other in others:
        own, theirs = (part.rows[["path", "emotion"]].to_numpy() for part in (first, other))
        if len(own) != len(theirs) or (own != theirs).any():
            differ = f"{len(own):,} and {len(theirs):,} images" if len(own) != len(theirs) else (
                f"{int((own != theirs).any(axis=1).sum()):,} of {len(own):,} rows differ")  # fmt: skip
            raise InputError(
                f"{first.name} and {other.name} were not scored on the same images with the same labels ({differ}): "
                "they cannot be compared in pairs; evaluate both on one split"
            )


def comparison_section(models: Sequence[Predictions], report: Path, options: EvaluationConfig) -> Section:
    """Compare each pair of models on the same images.

    Args:
        models: Two or more models' answers, on the same rows.
        report: Folder of the figures.
        options: For the intervals.

    Raises:
        InputError: the models share fewer than two labels, or their rows differ.
    """
    models = on_common_labels(models)
    check_aligned(models)
    first = models[0]
    statistics = {
        predictions.name: score_statistic(predictions.probabilities, predictions.truth, predictions.labels)
        for predictions in models
    }

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{name}|{score}": value for name, one in statistics.items() for score, value in one(weights).items()}

    drawn = bootstrap(statistic, first.clusters, options.resamples, options.seed)
    measured = {name: float(value[0]) for name, value in statistic(np.ones((1, len(first.rows)))).items()}
    names = [*COMPARED, *(f"recall/{label}" for label in first.labels)]
    pairs = [_compare_pair(before, after, measured, drawn, names, options) for before, after in combinations(models, 2)]
    for pair, adjusted in zip(pairs, holm([pair["mcnemar"]["p_value"] for pair in pairs]), strict=True):
        pair["mcnemar"]["adjusted_p_value"] = adjusted
    differences = pd.DataFrame(
        [
            {"difference": pair["name"], "score": score, **pair["differences"][score]}
            for pair in pairs
            for score in names
        ]
    )
    write_table(differences, report / "differences.csv")
    each = {predictions.name: _own_intervals(predictions, measured, drawn, options.level) for predictions in models}
    interval = interval_text(options.level)
    caption = f"{first.dataset}, {first.split} split (n = {len(first.rows):,})"
    unclean = "; ".join(f"{predictions.name}: {text}" for predictions in models if (text := banner(predictions)))
    warnings = [unclean] if unclean else []
    everything = {label for predictions in models for label in predictions.labels}
    if everything > set(first.labels):
        warnings.append(f"compared on {', '.join(first.labels)} alone, which all of the models know")
    voted = [predictions.name for predictions in models if predictions.card.targets == "votes"]
    if 0 < len(voted) < len(models):
        warnings.append(
            f"{', '.join(voted)} learnt from crowd votes, the others from the data set's own labels: whichever of the "
            "two is scored against favours those that learnt from it (--truth labels, --truth majority)"
        )
    return Section(
        name="comparison",
        title="Side by side",
        sentences=[
            *(_in_words(pair, len(pairs), options) for pair in pairs),
            "All models saw the same images, and each resample weighs the same images for all of them, so that what is "
            "hard for all cancels out. McNemar's exact test looks only at the images that one of the two gets right "
            "and the other does not; where there are several pairs, its p-values are adjusted for their number (Holm), "
            "the intervals are not."
            + (
                " The test takes images for independent; of people photographed several times, trust the intervals, "
                "which are resampled by person."
                if first.has_subjects
                else ""
            ),
        ],
        warnings=warnings,
        tables=[
            Table(
                pd.DataFrame(
                    {
                        predictions.name: [
                            f"{format_score(score, measured[f'{predictions.name}|{score}'])} "
                            f"[{format_interval(score, each[predictions.name][score])}]"
                            for score in COMPARED
                        ]
                        for predictions in models
                    },
                    index=pd.Index(COMPARED.values(), name="score"),
                ),
                f"Each model by itself, {caption}",
            ),
            *(
                Table(
                    pd.DataFrame(
                        {
                            "difference": [format_change(s, pair["differences"][s]["value"]) for s in names],
                            interval: [
                                format_change_interval(s, pair["differences"][s]["low"], pair["differences"][s]["high"])
                                for s in names
                            ],
                        },
                        index=pd.Index([COMPARED.get(s, s.replace("/", ", ")) for s in names], name="score"),
                    ),
                    f"{pair['name']}, {caption}",
                )
                for pair in pairs
            ),
        ],
        figures=[
            Figure(
                draw_differences(
                    differences[differences["score"].isin([*SHARES, *names[len(COMPARED) :]])],
                    caption,
                    report / "differences.png",
                    interval,
                ),
                f"Differences in percentage points, {caption}; left of the line the model named last is worse.",
                " ".join(_in_words(pair, len(pairs), options) for pair in pairs),
            )
        ],
        values={
            "banner": unclean,
            "models": [predictions.name for predictions in models],
            "measured": measured,
            "pairs": pairs,
        },
    )


def _own_intervals(
    predictions: Predictions, measured: dict[str, float], drawn: dict[str, np.ndarray], level: float
) -> dict[str, tuple[float, float]]:
    """Return the intervals of one model's own scores."""
    prefix = f"{predictions.name}|"
    scores = [name.removeprefix(prefix) for name in drawn if name.startswith(prefix)]
    own_drawn, own = {score: drawn[prefix + score] for score in scores}, {s: measured[prefix + s] for s in scores}
    return score_intervals(
        own_drawn, own, predictions.probabilities, predictions.truth, predictions.labels, predictions.clusters, level
    )


def _compare_pair(
    before: Predictions,
    after: Predictions,
    measured: dict[str, float],
    drawn: dict[str, np.ndarray],
    names: list[str],
    options: EvaluationConfig,
) -> dict:
    """Return one pair's differences (second minus first), each with its interval, and McNemar's test."""
    gaps = {score: drawn[f"{after.name}|{score}"] - drawn[f"{before.name}|{score}"] for score in names}
    intervals = percentile_intervals(gaps, options.level)
    return {
        "name": f"{after.name} minus {before.name}",
        "first": before.name,
        "second": after.name,
        "differences": {
            score: {
                "value": measured[f"{after.name}|{score}"] - measured[f"{before.name}|{score}"],
                "low": intervals[score][0],
                "high": intervals[score][1],
            }
            for score in names
        },
        "mcnemar": mcnemar(before.correct, after.correct),
    }


def format_change(score: str, difference: float) -> str:
    """Return a difference as one reads it: shares in percentage points."""
    if np.isnan(difference):
        return "–"
    is_share = score.split("/")[0] in SHARES
    return f"{100 * difference:+.1f} points" if is_share else f"{difference:+.3f}"


def format_change_interval(score: str, low: float, high: float) -> str:
    """Return the interval of a difference in the form of the difference; the unit stands once."""
    return f"{format_change(score, low).removesuffix(' points')} to {format_change(score, high)}"


def _in_words(pair: dict, number_of_pairs: int, options: EvaluationConfig) -> str:
    accuracy, test = pair["differences"]["accuracy"], pair["mcnemar"]
    low, high = accuracy["low"], accuracy["high"]
    p_value = test["adjusted_p_value"]
    adjusted = " after adjustment" if number_of_pairs > 1 else ""
    verdict = (
        "These images do not show that one is better than the other."
        if low <= 0 <= high or p_value > 1 - options.level
        else f"{pair['second' if accuracy['value'] > 0 else 'first']} is better on images of this kind."
    )
    return (
        f"{pair['name']}: accuracy {format_change('accuracy', accuracy['value'])} ({interval_text(options.level)} "
        f"{format_change_interval('accuracy', low, high)}). {test['only_b']:,} images are right by {pair['second']} "
        f"alone, {test['only_a']:,} by {pair['first']} alone: p "
        f"{'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'} by McNemar's exact test{adjusted}. {verdict}"
    )
