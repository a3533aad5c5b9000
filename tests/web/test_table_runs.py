"""Runs of the view Table that do not go smoothly: a full server, an absent one, a revoked key, and a person who stops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.server.calibrations import calibration
from tests.server.fakes import FakeEngine
from tests.web.browser import needs_chromium, open_page, serving
from tests.web.conftest import HANDLES

pytestmark = needs_chromium

N_ROWS = 40
DROPPED = """([text, name]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name));
    return data;
}"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "many.csv"
    path.write_text("text\n" + "".join(f"p=0.95 row {i}\n" for i in range(N_ROWS)))
    return path


def choose(page: Page, file: Path, adapter: str = "triage") -> None:
    page.get_by_role("link", name="Table").click()
    page.locator("#table-adapter").select_option(adapter)
    page.get_by_label("CSV file").set_input_files(file)


def start(page: Page) -> None:
    page.get_by_role("button", name="Answer the rows").click()


def status(page: Page) -> Locator:
    return page.locator("#view-table [role=status]")


def refuse(route: Route, status: int, code: str, **headers: str) -> None:
    error = {"message": "It does not.", "type": "some_error", "param": None, "code": code}
    route.fulfill(status=status, headers=headers, json={"error": error})


def texts(bodies: list[Any]) -> list[str]:
    return [body["prompt"] for body in bodies]


