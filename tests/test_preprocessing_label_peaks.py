"""The labelling program: refusals, the served page, and the page in headless Chromium."""

import contextlib
import http.client
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, own_address
from raw_data import random_gray, write_image
from test_preprocessing_labelling_page import SEQUENCES, write_download

from benchmarks import web
from preprocessing.inventory import write_inventory

UNLABELLED = [name for name, (_, code) in SEQUENCES.items() if code is None]


@pytest.fixture
def data(tmp_path) -> Path:
    """A data root with the data set `ck`, of peaks only; its download is CK+."""
    write_inventory(tmp_path / "data" / "ck", write_download(tmp_path / "CK+"))
    return tmp_path / "data"


@contextlib.contextmanager
def started(data: Path, *options: object, name: str = "ann") -> Iterator[tuple[subprocess.Popen, str, str]]:
    """Start the program; give its process, what it printed before the address, and the address."""
    command: list[str] = [sys.executable, "-m", "preprocessing.label_peaks", "--dataset", "ck", "--data", str(data)]
    command += ["--annotator", name, *(str(option) for option in options)]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert program.stdout is not None
    printed = ""
    try:
        for line in program.stdout:
            if line.startswith("open "):
                yield program, printed, line.split()[1]
                break
            printed += line
        else:
            raise AssertionError(printed)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


def refused(run_step, data: Path, expected: str, *options: object) -> None:
    done = run_step("preprocessing.label_peaks", "--dataset", "ck", "--data", data, "--annotator", "ann", *options)
    assert done.returncode == 2 and expected in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_missing_inventory_and_unsuitable_downloads_are_refused(run_step, data, tmp_path):
    refused(run_step, tmp_path, "run first: python -m preprocessing.step1_inventory --dataset ck")
    write_image(tmp_path / "other" / "happy" / "1.png", random_gray(0))
    refused(run_step, data, "the page is for CK+ sequences", "--source", tmp_path / "other")
    refused(run_step, data, "nowhere does not exist", "--source", tmp_path / "nowhere")
    for name in UNLABELLED:
        shutil.rmtree(tmp_path / "CK+" / "cohn-kanade-images" / name)
    refused(run_step, data, "nothing to label: all 1 sequences")
    (tmp_path / "CK+").rename(tmp_path / "moved")
    refused(run_step, data, "give its place with --source")


def test_labels_that_do_not_fit_are_refused_and_kept(run_step, data):
    file = data / "ck" / "labels" / "ann.csv"
    file.parent.mkdir()
    content = "sequence,emotion,annotator,time\nS777/001,fear,ann,2026-01-01T00:00:00Z\n"
    file.write_text(content)
    refused(run_step, data, "sequence 'S777/001' is not in the data set")
    assert file.read_text() == content and list(file.parent.iterdir()) == [file]


def get(address: str, path: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=20)
    connection.request("GET", parts.path if path is None else path)
    response = connection.getresponse()
    return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}


def test_program_serves_this_machine_only_and_reports_what_is_missing(run_step, data, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "CK+"), "zip", tmp_path / "CK+")
    shutil.rmtree(tmp_path / "CK+" / "cohn-kanade-images" / "S010" / "001")
    with started(data) as (program, printed, address):
        assert "2 sequences to label" in printed
        assert "1 of them have missing frames (S010/002)" in printed
        assert "1 unlabelled sequences of the inventory have no frames there (S010/001)" in printed
        status, page, _ = get(address)
        assert status == 200 and b"S005/002" in page
        status, body, headers = get(address, path="/")
        assert (status, body) == (404, b"") and "server" not in headers
        with pytest.raises(OSError), socket.create_connection((own_address(), urlsplit(address).port), timeout=5):
            pass
        refused(run_step, data, "or give another --annotator")
        with started(data, "--source", packed, name="bob") as (other, _, archive_address):
            assert get(archive_address + "frame/0/0")[0] == 200
            other.send_signal(signal.SIGINT)
            other.wait(30)
        program.send_signal(signal.SIGINT)
        rest = program.stdout.read() if program.stdout else ""
    assert "ann has labelled 0 of 2 sequences" in rest
    assert (
        f"python -m preprocessing.step1_inventory --dataset ck --data {data} --source {tmp_path / 'CK+'} --labels "
        in rest
    )
    assert urlsplit(address).path not in rest  # no access log
    assert sorted(path.name for path in (data / "ck" / "labels").iterdir()) == ["ann.csv", "bob.csv"]


