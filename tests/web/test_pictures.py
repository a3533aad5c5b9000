"""The pictures of README.md: the demo in Chromium, at two widths in two themes.

They are written into docs/pictures where WRITE_PICTURES is set, as `make pictures` does, and taken and dropped otherwise.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.answers import TICKETS
from benchmarks.server_process import ROOT, TRIAGE, serve
from tests.web.browser import needs_chromium, open_page, violations

pytestmark = [needs_chromium, pytest.mark.model]

FOLDER = ROOT / "docs" / "pictures"
THEMES = ("light", "dark")
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
WIDE = {"viewport": {"width": 1200, "height": 960}}
# The examples of the page, by the name of the picture; they are the questions that README.md shows the answers to.
ASKED = {"answered": "A clear one", "withheld": "Two queues could claim it", "foreign": "From elsewhere"}
OUTCOMES = {"answered": "answered", "withheld": "withheld", "foreign": "withheld"}
NAMES = {*ASKED, "card", "familiar", "table", "phone"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("demo") / "log", timeout_s="600") as running:
        yield running.url


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def take(page: Page, name: str, theme: str, tmp_path: Path) -> None:
    """Take a picture of a page, with which nothing may be wrong."""
    page.mouse.move(0, 0)
    assert violations(page) == []
    folder = FOLDER if os.environ.get("WRITE_PICTURES") else tmp_path
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{name}-{theme}.png", animations="disabled")


def tickets(name: str, n: int) -> list[str]:
    """Return the first texts of a file of tickets."""
    lines = (TRIAGE / f"{name}.jsonl").read_text().splitlines()[:n]
    return [json.loads(line)["prompt"] for line in lines]


def ask(page: Page, example: str) -> None:
    page.get_by_role("button", name=example).click(timeout=60_000)
    page.locator("#results:not([aria-busy]) .answer").wait_for(timeout=60_000)


@pytest.mark.parametrize("name", ASKED)
def test_the_demos_answers(browser: Browser, url: str, theme: str, name: str, tmp_path: Path) -> None:
    with open_page(browser, url, color_scheme=theme, **WIDE) as watched:
        page = watched.page
        ask(page, ASKED[name])
        question = {"answered": "sure", "withheld": "ambiguous", "foreign": "out_of_scope"}[name]
        expect(page.get_by_label("Text", exact=True)).to_have_value(TICKETS[question])
        assert page.locator(".verdict").get_attribute("data-outcome") == OUTCOMES[name]
        take(page, name, theme, tmp_path)


def test_the_demos_card(browser: Browser, url: str, theme: str, tmp_path: Path) -> None:
    with open_page(browser, url, color_scheme=theme, **WIDE) as watched:
        watched.page.get_by_role("link", name="Card").click()
        heading = watched.page.get_by_role("heading", name="What its calibration proves")
        heading.evaluate("(heading) => scrollTo(0, heading.getBoundingClientRect().top + scrollY - 80)")
        expect(watched.page.get_by_role("radio", checked=True)).to_be_visible()
        take(watched.page, "card", theme, tmp_path)


def test_familiar_and_foreign_texts_on_its_card(browser: Browser, url: str, theme: str, tmp_path: Path) -> None:
    with open_page(browser, url, color_scheme=theme, **WIDE) as watched:
        page = watched.page
        for prompts in (tickets("test", 80), tickets("out_of_scope", 20)):
            sent = page.request.post("/v1/predict", data={"inputs": [{"prompt": prompt} for prompt in prompts]})
            assert sent.ok
        page.get_by_role("link", name="Card").click()
        unfamiliar = page.get_by_text(re.compile(r"\d+ of [\d,]+ texts so far are unfamiliar"))
        expect(unfamiliar).to_be_visible()
        found, asked = re.findall(r"\d+", unfamiliar.inner_text())
        assert 10 * int(asked) < 100 * int(found) < 30 * int(asked)  # a fifth of the texts is foreign
        heading = page.get_by_role("heading", name="Familiar and foreign texts")
        heading.evaluate("(heading) => scrollTo(0, heading.getBoundingClientRect().top + scrollY - 80)")
        take(page, "familiar", theme, tmp_path)


def test_a_table_of_its_tickets(browser: Browser, url: str, theme: str, tmp_path: Path) -> None:
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        prompts = [*tickets("test", 9), *tickets("out_of_scope", 9)]
        csv.writer(file).writerows([["prompt"], *([prompt] for prompt in prompts)])
    with open_page(browser, url, color_scheme=theme, **WIDE) as watched:
        page = watched.page
        page.get_by_role("link", name="Table").click()
        page.get_by_label("CSV file").set_input_files(tmp_path / "tickets.csv")
        page.get_by_role("button", name="Answer the rows").click()
        expect(page.locator("#view-table [role=status]")).to_contain_text("18 of 18 rows", timeout=60_000)
        take(page, "table", theme, tmp_path)


def test_an_abstention_on_a_phone(browser: Browser, url: str, theme: str, tmp_path: Path) -> None:
    with open_page(browser, url, color_scheme=theme, **PHONE) as watched:
        ask(watched.page, ASKED["withheld"])
        watched.page.locator(".answer").evaluate(
            "(answer) => scrollTo(0, answer.getBoundingClientRect().top + scrollY - 100)"
        )
        take(watched.page, "phone", theme, tmp_path)


def test_the_documents_show_every_picture_in_both_themes() -> None:
    files = {f"{name}-{theme}.png" for name in NAMES for theme in THEMES}
    assert {file.name for file in FOLDER.iterdir()} == files
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "playground.md").read_text()
    assert set(re.findall(r"pictures/([\w-]+\.png)", text)) == files
