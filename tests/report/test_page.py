import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from sitout._report import html
from sitout._report._format import MINUS

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"


class Page(HTMLParser):
    """Collects the tags of a page, and its text outside of scripts and styles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.words, self.scripts, self.raw = [], [], [], ""
        self.feed(source)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.raw = ""

    def handle_data(self, data):
        if self.raw == "script":
            self.scripts.append(data)
        elif not self.raw:
            self.words.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def source(study):
    return html(study)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def figures(source):
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', source, re.S)
    return json.loads(data[1])


def test_every_arm_and_both_verdicts_stand_on_the_page(study, page):
    assert study.verdict in page.text
    assert study.verdict_best_other in page.text
    for arm in study.arms:
        assert arm.name in page.text


def test_nothing_is_loaded_from_anywhere(page):
    found = [
        attributes[key]
        for _, attributes in page.tags
        for key in ("src", "href")
        if key in attributes
    ]
    assert found == ["data:,"]
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_numbers_on_the_page_are_those_of_the_study(study, page):
    for arm in study.arms:
        for measure in (arm.test_error, arm.validation_error, arm.train_error):
            assert f"{100 * measure.mean:.2f} %" in page.text
            assert f"[{100 * measure.low:.2f}, {100 * measure.high:.2f}]" in page.text
        if arm.versus_none:
            assert f"{100 * arm.versus_none.mean:+.2f}".replace("-", MINUS) in page.text


def test_dots_of_the_chart_are_the_differences_of_the_repeats(study, source):
    traces = figures(source)["differences"]["error"]["data"]
    for arm, dots in zip(study.arms[1:], traces[::3], strict=True):
        assert dots["x"] == pytest.approx([100 * value for value in arm.versus_none.values])


def test_curves_of_the_chart_are_those_of_the_study(study, source):
    shown = figures(source)
    for arm in study.arms:
        loss, silence = [
            [
                t
                for t in shown[chart][m]["data"]
                if t["meta"]["arm"] == arm.name and "hovertemplate" in t
            ]
            for chart, m in (("learning", "loss"), ("silencing", "error"))
        ]
        assert [t["y"] for t in loss] == [
            pytest.approx(arm.learning[name].mean) for name in ("train_loss", "validation_loss")
        ]
        assert silence[0]["y"] == pytest.approx([100 * v for v in arm.silencing.mean])


def test_an_arm_has_one_colour_in_all_charts(study, source):
    shown = figures(source)
    for name in ("dropout", "none"):
        colours = {
            t["line"]["color"]
            for chart in ("learning", "silencing")
            for t in shown[chart]["error"]["data"]
            if t["meta"]["arm"] == name and "color" in t.get("line", {})
        }
        assert len(colours) == 1
        assert f'style="--arm: {colours.pop()}"' in source


def test_headings_descend_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_a_reader_of_the_screen_finds_language_labels_and_scopes(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    charts = [a for a in page.all("div") if a.get("id", "").startswith("chart-")]
    assert len(charts) == 3
    assert all(chart["aria-label"] for chart in charts)


def test_user_text_is_escaped_everywhere(study):
    data = replace(
        study.data, name=EVIL, target=EVIL, classes=[EVIL] * 20, notes=[EVIL], fingerprint=EVIL
    )
    worst = replace(study.arms[1].worst_unit, site=EVIL)
    arms = [study.arms[0], replace(study.arms[1], worst_unit=worst)]
    text = {"verdict": EVIL, "verdict_best_other": EVIL, "unit": EVIL, "network": EVIL}
    evil = replace(
        study, data=data, arms=arms, plan={EVIL: EVIL, "l": [EVIL]}, versions={EVIL: EVIL}, **text
    )
    source = html(evil)
    clean = Page(html(replace(study, arms=study.arms[:2])))
    page = Page(source)
    assert EVIL in page.text
    assert "<script>alert" not in source
    assert len(page.all("script")) == len(clean.all("script")) == 3
    assert not page.all("img")
    title = figures(source)["differences"]["error"]["layout"]["xaxis"]["title"]["text"]
    assert "<" not in title
    assert "</script>" in unescape(title)


@pytest.mark.parametrize("names", [("none",), ("dropout",), ("none", "dropout")])
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_few_arms_and_few_epochs_make_a_page(make_study, names, epochs):
    study = make_study(names, epochs=epochs)
    source = html(study)
    assert ("differences" in figures(source)) == (len(names) == 2)
    assert study.verdict in Page(source).text


def test_a_network_without_hidden_units_has_no_silencing_chart(study):
    arms = [replace(arm, silencing=None, worst_unit=None) for arm in study.arms]
    source = html(replace(study, arms=arms))
    assert "silencing" not in figures(source)
    assert "silenced" not in Page(source).text


def test_differences_of_exactly_zero_make_a_page(study):
    none = replace(study.arms[1].versus_none, mean=0.0, low=0.0, high=0.0, values=[0.0] * 8)
    same = replace(study.arms[1], versus_none=none)
    source = html(replace(study, arms=[study.arms[0], same]))
    low, high = figures(source)["differences"]["error"]["layout"]["xaxis"]["range"]
    assert low < 0 < high
    assert "0.00[0.00, 0.00]" in Page(source).text


def test_regression_is_written_in_the_unit_of_the_target(make_regression):
    study = make_regression()
    source = html(study)
    page = Page(source)
    assert "root mean squared errors, in units of strength" in page.text
    assert "points" not in page.text.replace(study.verdict_best_other, "")
    dots = figures(source)["differences"]["error"]["data"][0]["x"]
    assert dots == pytest.approx(study.arms[1].versus_none.values)
