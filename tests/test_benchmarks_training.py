import json

import pytest


def test_the_input_path_and_the_training_step_are_measured(make_dataset, tmp_path, run_step):
    folder = make_dataset(size=48)
    places = ["--dataset", folder.name, "--data", folder.parent]
    quick = ["--batch-size", 8, "--rounds", 2, "--batches", 2, "--steps", 2, "--precision", "float32"]
    done = run_step("benchmarks.training_input", *places, *quick, "--json", tmp_path / "new" / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert len(rows) == 4 and all(row["ratio"] > 0 for row in rows[:2])
    for row in rows:
        assert row["work"][:20] in done.stdout


def test_number_formats_are_compared_on_the_same_faces(make_dataset, tiny_model, tmp_path, run_step):
    folder, model = make_dataset(), tiny_model()
    places = ["--dataset", folder.name, "--data", folder.parent, "--model", model, "--rounds", 3]
    done = run_step("benchmarks.quantization", *places, "--json", tmp_path / "new" / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in json.loads((tmp_path / "new" / "rows.json").read_text())}
    assert list(rows) == ["float32", "float16 weights", "int8 weights", "int8"]
    assert rows["float32"]["same_answer"] == rows["float16 weights"]["same_answer"] == 1.0
    assert all(row["kilobytes"] > 0 and row["milliseconds"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["benchmarks.training_input", "--steps", "-1"], "--steps"),
        (["benchmarks.training_input", "--rounds", "0"], "--rounds"),
        (["benchmarks.quantization", "--rounds", "0"], "--rounds"),
        (["benchmarks.quantization", "--model", "none.keras"], "none.keras does not exist"),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_work(make_dataset, run_step, command, message):
    folder = make_dataset()
    done = run_step(command[0], "--dataset", folder.name, "--data", folder.parent, *command[1:])
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