# ---- the page in a browser


@pytest.fixture
def chromium() -> Iterator:
    """Headless Chromium; gives a function that opens a window of its own at an address."""
    with web.chromium(None, "--window-size=1200,1000", with_requests=True) as browser:
        yield browser


class Page:
    """A browser window with the labelling page."""

    def __init__(self, browser, address: str):
        browser.switch_to.new_window("window")
        self.browser, self.handle = browser, browser.current_window_handle
        browser.get(address)

    def text(self, part: str) -> str:
        self.browser.switch_to.window(self.handle)
        return self.browser.execute_script("return document.getElementById(arguments[0]).innerText", part)

    def wait(self, part: str, expected: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        def is_shown(_) -> bool:
            ready = self.browser.execute_script("return !document.querySelector('#emotions button').disabled")
            return expected in self.text(part) and (ready or part == "error")

        WebDriverWait(self.browser, 60).until(is_shown, f"{part}: {self.text(part)!r}, not {expected!r}")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        self.browser.switch_to.window(self.handle)
        ActionChains(self.browser).send_keys(*keys).perform()

    def run(self, script: str) -> Any:
        self.browser.switch_to.window(self.handle)
        return self.browser.execute_script(script)


@pytest.mark.system
def test_labelling_by_keyboard(data, chromium):
    with started(data) as (program, _, address):
        page = Page(chromium, address)
        page.wait("title", "S005/002")
        for key, caption in ((ARROW_LEFT, "frame 2 of 3"), (HOME, "frame 1 of 3"), (" ", "frame 3 of 3: peak")):
            page.press(key)
            page.wait("shown-caption", caption)
        page.press("3")
        page.wait("title", "S010/001")
        page.wait("status", "Saved: S005/002 fear.")
        page.press("0")
        page.wait("title", "S010/002")
        assert "Frames missing in the download: 1, 4-5, 8." in page.text("missing")
        page.press("z")
        page.wait("status", "Undone: S010/001 unsure.")
        rows = [row.split(",") for row in (data / "ck/labels/ann.csv").read_text().splitlines()[1:]]
        assert [row[:2] for row in rows] == [["S005/002", "fear"], ["S010/001", "unsure"], ["S010/001", "undo"]]
        page.press("p")
        page.wait("title", "S005/002")
        page.press("1")  # a changed label stays in view
        page.wait("status", "Saved: S005/002 anger")
        page.run("location.reload()")
        page.wait("title", "S005/002")
        pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map(one => one.dataset.emotion).join()"
        assert page.run(pressed) == "anger" and "1 of 3" in page.text("done")
        page.press("o")
        page.wait("title", "S010/001")
        page.run("document.querySelector('[data-emotion=neutral]').focus()")
        page.press(ENTER)
        page.wait("title", "S010/002")
        page.press("8")
        page.wait("status", "Saved: S010/002 contempt")
        assert page.run("return !document.getElementById('finished').hidden") and "--labels" in page.text("finished")
        program.kill()
        program.wait()
        page.press("5")
        page.wait("error", "Not saved: the program does not respond.")
    requests = str(chromium.get_log("performance"))
    hosts = {part.split("/")[0] for part in requests.replace("\\", "").split('"url":"http://')[1:]}
    assert hosts == {urlsplit(address).netloc}


@pytest.mark.system
def test_two_annotators_settle_a_disagreement(data, chromium):
    with started(data) as (_, _, ann_at), started(data, name="bob") as (_, _, bob_at):
        ann, bob = Page(chromium, ann_at), Page(chromium, bob_at)
        for page, keys in ((ann, "345"), (bob, "344")):
            for key, name in zip(keys, UNLABELLED, strict=True):
                page.wait("title", name)
                page.press(key)
                page.wait("status", f"Saved: {name}")
        assert "ann and bob" in bob.text("kappas")
        assert "S010/002: ann sadness, bob happiness" in bob.text("disputed")
        bob.run("document.querySelector('#disputed button').click()")
        bob.wait("remarks", "ann says sadness.")
        bob.press("5")
        bob.wait("disputed-count", "Nothing to settle")
        assert "1.00 (n = 3)" in bob.text("kappas")
        metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert bob.run("return document.documentElement.scrollWidth <= innerWidth")


ARROW_LEFT, HOME, ENTER = "\ue012", "\ue011", "\ue007"  # WebDriver's codes of these keys
