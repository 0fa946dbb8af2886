"""The report as a reader's browser shows it. Chromium is asked over a pipe (DevTools protocol), without any network."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from inference.keras_networks import save
from inference.lineage import read_hashes
from inference.model_card import read_card

pytestmark = pytest.mark.figures
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60  # seconds that Chromium may take for an reply
WIDTHS = {"laptop": 1366, "phone": 390}  # CSS pixels
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--proxy-server=http://127.0.0.1:9",  # a closed port
)  # fmt: skip


class Browser:
    """One page of a headless Chromium, and all that it reported."""

    def __init__(self, program: str, profile: Path):
        low_read, self._out = os.pipe()
        self._in, low_write = os.pipe()
        # Chromium listens on descriptor 3 and answers on 4; the pipes get numbers that these cannot overwrite.
        to_browser, from_browser = (fcntl.fcntl(low, fcntl.F_DUPFD, 50) for low in (low_read, low_write))
        command = ["bash", "-c", f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"', "-", program, *OPTIONS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        for descriptor in (low_read, low_write, to_browser, from_browser):
            os.close(descriptor)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], PATIENCE)[0], "Chromium does not reply"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, file: Path, width: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        time.sleep(0.3)  # whatever else the page may still want
        self.value("1")

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> np.ndarray:
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        return image

    def requests(self) -> list[str]:
        """Return the requests of the page beyond its own file."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent[1:] if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in methods]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path):
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.fail("no Chromium here; on Debian or Ubuntu: sudo apt-get install chromium")
    started = Browser(program, tmp_path / "profile")
    yield started
    started.close()


@pytest.fixture
def report(run_step, make_dataset, tiny_model, tmp_path):
    """A report, with a banner, of a network with a convolution."""
    import keras

    folder = make_dataset()
    model = tiny_model(trained_on=folder)
    hashes = read_hashes(model)
    inputs = keras.Input((24, 24, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    save(keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x)), read_card(model), model, hashes)
    roots = ["--data", folder.parent, "--reports", tmp_path / "reports"]
    options = ["--dataset", folder.name, "--model", model, "--split", "train"]
    done = run_step("evaluation.model_evaluation", *options, *roots)
    assert done.returncode == 0, done.stderr
    return tmp_path / "reports" / folder.name / model.stem / "train-labels" / "report.html"


@pytest.mark.system
@pytest.mark.parametrize("device", WIDTHS)
def test_the_report_opens_whole_on_laptop_and_phone_and_asks_for_nothing(browser, report, device):
    width = WIDTHS[device]
    browser.open(report, width)
    assert browser.requests() == [] and browser.complaints() == []
    images = browser.value("[...document.images].map(i => [i.complete && i.naturalWidth, i.clientWidth, i.alt])")
    assert len(images) == len(list(report.parent.glob("*.png"))) >= 6
    for natural, shown, description in images:
        assert natural > 400 and 250 < shown <= width and len(description) > 10
    assert browser.value("document.documentElement.scrollWidth") <= width  # nothing makes the page scroll sideways
    letters = "document.querySelector('p:not([class])')"
    assert browser.value(f"parseFloat(getComputedStyle({letters}).fontSize)") >= 14
    for script in ("document.body", letters):
        assert browser.value(f"getComputedStyle({script}).color") == "rgb(26, 26, 26)"
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    screenshot = browser.screenshot()
    assert screenshot.shape[1] == width and screenshot.shape[0] >= 900
    assert (screenshot > 250).mean() > 0.5 and (screenshot < 100).mean() > 0.01  # dark letters on white
    banners = browser.value("document.querySelectorAll('section .banner').length")
    assert banners >= browser.value("document.querySelectorAll('section').length")


@pytest.mark.system
def test_the_margin_of_every_printed_page_says_that_the_model_was_trained_on_this_split(browser, report):
    browser.open(report, 800)
    pdf = base64.b64decode(browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.count(b"/Type /Page\n") > 2
    margin = browser.value("[...document.styleSheets[0].cssRules].find(r => r.type === CSSRule.PAGE_RULE).cssText")
    assert "@top-left" in margin and "NOT A HELD-OUT SCORE" in margin


@pytest.mark.system
def test_a_page_that_asks_for_something_or_complains_would_be_noticed(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>Text<img src='http://example.org/a.png'><script>console.error('oh'); nowhere()</script>")
    browser.open(page, 800)
    assert browser.requests() == ["http://example.org/a.png"]
    assert any("oh" in text for text in browser.complaints()) and any(
        "nowhere" in text for text in browser.complaints()
    )
