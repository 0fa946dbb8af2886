"""Rules of the whole project."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from common.files import file_hash

LOWER = ["configuration", "common", "inference", "preprocessing", "training", "evaluation"]  # each imports earlier ones
MAY_IMPORT = {
    **{stage: set(LOWER[:index]) for index, stage in enumerate(LOWER)},
    "realtime": {"configuration", "common", "inference", "preprocessing"},
    "benchmarks": {*LOWER, "realtime"},
}
SOURCES = [ROOT / "configuration.py", *(f for stage in MAY_IMPORT for f in sorted((ROOT / stage).rglob("*.py")))]
COMMANDS = [file for file in SOURCES if "if __name__ ==" in file.read_text(encoding="utf-8")]
MAX_LINES, MAX_FILES = 400, 14


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_imports_run_one_way(stage):
    for file in [file for file in SOURCES if file.relative_to(ROOT).parts[0].removesuffix(".py") == stage]:
        imports = imports_of(file)
        packages = {name.split(".")[0] for name in imports}
        assert packages & set(MAY_IMPORT) <= MAY_IMPORT[stage] | {stage}, file
        if stage == "training":  # any backend of Keras trains, and no face is detected
            allowed = {"tensorflow"} if file.stem == "models" else set()
            assert not packages & {"tensorflow", "mtcnn"} - allowed, file
            assert not imports & {"inference.face_detector", "preprocessing.datasets.sample"}, file


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("configuration", "numpy cv2 pandas keras tensorflow typer"),
        ("inference", "numpy cv2 pandas keras tensorflow typer ai_edge_litert"),
        ("inference.face_detector", "pandas keras tensorflow mtcnn matplotlib"),
        ("inference.emotion_classifier", "pandas keras tensorflow matplotlib"),
        ("realtime.webcam", "keras tensorflow mtcnn matplotlib pandas scipy sklearn"),
        ("evaluation.model_evaluation", "keras tensorflow mtcnn"),
    ],
)
def test_importing_is_cheap(module, heavy):
    code = f"import sys, {module}; print(*(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_has_help(file, run_step):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    done = run_step(module, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout and not done.stderr


def test_files_do_not_edit_the_import_path():
    assert not [file for file in SOURCES if "sys.path" in file.read_text(encoding="utf-8")]


def test_modules_and_packages_stay_small():
    assert not [file for file in SOURCES if len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES]
    counts = Counter(file.parent for file in SOURCES if file.name != "__init__.py")
    assert not {folder for folder, count in counts.items() if count > MAX_FILES}


@pytest.mark.parametrize("name", ["pretrained", "fer2013"])
def test_quoted_test_score_belongs_to_the_released_network(name):
    model, readme = ROOT / "models" / f"{name}.keras", (ROOT / "README.md").read_text(encoding="utf-8")
    scores = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))["scores"]
    measured = [s for s in scores if s["split"] == "test" and s["network_sha256"] == file_hash(model)]
    rows = [line for line in readme.splitlines() if f"`models/{name}.keras`" in line and "PrivateTest" in line]
    quoted = f"{100 * measured[0]['accuracy']:.1f} %" if measured else "PrivateTest: not yet measured"
    assert rows and quoted in rows[0]
    assert not measured or f"commit {measured[0]['commit']}" in readme


def test_extra_all_equals_the_list_of_all_requirements():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["dynamic"]
    files = [*settings["dependencies"]["file"], *settings["optional-dependencies"]["all"]["file"]]
    assert (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() == [f"-r {file}" for file in files]


def test_docs_mention_only_files_and_options_that_exist():
    docs = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in docs)
    code = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES)
    defined = set(re.findall(r'(--[a-z0-9-]+)(?=[" /])', code)) | {"--help", "--version", "--generate"}  # of Ray
    defined |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", code, re.M)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - defined == set()
    files = re.findall(
        r"`?((?:tests|docs|common|inference|preprocessing|training|evaluation|realtime)/[\w/]+\.\w+)", text
    )
    assert not [file for file in files if not (ROOT / file).is_file()]
    links = [
        (file, link) for file in docs for link in re.findall(r"\]\(([\w./-]+?\.\w+)(?:#[\w-]+)?\)", file.read_text())
    ]
    assert not [link for file, link in links if not (file.parent / link).is_file()]
