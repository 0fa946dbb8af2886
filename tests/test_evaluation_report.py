import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from evaluation.report.plots import canvas, save
from evaluation.report.section import Figure, Section, Table
from evaluation.report.writer import Page, Tile, read_report, report_folder, write_report

HOSTILE = "<script>alert(1)</script> & \"quotes\" </style> \\ 'x'"


class Elements(HTMLParser):
    """Collects a page's elements and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def figure(tmp_path):
    drawing, axes = canvas("a line")
    axes.plot([1, 2])
    return Figure(save(drawing, tmp_path / "report" / "line.png"), "A line.", f"It rises. {HOSTILE}")


@pytest.fixture
def write(tmp_path):
    def run(*sections, banner="", show_faces=True, **metrics):
        tiles = [Tile("accuracy", "67.4 %", "66 to 69 %")]
        page = Page(f"Title {HOSTILE}", "subtitle", banner, tiles, {"command": "x"})
        (tmp_path / "report").mkdir(exist_ok=True)
        whole = write_report(tmp_path / "report", page, list(sections), metrics, show_faces)
        return Elements((tmp_path / "report" / "report.html").read_text(encoding="utf-8")), whole

    return run


def test_page_is_self_contained_and_hostile_names_are_escaped(write, figure):
    tables = [Table(pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE]), HOSTILE)]
    page, _ = write(Section("one", HOSTILE, [HOSTILE], [HOSTILE], tables, [figure], texts=["  typed"]), banner=HOSTILE)
    assert not page.all("script") and not page.all("iframe") and page.text.count("<script>alert(1)</script>") >= 8
    assert len(page.all("style")) == 1 and page.all("section")  # the style was not ended early
    for _, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith(("#", "data:"))
    (image,) = page.all("img")
    assert image["alt"] == figure.description
    assert "default-src 'none'" in str(page.all("meta")) and "  typed" in page.text


def test_cells_of_a_table(write):
    columns = {"share": [0.674, np.nan], "count": [3588, 2], "score": [0.64552, 1.0], "yes": [True, np.bool_(False)]}
    frame = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples([("woman", "old"), ("man", "young")]))
    page, _ = write(Section("one", "One", tables=[Table(frame, "Numbers", percent=("share",))]))
    text = page.text.replace("\u00a0", " ")
    assert all(part in text for part in ("67.4 %", "3,588", "0.646", "woman × old", "yes", "no", "–"))
    assert {"scope": "row"} in page.all("th") and len(page.all("td")) == 8


def test_banner_is_in_every_section_and_printed_page(write):
    sections = [Section("one", "One"), Section("two", "Two", warnings=["Trained on this"]), Section("three", "Three")]
    page, _ = write(*sections, banner="Trained on this")
    assert page.text.count("Trained on this") == 5  # top, three sections, margin of the printed pages
    clean, _ = write(*sections[::2])
    assert "@top-left" not in clean.text and not [p for p in clean.all("p") if "banner" in p.get("class", "")]


def test_figures_of_people_are_left_out(write, figure, tmp_path):
    face = Figure(figure.file, "A face.", "A person.", shows_faces=True)
    page, whole = write(Section("one", "One", figures=[face]), show_faces=False)
    assert not page.all("img") and "Left out: it shows people" in page.text
    assert not figure.file.exists() and "line.png" not in whole["files"]


def test_metrics_are_strict_json_and_list_the_files(write, figure, tmp_path):
    folder = tmp_path / "report"
    values = {"nan": float("nan"), "array": np.array([1, 2]), "number": np.float32(0.5), "pair": (1, np.inf)}
    _, whole = write(Section("one", "One", figures=[figure], values=values), inputs={"a": 1})
    stored = json.loads((folder / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored == whole and stored["one"] == {"nan": None, "array": [1, 2], "number": 0.5, "pair": [1, None]}
    assert stored["files"] == ["line.png", "report.html"]
    assert read_report(folder, {"a": 1}) == whole
    assert read_report(folder, {"a": 2}) is None
    figure.file.unlink()
    assert read_report(folder, {"a": 1}) is None
    (folder / "metrics.json").write_text("{")
    assert read_report(folder, {"a": 1}) is None


def fill(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "metrics.json").write_text(json.dumps({"files": [f"{name}.txt" for name in files]}))


def test_report_is_replaced_as_a_whole_and_other_files_are_kept(tmp_path):
    folder = tmp_path / "best" / "test-labels"
    with report_folder(folder) as part:
        fill(part, old="old", both="old")
    (folder / "notes.txt").write_text("mine")
    with report_folder(folder) as part:
        assert (folder / "old.txt").exists()  # the earlier report stays until the new one is complete
        fill(part, new="new", both="new")
    found = {file.name: file.read_text() for file in folder.glob("*.txt")}
    assert found == {"new.txt": "new", "both.txt": "new", "notes.txt": "mine"}


@pytest.mark.parametrize("killed_after", ["writing", "first renaming", "second renaming"])
def test_report_of_a_killed_run_is_found_again(tmp_path, killed_after):
    folder, part, old = (tmp_path / name for name in ("test-labels", ".test-labels.part", ".test-labels.old"))
    for place in (folder, part):
        place.mkdir()
        fill(place, **{"earlier" if place == folder else "half": "text"})
    (folder / "notes.txt").write_text("mine")
    if killed_after != "writing":
        folder.rename(old)
    if killed_after == "second renaming":
        part.rename(folder)
    with pytest.raises(ValueError, match="fails"), report_folder(folder):
        raise ValueError("it fails")
    complete = "half" if killed_after == "second renaming" else "earlier"
    assert sorted(file.name for file in folder.iterdir()) == [f"{complete}.txt", "metrics.json", "notes.txt"]
    assert not part.exists() and not old.exists()


def test_second_process_may_not_write_the_same_report(tmp_path):
    with report_folder(tmp_path / "test-labels") as part:
        with pytest.raises(InputError, match="another process is writing"), report_folder(tmp_path / "test-labels"):
            pass
        fill(part, new="new")
    assert (tmp_path / "test-labels" / "new.txt").exists()


@pytest.mark.figures
def test_name_with_dollar_signs_is_drawn_as_text(tmp_path):
    drawing, axes = canvas(r"$\frac{$")
    axes.set_yticks([0], [r"$\frac{$"])
    assert save(drawing, tmp_path / "figure.png").stat().st_size > 1000
