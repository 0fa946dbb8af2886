"""Rules that hold the project together."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from common.files import file_hash

STAGES = ["configuration", "common", "inference", "preprocessing", "training", "evaluation", "realtime", "benchmarks"]
MAY_IMPORT = {
    stage: {"configuration", "common", "inference", "preprocessing", "training", "evaluation", "realtime"} - later
    for stage, later in {
        "inference": {"preprocessing", "training", "evaluation", "realtime"},
        "preprocessing": {"training", "evaluation", "realtime"},
        "training": {"evaluation", "realtime"},
        "evaluation": {"realtime"},
        "realtime": {"training", "evaluation"},
        "benchmarks": set(),
    }.items()
} | {"configuration": set(), "common": {"configuration"}}
SOURCES = [ROOT / "configuration.py", *(file for stage in STAGES[1:] for file in sorted((ROOT / stage).rglob("*.py")))]
STEPS = sorted(
    [file for file in SOURCES if file.name.startswith("step")]
    + [
        ROOT / "preprocessing" / "label_peaks.py",
        ROOT / "evaluation" / "suggestions.py",
        ROOT / "evaluation" / "ablation.py",
    ]
    + [ROOT / "evaluation" / "sequences.py", ROOT / "evaluation" / "segments.py"]
    + [ROOT / "evaluation" / "model_evaluation.py", ROOT / "realtime" / "webcam.py"]
)


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    stage = file.relative_to(ROOT).parts[0].removesuffix(".py")
    imported = {name.split(".")[0] for name in imports_of(file)}
    assert imported & set(STAGES) <= MAY_IMPORT[stage] | {stage}
    if stage == "training":
        one_backend = set() if file.stem == "fast_training" else {"tensorflow"}  # where it is in use: tested there
        assert not imported & (one_backend | {"mtcnn"})
        assert not imports_of(file) & {"inference.face_detector", "preprocessing.datasets.sample"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("configuration", "numpy cv2 pandas keras tensorflow typer"),
        ("inference.face_detector", "pandas keras tensorflow mtcnn matplotlib"),
        ("inference.emotion_classifier", "keras tensorflow matplotlib"),
        ("realtime.webcam", "keras tensorflow mtcnn matplotlib"),
        ("evaluation.model_evaluation", "keras tensorflow mtcnn"),
    ],
)
def test_importing_is_cheap(module, heavy):
    code = f"import sys, {module}; print(*(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("step", STEPS, ids=lambda file: file.stem)
def test_every_step_also_runs_as_a_plain_file_from_anywhere(step, tmp_path):
    done = subprocess.run([sys.executable, step, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout and not done.stderr


@pytest.mark.parametrize("name", ["pretrained", "fer2013"])
def test_quoted_private_test_score_belongs_to_the_released_network(name):
    model, readme = ROOT / "models" / f"{name}.keras", (ROOT / "README.md").read_text(encoding="utf-8")
    scores = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))["scores"]
    measured = [s for s in scores if s["split"] == "test" and s["network_sha256"] == file_hash(model)]
    rows = [
        line for line in readme.splitlines() if line.startswith(f"| `models/{name}.keras`") and "PrivateTest" in line
    ]
    quoted = f"{100 * measured[0]['accuracy']:.1f} %" if measured else "PrivateTest: not yet measured"
    assert rows and quoted in rows[0]
    assert not measured or f"commit {measured[0]['commit']}" in readme
