"""The page in a real browser, from disk: it draws, stays silent, and asks the network nothing."""

import json
import shutil
import tempfile
from dataclasses import replace

import pytest

from sitout._report import html

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture(scope="module", params=["helps", "nothing", "regression"])
def opened(request, browser, make_study, make_regression, tmp_path_factory):
    """A page that is open in the browser, 1200 pixels wide."""
    found = {
        "helps": make_study,
        "nothing": lambda: make_study(("none",), epochs=1),
        "regression": lambda: make_regression(unit="units of " + "long_" * 60),
    }[request.param]()
    long = replace(found.data, name="no_break_in_this_name_" * 20)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html(replace(found, data=long)), encoding="utf-8")
    resize(browser, 1200)
    browser.get(path.as_uri())
    return browser


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def charts(browser):
    return browser.find_elements("css selector", ".chart")


def test_every_chart_has_drawn_its_traces(opened):
    assert charts(opened)
    for chart in charts(opened):
        assert chart.find_elements("css selector", "svg.main-svg")
        assert chart.find_elements("css selector", ".trace path")


def test_buttons_hide_arms_and_change_the_measure(opened):
    learning = opened.find_element("id", "chart-learning")

    def drawn():
        return len(learning.find_elements("css selector", ".trace"))

    def click(selector):
        button = opened.find_element("css selector", f'[data-chart="learning"]{selector}')
        opened.execute_script("arguments[0].click()", button)

    before = drawn()
    click('[data-arm="none"]')
    assert drawn() < before
    click('[data-arm="none"]')
    assert drawn() == before
    click('[data-measure="loss"]')
    assert "loss" in learning.text
    click('[data-measure="error"]')
    assert "error" in learning.text


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_is_never_wider_than_the_window(opened, width):
    resize(opened, width)
    opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    widest = """const charts = [...document.querySelectorAll(".main-svg")];
        const ends = charts.map(chart => chart.getBoundingClientRect().right);
        return Math.max(document.documentElement.scrollWidth, ...ends)"""
    WebDriverWait(opened, 10).until(lambda browser: browser.execute_script(widest) <= width)


def test_the_console_stays_empty_and_no_request_leaves(opened):
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and not event["params"]["documentURL"].startswith("chrome:")  # the browser's own first tab
    ]
    assert any(url.startswith("file:") for url in requests)
    assert all(url.startswith(LOCAL) for url in requests)
    assert opened.get_log("browser") == []
