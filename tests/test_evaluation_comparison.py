import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cards import model_card
from report_helpers import change_split, with_swapped_votes

from common.emotions import LabelRule
from common.errors import InputError
from configuration import EVALUATION, EvaluationConfig
from evaluation import evaluator, sequences
from evaluation.predictions import Predictions
from evaluation.sections.comparison import check_aligned, comparison_section
from evaluation.sections.cross_validation import gap
from evaluation.sequence_predictions import SHARES, SequencePredictions
from training.lineage import Exposure

LABELS = ("anger", "happiness")
QUICK = EvaluationConfig(resamples=20)


def predictions_of(name: str, seed: int, rows: pd.DataFrame) -> Predictions:
    """Return the predictions of a model that guesses."""
    probabilities = np.random.default_rng(seed).dirichlet([1, 1], len(rows))
    images, unseen = np.zeros((len(rows), 8, 8, 1), np.uint8), np.zeros(len(rows), bool)
    card, exposure = model_card(dataset="elsewhere"), Exposure(unseen, unseen, unseen, unseen, complete=True)
    rule, file = LabelRule(LABELS, (0, 1), ""), Path(f"{name}.keras")
    return Predictions(name, file, card, "stripes", "test", rows, images, rule, 0, probabilities, exposure)


@pytest.mark.parametrize("change", ["order", "labels", "images", "fewer"])
def test_paired_comparisons_refuse_rows_that_do_not_align(tmp_path, change):
    rows = pd.DataFrame({"path": [f"{number}.png" for number in range(20)], "emotion": LABELS * 10})
    rows = rows.assign(subject="", pixel_hash="", label_source="dataset")
    others = {
        "order": rows[::-1].reset_index(drop=True),
        "labels": rows.assign(emotion="anger"),
        "images": rows.assign(path="other/" + rows["path"]),
        "fewer": rows[:-1],
    }
    first, second = predictions_of("a", 1, rows), predictions_of("b", 2, others[change])
    with pytest.raises(InputError, match="a and b were not scored on the same images"):
        comparison_section([first, second], tmp_path, QUICK)
    if change in ("order", "labels"):  # `gap` itself restricts both to the images that both predicted
        with pytest.raises(InputError, match="evaluate both on one split"):
            gap(first, second, QUICK)
    check_aligned([first, predictions_of("c", 3, rows)])
    assert not list(tmp_path.iterdir())


def test_sequences_have_a_p_value_of_accuracy_alone_and_refuse_another_order(tmp_path):
    random, names = np.random.default_rng(0), [f"S{number}" for number in range(30)]
    rows = pd.DataFrame({"sequence": names, "subject": names, "emotion": ["anger", "happiness"] * 15})
    draws = random.dirichlet([1, 1], (2, len(SHARES), 30))
    networks = [
        SequencePredictions(name, LABELS, draw, np.array(names, object))
        for name, draw in zip(("sequence", "peak"), draws, strict=True)
    ]
    found = sequences.write_report(networks, rows, LABELS, [], "waves", tmp_path / "test", QUICK, held_out=True)
    p_values = {row["score"]: row["p_value"] for row in found["differences"]}
    stored = json.loads((tmp_path / "test" / "metrics.json").read_text())["differences"]
    assert 0 < p_values["accuracy"] <= 1 and [row["p_value"] for row in stored] == [p_values["accuracy"], None]
    table = pd.read_csv(tmp_path / "test" / "differences.csv").set_index("score")["p_value"]
    assert table["accuracy"] == p_values["accuracy"] and np.isnan(table["macro_f1"])
    networks[1] = replace(networks[1], sequences=networks[1].sequences[::-1])
    with pytest.raises(InputError, match="peak was not scored on the same sequences"):
        sequences.write_report(networks, rows, LABELS, [], "waves", tmp_path / "test", QUICK, held_out=True)


def test_texts_name_the_level_that_is_configured(make_dataset, tiny_model, run_step, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "EVALUATION", replace(EVALUATION, level=0.9))
    folder = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 30)))
    change_split(folder, lambda table: with_swapped_votes(table).assign(gender=["a", "b"] * 54))
    roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--dataset", folder.name]
    options = ["--model", tiny_model(), "--groups", "gender", "--quick"]
    done = run_step("evaluation.model_evaluation", *roots, *options)
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "reports").rglob("report.html")
    for text in (done.stdout, report.read_text()):
        text = text.replace("\u00a0", " ")
        assert "90 % interval" in text and not re.search("95 % interval", text)
    # What figures say cannot be read back.
    sources = {file.name: file.read_text() for file in Path(evaluator.__file__).parent.rglob("*.py")}
    assert [name for name, text in sources.items() if re.search("95( |\u00a0|{NO_BREAK})?%", text)] == []
