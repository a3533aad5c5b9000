"""Audits of every view by axe-core, at two widths in two themes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import needs_chromium, open_page, violations

pytestmark = needs_chromium

WIDTHS = {"wide": 1280, "phone": 360}


@pytest.fixture(params=[(width, theme) for width in WIDTHS for theme in ("light", "dark")], ids="-".join)
def sized(request: pytest.FixtureRequest, browser: Browser, url: str) -> Iterator[Page]:
    width, theme = request.param
    viewport = {"width": WIDTHS[width], "height": 800}
    with open_page(browser, url, viewport=viewport, color_scheme=theme, reduced_motion="reduce") as watched:
        watched.page.get_by_label("Text", exact=True).wait_for()
        yield watched.page


def open_all(page: Page) -> None:
    """Open every part that can be opened, so that the audit sees it."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def check(page: Page) -> None:
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth"), "it scrolls sideways"


def ask(page: Page, text: str, adapter: str) -> None:
    page.locator("#model").select_option(adapter)
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#results:not([aria-busy]) .answer, #results:not([aria-busy]) .error").first.wait_for()
    open_all(page)


def test_nothing_is_wrong_with_the_playground(sized: Page, tmp_path: Path) -> None:
    check(sized)
    for text, adapter in (("p=0.95 f=0.4", "triage"), ("p=0.7", "triage"), ("three f=0.01", "desk"), ("free", "open")):
        ask(sized, text, adapter)
        check(sized)
    for view in ("Card", "Live"):
        sized.get_by_role("link", name=view, exact=True).click()
        expect(sized.locator(f"#view-{view.lower()} .panel").first).to_be_visible()
        open_all(sized)
        check(sized)
    sized.get_by_role("link", name="Card", exact=True).click()
    sized.locator("#card-adapter").select_option("desk")
    expect(sized.get_by_role("img", name="Familiarity of the texts asked")).to_be_visible()
    open_all(sized)
    check(sized)
    sized.evaluate("location.hash = '#ask?adapter=nonesuch'")
    expect(sized.locator("#view-ask .notice")).to_be_visible()
    check(sized)
    (tmp_path / "rows.csv").write_text("text,label\np=0.95 für,billing\np=0.5,\nPOISON,\n", encoding="cp1252")
    sized.get_by_role("link", name="Table").click()
    sized.get_by_label("CSV file").set_input_files(tmp_path / "rows.csv")
    sized.get_by_role("button", name="Answer the rows").click()
    expect(sized.locator("#view-table [role=status]")).to_contain_text("3 of 3 rows")
    expect(sized.locator("#view-table .notice")).to_be_visible()
    check(sized)


def test_nothing_is_wrong_with_the_dialog_for_a_key(sized: Page) -> None:
    sized.evaluate("import('/web/api.js').then(({ askForKey }) => { askForKey(); })")
    sized.get_by_role("dialog").wait_for()
    check(sized)
    sized.get_by_label("Key", exact=True).fill("schlüssel")
    sized.get_by_role("button", name="Use this key").click()
    expect(sized.get_by_role("dialog")).to_contain_text("not printable ASCII")
    check(sized)


def test_nothing_is_wrong_with_the_api_page(sized: Page) -> None:
    sized.goto("/docs")
    expect(sized.get_by_role("heading", name="Schemas").first).to_be_visible()
    open_all(sized)
    sized.get_by_role("button", name="Run POST /v1/predict").click()
    expect(sized.get_by_text("200 OK")).to_be_visible()
    check(sized)


def test_everything_is_reached_by_the_keyboard_in_order(page: Page) -> None:
    """From the top: the link past the header, the views, the form; Enter in the text is a line, Ctrl + Enter asks."""
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert seen[:6] == ["Skip to the content", "blora", "Ask", "Card", "Table", "Live"]
    assert seen.index("model") < seen.index("text") < seen.index("Ask", 3)
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type("p=0.95")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#results .said")).to_have_text("billing")
