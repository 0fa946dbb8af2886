"""Model comparison on the same images: paired differences with intervals, and McNemar's test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.emotions import LabelRule
from common.errors import InputError
from configuration import EvaluationConfig
from evaluation.metrics.intervals import Estimate
from evaluation.metrics.paired import holm, is_significant, mcnemar, paired_difference
from evaluation.metrics.scores import apply_rule, estimate_scores, score_statistic
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_differences
from evaluation.report.section import Figure, Section, Table, interval_text
from evaluation.sections.performance import HEADLINE, SHARES, format_estimate
from evaluation.sections.provenance import banner
from preprocessing.tables import write_table

COMPARED = {**HEADLINE, "brier": "Brier score (lower is better)"}


def on_common_labels(models: Sequence[Predictions]) -> list[Predictions]:
    """Restrict predictions to the labels that all models know, and to the images with these labels.

    Raises:
        InputError: The models share fewer than two labels.
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
    """Check that models predict the same images, with the same labels, in the same order.

    Raises:
        InputError: They do not; names the two models and the number of differences.
    """
    first, *others = models
    for other in others:
        own, theirs = (part.rows[["path", "emotion"]].to_numpy() for part in (first, other))
        if len(own) != len(theirs) or (own != theirs).any():
            differ = f"{len(own):,} and {len(theirs):,} images" if len(own) != len(theirs) else (
                f"{int((own != theirs).any(axis=1).sum()):,} of {len(own):,} rows differ")  # fmt: skip
            raise InputError(
                f"{first.name} and {other.name} were not scored on the same images with the same labels ({differ}); "
                "evaluate both on one split"
            )