def test_a_full_server_is_waited_for_as_long_as_it_asks(page: Page, file: Path) -> None:
    refusals = 3
    asked: list[str] = []

    def refuse_at_first(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > refusals:
            route.continue_()
        else:
            refuse(route, 429, "queue_full", **{"retry-after": "1"})

    page.route("**/v1/predict", refuse_at_first)
    choose(page, file)
    start(page)
    expect(status(page)).to_contain_text("The server is full: going on in 1 s.")
    expect(status(page)).to_contain_text(f"{N_ROWS} of {N_ROWS} rows")
    assert len(asked) == N_ROWS + refusals


@pytest.mark.parametrize("away", ["unreachable", "not_ready", "draining", "502", "503", "504"])
def test_an_absent_server_is_waited_for_and_costs_no_row(browser: Browser, file: Path, away: str) -> None:
    with serving(FakeEngine(handles=HANDLES)) as address, open_page(browser, address) as watched:
        page = watched.page
        asked: list[str] = []

        def leave_for_a_while(route: Route) -> None:
            asked.append(route.request.url)
            if not 10 <= len(asked) < 14:
                route.continue_()
            elif away == "unreachable":
                route.abort("connectionrefused")
            elif away.isdigit():
                route.fulfill(status=int(away), content_type="text/html", body="<html>Bad Gateway</html>")
            else:
                refuse(route, 503, away)

        page.route("**/v1/predict", leave_for_a_while)
        choose(page, file)
        start(page)
        words = {"unreachable": "cannot be reached", "not_ready": "is being loaded", "draining": "is shutting down"}
        said = words.get(away, "A proxy does not reach the server")
        expect(status(page)).to_contain_text(f"{said}: going on in 1 s.")
        done = f"{N_ROWS} of {N_ROWS} rows: {N_ROWS} answered, 0 withheld, 0 failed."
        expect(status(page)).to_contain_text(done, timeout=20_000)
        watched.complaints.clear()  # Chromium tells of refused connections


def test_a_server_that_stays_away_ends_the_run_and_the_rest_can_be_asked_later(browser: Browser, file: Path) -> None:
    with serving(FakeEngine(handles=HANDLES)) as address, open_page(browser, address) as watched:
        page = watched.page
        bodies: list[Any] = []
        gone = [True]

        def answer_twelve(route: Route) -> None:
            if gone[0] and len(bodies) == 12:
                route.abort("connectionrefused")
                return
            bodies.append(route.request.post_data_json)
            route.continue_()

        page.route("**/v1/predict", answer_twelve)
        page.clock.install()
        choose(page, file)
        start(page)
        expect(status(page)).to_contain_text("12 of 40 rows: 12 answered, 0 withheld, 0 failed. The server cannot be")
        for _ in range(60):
            page.clock.fast_forward(31_000)
            page.wait_for_timeout(30)
        expect(status(page)).to_contain_text("12 of 40 rows: 12 answered, 0 withheld, 0 failed. The run has stopped")
        gone[0] = False
        start(page)
        page.clock.fast_forward(1_000)
        expect(status(page)).to_contain_text("40 of 40 rows: 40 answered, 0 withheld, 0 failed.")
        assert len(bodies) == len(set(texts(bodies))) == N_ROWS
        watched.complaints.clear()  # Chromium tells of refused connections


def test_an_absent_server_does_not_keep_a_run_from_being_stopped(browser: Browser, file: Path) -> None:
    with serving(FakeEngine(handles=HANDLES)) as address, open_page(browser, address) as watched:
        page = watched.page
        page.route("**/v1/predict", lambda route: refuse(route, 503, "draining"))
        choose(page, file)
        start(page)
        expect(status(page)).to_contain_text("The server is shutting down: going on in")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Answer the rows")).to_be_focused()
        expect(status(page)).to_have_text("0 of 40 rows: 0 answered, 0 withheld, 0 failed.")


def test_no_more_than_four_rows_are_asked_at_a_time_and_stopping_stops(page: Page, file: Path) -> None:
    held: list[Route] = []
    page.route("**/v1/predict", lambda route: held.append(route))
    choose(page, file)
    start(page)
    page.wait_for_timeout(500)
    assert len(held) == 4
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Answer the rows")).to_be_focused()
    assert len(held) == 4
    expect(status(page)).to_contain_text("0 of 40 rows")


def test_a_second_run_asks_the_rows_without_an_answer_until_the_question_changes(page: Page, file: Path) -> None:
    bodies: list[Any] = []

    def fail_every_fourth(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        if len(bodies) <= N_ROWS and len(bodies) % 4 == 0:
            route.fulfill(status=500, json={"error": "Internal Server Error"})  # as a proxy writes it
        else:
            route.continue_()

    page.route("**/v1/predict", fail_every_fourth)
    choose(page, file, "open")
    choices = page.get_by_label("Choices, one a line")
    choices.fill("good\nbad")
    start(page)
    expect(status(page)).to_contain_text("40 of 40 rows: 30 answered, 0 withheld, 10 failed.")
    expect(page.locator("#view-table tbody").get_by_text("The server answered 500.")).to_have_count(10)
    failed = [text for i, text in enumerate(texts(bodies)) if i % 4 == 3]
    start(page)
    expect(status(page)).to_contain_text("40 of 40 rows: 40 answered, 0 withheld, 0 failed.")
    assert sorted(texts(bodies)[N_ROWS:]) == sorted(failed)
    start(page)
    expect(status(page)).to_contain_text("Every row has an answer.")
    choices.fill("good\nbad\nneither")
    start(page)
    expect(status(page)).to_contain_text("40 of 40 rows: 40 answered")
    assert len(bodies) == N_ROWS + len(failed) + N_ROWS
    assert {len(body["choices"]) for body in bodies[-N_ROWS:]} == {3}


def test_answers_stay_until_another_question_is_asked(page: Page, file: Path) -> None:
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "predict" in request.url else None)
    choose(page, file, "triage")
    start(page)
    expect(status(page)).to_contain_text("40 of 40 rows")
    answered = page.locator("#view-table tbody .chip")
    page.locator("#table-adapter").select_option("desk")
    expect(status(page)).to_contain_text("The answers below are those to the earlier question.")
    expect(answered).to_have_count(N_ROWS)
    page.locator("#table-adapter").select_option("triage")
    expect(status(page)).to_contain_text("The answers below are those to this question.")
    start(page)
    expect(status(page)).to_contain_text("Every row has an answer.")
    assert len(bodies) == N_ROWS
    page.locator("#table-adapter").select_option("desk")
    start(page)
    expect(status(page)).to_contain_text("40 of 40 rows")
    assert [body["adapter"] for body in bodies[N_ROWS:]] == ["desk"] * N_ROWS


def test_answers_of_an_adapter_that_was_replaced_are_told_and_asked_for_again(page: Page, file: Path) -> None:
    bodies: list[Any] = []
    anew = replace(HANDLES[0], calibration=calibration(HANDLES[0].digest, quantile=0.9))
    with serving(FakeEngine(handles=(anew, *HANDLES[1:]))) as address:

        def replace_after_ten(route: Route) -> None:
            bodies.append(route.request.post_data_json)
            if len(bodies) <= 10:
                route.continue_()
            else:
                route.fulfill(response=route.fetch(url=f"{address}/v1/predict"))

        page.route("**/v1/predict", replace_after_ten)
        choose(page, file)
        start(page)
        expect(status(page)).to_contain_text("The adapter was replaced: 10 answers are of the earlier one. Press")
        start(page)
        expect(status(page)).to_have_text(f"{N_ROWS} of {N_ROWS} rows: {N_ROWS} answered, 0 withheld, 0 failed.")
        assert sorted(texts(bodies)[N_ROWS:]) == sorted(texts(bodies)[:10])
        start(page)
        expect(status(page)).to_contain_text("Every row has an answer.")


def test_what_a_run_asks_about_cannot_change_under_it(page: Page, file: Path) -> None:
    held: list[Route] = []
    page.route("**/v1/predict", lambda route: held.append(route))
    choose(page, file, "open")
    page.get_by_label("Choices, one a line").fill("good\nbad")
    start(page)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    for name in ("Adapter", "CSV file", "Column with the texts", "Choices, one a line"):
        expect(page.locator("#view-table").get_by_label(name)).to_be_disabled()
    dropped = page.evaluate_handle(DROPPED, ["text\nanother\n", "another.csv"])
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": dropped})
    page.wait_for_timeout(200)
    expect(page.locator("#view-table tbody tr")).to_have_count(N_ROWS)
    page.get_by_role("button", name="Stop").click()
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": dropped})
    expect(status(page)).to_have_text("another.csv: 1 rows.")


def test_a_person_who_declines_to_give_a_key_is_asked_once_for_all_rows(page: Page, file: Path) -> None:
    page.route("**/v1/predict", lambda route: refuse(route, 401, "unauthorized"))
    choose(page, file)
    start(page)
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(status(page)).to_contain_text("0 of 40 rows: 0 answered, 0 withheld, 0 failed. The run has stopped: It does")
    page.wait_for_timeout(300)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Answer the rows")).to_be_visible()


def test_a_person_who_declines_to_give_a_key_is_asked_once_for_all_outcomes(page: Page, file: Path) -> None:
    file.write_text("text,label\n" + "p=0.95,billing\n" * 5)
    page.route("**/v1/feedback", lambda route: refuse(route, 401, "unauthorized"))
    choose(page, file)
    start(page)
    expect(status(page)).to_contain_text("5 of 5 rows")
    page.get_by_role("button", name="Send labels as feedback").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("0 outcomes reported. 5 failed: It does not.")
    expect(page.get_by_role("dialog")).to_have_count(0)
