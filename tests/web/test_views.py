"""The view Live, API keys, and the API page."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from blora.config import QuestionConfig
from blora.server.engines.handle import AdapterHandle
from blora.server.keys import line_of
from tests.server.fakes import FakeEngine, handle
from tests.web.browser import ask_within, needs_chromium, open_page, serving
from tests.web.conftest import HANDLES

pytestmark = needs_chromium

KEY = "key-of-the-shop"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """The address of a server that wants a key."""
    (tmp_path / "keys").write_text(line_of("shop", "predict", KEY) + "\n")
    with serving(FakeEngine(handles=HANDLES), api_keys=tmp_path / "keys") as address:
        yield address


def give_key(page: Page, key: str) -> None:
    """Give a key in the dialog."""
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()


# The live view


def test_the_live_view_counts_what_was_asked(browser: Browser) -> None:
    with serving(FakeEngine(handles=HANDLES)) as address, open_page(browser, address) as watched:
        page = watched.page
        first, *_ = ask_within(page, "p=0.95 f=0.4", "p=0.99", "p=0.5 f=0.95", "POISON")
        page.request.post("/v1/feedback", data={"prediction_id": first["id"], "label": "technical"})
        page.get_by_role("link", name="Live").click()
        live = page.locator("#view-live")
        for title, number in (("Inputs", "4"), ("Answered", "2"), ("Withheld", "1"), ("Errors", "1")):
            expect(live.locator(".tiles > div", has=page.get_by_text(title, exact=True)).locator(".big")).to_have_text(
                number
            )
        expect(live).to_contain_text("2 answered, 1 withheld: low confidence 1.")
        expect(live.locator("table").first).to_contain_text("5 %")
        expect(live.get_by_role("row").filter(has_text="1 of 2")).to_contain_text("100 %")
        expect(live.get_by_role("img", name="Histogram of the familiarity of 2 texts")).to_be_visible()


def test_the_outcomes_of_a_promise_are_those_that_the_server_asked_for(browser: Browser) -> None:
    with serving(FakeEngine(handles=HANDLES), feedback_rate=0.5) as address, open_page(browser, address) as watched:
        page = watched.page
        answers = ask_within(page, *(f"p=0.95 text {k}" for k in range(60)))
        wanted = [answer for answer in answers if answer["feedback_requested"]]
        assert 0 < len(wanted) < 60
        for answer in [*[each for each in answers if each not in wanted], *wanted[:-1]]:
            page.request.post("/v1/feedback", data={"prediction_id": answer["id"], "label": "billing"})
        page.get_by_role("link", name="Live").click()
        row = page.locator("#view-live").get_by_role("row").filter(has_text="not refuted")
        expect(row).to_contain_text(f"{len(wanted) - 1} of {len(wanted)}")


def test_metrics_on_another_port_are_explained(browser: Browser) -> None:
    with serving(FakeEngine(handles=HANDLES), metrics_port=9) as address, open_page(browser, address) as watched:
        watched.page.get_by_role("link", name="Live").click()
        expect(watched.page.locator("#view-live")).to_contain_text("The metrics are on the port of --metrics-port.")


def test_metrics_are_looked_at_only_while_they_are_on_the_screen(page: Page) -> None:
    looked: list[str] = []
    page.on("request", lambda request: looked.append(request.url) if request.url.endswith("/metrics") else None)
    page.wait_for_timeout(300)
    assert looked == []
    page.clock.install()
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#view-live .tiles")).to_be_visible()
    page.clock.fast_forward(5_000)
    expect(page.locator("#view-live")).to_contain_text("a second")
    assert len(looked) >= 2
    page.get_by_role("link", name="Table").click()
    expect(page.locator("#view-live")).to_be_hidden()
    before = len(looked)
    page.clock.fast_forward(20_000)
    page.wait_for_timeout(300)
    assert len(looked) == before


# Keys


def test_a_key_is_asked_for_and_stays_in_the_tab(browser: Browser, locked: str) -> None:
    with open_page(browser, locked) as watched:
        page = watched.page
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("This server answers only with a key")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(dialog).to_contain_text("The server did not accept the last key.")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        page.get_by_label("Text", exact=True).fill("p=0.95")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#results .said")).to_have_text("billing")
        stored = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]")
        assert json.loads(stored[0]) == {"blora-api-key": KEY}
        assert stored[1:] == ["{}", ""]
        page.reload()
        expect(page.get_by_label("Text", exact=True)).to_be_visible()
        page.get_by_role("button", name="API key").click()
        dialog.get_by_role("button", name="Cancel").click()
        assert page.evaluate("sessionStorage.getItem('blora-api-key')") == KEY
        expect(page.get_by_role("button", name="API key")).to_be_visible()


def test_another_key_leaves_the_texts_answers_and_rows_of_the_page(
    browser: Browser, locked: str, tmp_path: Path
) -> None:
    with (tmp_path / "keys").open("a") as file:
        file.write(line_of("desk", "predict", "key-of-the-desk", ["desk"]) + "\n")
        file.write(line_of("other", "predict", "another-key") + "\n")
    (tmp_path / "rows.csv").write_text("text\np=0.95\np=0.7\n")
    with open_page(browser, locked) as watched:
        page = watched.page
        give_key(page, KEY)
        page.get_by_label("Text", exact=True).fill("p=0.95")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#results .said")).to_have_text("billing")
        page.get_by_role("link", name="Table").click()
        page.get_by_label("CSV file").set_input_files(tmp_path / "rows.csv")
        page.get_by_role("button", name="Answer the rows").click()
        expect(page.locator("#view-table [role=status]")).to_contain_text("2 of 2 rows")
        page.get_by_label("Label of row 2", exact=True).select_option("technical")
        for key, models in (("another-key", ["triage", "desk", "open"]), ("key-of-the-desk", ["desk"])):
            page.get_by_role("button", name="API key").click()
            with page.expect_response("**/v1/adapters"):
                give_key(page, key)
            page.wait_for_timeout(200)
            expect(page.locator("#model option")).to_have_text(models)
            expect(page.locator("#results .said")).to_have_count(1 if len(models) > 1 else 0)
            expect(page.locator("#view-table tbody .chip")).to_have_text(["billing", "withheld"])
            expect(page.get_by_label("Label of row 2", exact=True)).to_have_value("technical")


def test_a_key_that_no_header_can_have_is_refused_in_the_dialog(browser: Browser, locked: str) -> None:
    with open_page(browser, locked) as watched:
        page = watched.page
        give_key(page, "schlüssel")
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("Got a key whose character 5 is not printable ASCII, expected letters, digits")
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        give_key(page, KEY)
        expect(page.get_by_label("Text", exact=True)).to_be_visible()


def test_without_a_key_nothing_is_shown_and_it_can_be_given_later(browser: Browser, locked: str) -> None:
    with open_page(browser, locked) as watched:
        page = watched.page
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_contain_text("This server answers only with an API key.")
        assert page.locator("#view-ask").inner_text() == ""
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_label("Text", exact=True)).to_be_visible()


def test_a_person_who_declines_is_not_asked_again_by_a_slower_request(browser: Browser, locked: str) -> None:
    with open_page(browser, locked) as watched:
        page = watched.page
        held: list[Route] = []
        page.route("**/info", lambda route: held.append(route))
        page.reload()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_contain_text("This server answers only with an API key.")
        with page.expect_response("**/info"):
            held[0].continue_()
        page.wait_for_timeout(200)
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.get_by_role("button", name="Enter a key").click()
        expect(page.get_by_role("dialog", name="API key")).to_be_visible()


# The API page


def test_the_api_page_shows_every_route_and_every_schema(page: Page) -> None:
    document = page.request.get("/openapi.json").json()
    page.goto("/docs")
    expect(page.get_by_role("heading", name="Schemas").first).to_be_visible()
    titles = {tuple(title.split()) for title in page.locator(".operation h2").all_inner_texts()}
    assert titles == {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert set(page.locator(".schema h3").all_inner_texts()) == set(document["components"]["schemas"])
    fields = page.get_by_role("region", name="Fields of PredictRequest in POST /v1/predict")
    wanted = document["components"]["schemas"]["PredictRequest"]["properties"]
    assert fields.locator("tbody tr td:first-child").all_inner_texts() == list(wanted)
    expect(fields.get_by_role("row", name="n_samples integer")).to_contain_text("at least 1")
    expect(fields.get_by_role("link", name="Policy").first).to_have_attribute("href", "#schema-Policy")


def test_the_examples_of_the_api_page_run(page: Page) -> None:
    page.goto("/docs")
    runs = {
        "POST /v1/predict": '"answer"',
        "GET /v1/adapters/{name}": '"triage"',
        "GET /metrics": "blora_requests_total",
        "GET /livez": '"ok"',
    }
    for name, part in runs.items():
        form = page.get_by_role("form", name=f"Try {name}")
        form.get_by_role("button", name=f"Run {name}").click()
        expect(form.get_by_role("status")).to_contain_text("200 OK")
        expect(form.locator("pre")).to_contain_text(part)
    form = page.get_by_role("form", name="Try POST /v1/feedback")
    form.get_by_role("button").click()
    expect(form.get_by_role("status")).to_contain_text("404")
    expect(form.locator("pre")).to_contain_text("unknown_prediction")


WORDLESS = QuestionConfig(name="late", type="predicate")
MOOD = QuestionConfig(name="mood", type="score", instructions="How does the customer feel?")


@pytest.mark.parametrize(
    "asked",
    [
        *HANDLES,
        handle("mood", "sha256:" + "7" * 64, choices=("calm", "angry"), question=MOOD),
        handle("late", "sha256:" + "8" * 64, choices=("true", "false"), question=WORDLESS),
    ],
    ids=lambda asked: asked.name,
)
def test_typed_questions_of_the_api_page_are_those_of_the_first_adapter(browser: Browser, asked: AdapterHandle) -> None:
    with (
        serving(FakeEngine(handles=(asked,)), default_adapter=asked.name) as url,
        open_page(browser, url) as watched,
    ):
        watched.page.goto("/docs")
        for name in ("POST /v1/decisions", "POST /v1/systemone"):
            form = watched.page.get_by_role("form", name=f"Try {name}")
            form.get_by_role("button", name=f"Run {name}").click()
            expect(form.get_by_role("status")).to_contain_text("200 OK")
            expect(form.locator("pre")).to_contain_text(f'"name": "{asked.name}"')


def test_the_api_page_opens_without_a_key_and_asks_for_one_to_run_something(browser: Browser, locked: str) -> None:
    with open_page(browser, locked) as watched:
        page = watched.page
        page.goto("/docs")
        form = page.get_by_role("form", name="Try GET /v1/adapters", exact=True)
        form.get_by_role("button").click()
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(form.get_by_role("status")).to_contain_text("200 OK")


def test_the_pages_ask_nobody_but_their_server(page: Page, url: str) -> None:
    asked: list[str] = []

    def note(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    page.context.route("**/*", note)
    for path in ("/", "/docs"):
        page.goto(path)
        page.wait_for_load_state("networkidle")
    assert len(asked) > 10
    assert [address for address in asked if not address.startswith(url)] == []