@dataclass(frozen=True)
class Pair:
    """The paired comparison of two models.

    Attributes:
        first: Name of the first model.
        second: Name of the second model.
        differences: Second minus first, by score.
        mcnemar: McNemar's test, with `adjusted_p_value` (Holm) over all pairs.
    """

    first: str
    second: str
    differences: dict[str, Estimate]
    mcnemar: dict[str, float | int]

    @property
    def name(self) -> str:
        """Name of the difference."""
        return f"{self.second} minus {self.first}"


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same images, and their differences.

    Attributes:
        scores: Model -> score -> value.
        intervals: Model -> score -> interval.
        pairs: All pairs of models.
    """

    scores: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    pairs: list[Pair]


def compare_models(models: Sequence[Predictions], options: EvaluationConfig) -> Comparison:
    """Compare each pair of models. All resamples weight the same images for all models.

    Args:
        models: Aligned predictions with the same labels.
        options: Resamples, seed and level.
    """
    first = models[0]
    names = [*COMPARED, *(f"recall/{label}" for label in first.labels)]
    statistics = {each.name: score_statistic(each.probabilities, each.truth, each.labels) for each in models}
    own = {
        each.name: estimate_scores(each.probabilities, each.truth, each.labels, each.clusters, options)
        for each in models
    }
    pairs = [
        Pair(
            before.name,
            after.name,
            paired_difference(statistics[before.name], statistics[after.name], first.clusters, options, names),
            mcnemar(before.correct, after.correct),
        )
        for before, after in combinations(models, 2)
    ]
    for pair, adjusted in zip(pairs, holm([pair.mcnemar["p_value"] for pair in pairs]), strict=True):
        pair.mcnemar["adjusted_p_value"] = float(adjusted)
    return Comparison(
        {name: scores for name, (scores, _) in own.items()},
        {name: intervals for name, (_, intervals) in own.items()},
        pairs,
    )


def comparison_section(models: Sequence[Predictions], report: Path, options: EvaluationConfig) -> Section:
    """Compare models on their common labels, write the differences, and return the section.

    Raises:
        InputError: The models share fewer than two labels, or their rows differ.
    """
    everything = {label for predictions in models for label in predictions.labels}
    models = on_common_labels(models)
    check_aligned(models)
    found, first = compare_models(models, options), models[0]
    differences = pd.DataFrame(
        [
            {"difference": pair.name, "score": score, **estimate._asdict()}
            for pair in found.pairs
            for score, estimate in pair.differences.items()
        ]
    )
    write_table(differences, report / "differences.csv")
    caption = f"{first.dataset}, {first.part} (n = {len(first.rows):,})"
    sentences = [_sentence(pair, len(found.pairs), options) for pair in found.pairs]
    drawn = differences[differences["score"].str.split("/").str[0].isin(SHARES)]
    return Section(
        name="comparison",
        title="Comparison",
        sentences=[*sentences, _method(first)],
        warnings=_warnings(models, everything),
        tables=_tables(found, caption, options),
        figures=[
            Figure(
                draw_differences(drawn, caption, report / "differences.png", interval_text(options.level)),
                f"Differences in percentage points, {caption}.",
                " ".join(sentences),
            )
        ],
        values={
            "banner": _banner(models),
            "models": [predictions.name for predictions in models],
            "measured": {
                f"{name}|{score}": value for name, own in found.scores.items() for score, value in own.items()
            },
            "pairs": [_pair_values(pair) for pair in found.pairs],
        },
    )


def _pair_values(pair: Pair) -> dict[str, Any]:
    return {
        "name": pair.name,
        "first": pair.first,
        "second": pair.second,
        "differences": {score: estimate._asdict() for score, estimate in pair.differences.items()},
        "mcnemar": pair.mcnemar,
    }


def _banner(models: Sequence[Predictions]) -> str:
    return "; ".join(f"{predictions.name}: {text}" for predictions in models if (text := banner(predictions)))


def _warnings(models: Sequence[Predictions], everything: set[str]) -> list[str]:
    warnings = [text] if (text := _banner(models)) else []
    if everything > set(models[0].labels):
        warnings.append(f"compared on the common labels only: {', '.join(models[0].labels)}")
    voted = [predictions.name for predictions in models if predictions.card.targets == "votes"]
    if 0 < len(voted) < len(models):
        warnings.append(
            f"{', '.join(voted)}: trained on annotator votes, the others on labels. The true labels favour the models "
            "that were trained on the same kind (--truth labels, --truth majority)"
        )
    return warnings


def _tables(found: Comparison, caption: str, options: EvaluationConfig) -> list[Table]:
    scores = {
        name: [format_estimate(score, own[score], found.intervals[name][score]) for score in COMPARED]
        for name, own in found.scores.items()
    }
    tables = [Table(pd.DataFrame(scores, index=pd.Index(COMPARED.values(), name="score")), f"Scores, {caption}")]
    for pair in found.pairs:
        names = [COMPARED.get(score, score.replace("/", ", ")) for score in pair.differences]
        changes = {
            "difference": [format_change(score, each.value) for score, each in pair.differences.items()],
            interval_text(options.level): [
                format_change_interval(score, each.low, each.high) for score, each in pair.differences.items()
            ],
        }
        tables.append(Table(pd.DataFrame(changes, index=pd.Index(names, name="score")), f"{pair.name}, {caption}"))
    return tables


def format_change(score: str, difference: float) -> str:
    """Return a difference as text, of shares in percentage points."""
    if np.isnan(difference):
        return "–"
    return f"{100 * difference:+.1f} points" if score.split("/")[0] in SHARES else f"{difference:+.3f}"


def format_change_interval(score: str, low: float, high: float) -> str:
    """Return the interval of a difference, with one unit."""
    return f"{format_change(score, low).removesuffix(' points')} to {format_change(score, high)}"


def format_change_estimate(score: str, change: Estimate) -> str:
    """Return a difference with its interval in brackets."""
    return f"{format_change(score, change.value)} [{format_change_interval(score, change.low, change.high)}]"


def _sentence(pair: Pair, number_of_pairs: int, options: EvaluationConfig) -> str:
    change, p_value = pair.differences["accuracy"], pair.mcnemar["adjusted_p_value"]
    significant = is_significant(change, p_value, options.level)
    better = pair.second if change.value > 0 else pair.first
    return (
        f"{pair.name}: accuracy {format_change('accuracy', change.value)} ({interval_text(options.level)} "
        f"{format_change_interval('accuracy', change.low, change.high)}). Correct only by {pair.second}: "
        f"{pair.mcnemar['only_b']:,} images; only by {pair.first}: {pair.mcnemar['only_a']:,}. McNemar's exact test: p "
        f"{'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}{' (Holm-adjusted)' if number_of_pairs > 1 else ''}. "
        + (f"{better} is significantly better." if significant else "The difference is not significant.")
    )


def _method(first: Predictions) -> str:
    text = (
        "Differences are paired: each resample weights the same images for all models. Holm's method adjusts the "
        "p-values for the number of pairs; intervals are not adjusted."
    )
    return f"{text} McNemar's test assumes independent images; the intervals do not." if first.has_subjects else text
