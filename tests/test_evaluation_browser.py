"""The report as a reader's browser shows it, in headless Chromium that has no network."""

import base64
import json
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from benchmarks.web import chromium
from inference.keras_networks import save
from inference.lineage import read_hashes
from inference.model_card import read_card

pytestmark = [pytest.mark.figures, pytest.mark.system]
WIDTHS = {"laptop": 1366, "phone": 390}  # CSS pixels
CLOSED_PORT = "--proxy-server=http://127.0.0.1:9"


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, file, width: int = 800) -> None:
        """Open a file; the logs then hold this page alone."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.requests()
        self.complaints()
        self.driver.get(file.as_uri())

    def value(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def requests(self) -> list[str]:
        """Return the requests of the page beyond its own file."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent[1:] if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser():
    with chromium(None, "--hide-scrollbars", CLOSED_PORT, with_requests=True) as driver:
        yield Browser(driver)


@pytest.fixture
def report(run_step, make_dataset, tiny_model, tmp_path):
    """A report, with a banner, of a network with a convolution."""
    folder = make_dataset()
    model = tiny_model(trained_on=folder)
    hashes = read_hashes(model)
    inputs = keras.Input((24, 24, 1), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    save(keras.Model(inputs, outputs), read_card(model), model, hashes)
    roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--dataset", folder.name]
    done = run_step("evaluation.model_evaluation", *roots, "--model", model, "--split", "train")
    assert done.returncode == 0, done.stderr
    return tmp_path / "reports" / folder.name / model.stem / "train-labels" / "report.html"


def test_report_opens_whole_on_laptop_and_phone_and_on_paper_and_requests_nothing(browser, report):
    letters = "document.querySelector('p:not([class])')"
    for width in WIDTHS.values():
        browser.open(report, width)
        assert browser.requests() == [] and browser.complaints() == []
        images = browser.value("[...document.images].map(i => [i.complete && i.naturalWidth, i.clientWidth, i.alt])")
        assert len(images) == len(list(report.parent.glob("*.png"))) >= 6
        for natural, shown, description in images:
            assert natural > 400 and 250 < shown <= width and len(description) > 10
        assert browser.value("document.documentElement.scrollWidth") <= width  # no scrolling sideways
        assert browser.value(f"parseFloat(getComputedStyle({letters}).fontSize)") >= 14
        data = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
        screenshot = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert screenshot is not None and screenshot.shape[1] == width and screenshot.shape[0] >= 900
        assert (screenshot > 250).mean() > 0.5 and (screenshot < 100).mean() > 0.01  # dark letters on white
        banners = browser.value("document.querySelectorAll('section .banner').length")
        assert banners >= browser.value("document.querySelectorAll('section').length")

    browser.open(report)
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert base64.b64decode(printed).count(b"/Type /Page\n") > 2
    margin = browser.value("[...document.styleSheets[0].cssRules].find(r => r.type === CSSRule.PAGE_RULE).cssText")
    assert "@top-left" in margin and "NOT A HELD-OUT SCORE" in margin


def test_page_that_requests_something_or_complains_is_noticed(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>Text<img src='http://example.org/a.png'><script>console.error('oh'); nowhere()</script>")
    browser.open(page)
    assert browser.requests() == ["http://example.org/a.png"]
    complaints = " ".join(browser.complaints())
    assert "oh" in complaints and "nowhere" in complaints
