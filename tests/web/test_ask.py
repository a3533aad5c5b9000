"""The view Ask: answers, abstentions, thresholds that are moved, several questions, and errors."""

import json
import re
import shlex
from dataclasses import replace

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from blora.server.engines.handle import AdapterHandle
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, handle
from tests.web.browser import needs_chromium, open_page, serving
from tests.web.conftest import HANDLES

pytestmark = needs_chromium


def ask(page: Page, text: str, adapter: str = "triage") -> Locator:
    """Ask, and return the results."""
    page.locator("#model").select_option(adapter)
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Ask", exact=True).click()
    results = page.locator("#results")
    expect(page.locator("#results:not([aria-busy])").locator(".answer, .error").first).to_be_visible()
    return results


def threshold(results: Locator, score: str = "confidence") -> Locator:
    return results.get_by_role("slider", name=f"Threshold on {score}")


def outcome(results: Locator) -> str:
    return str(results.locator(".verdict").first.get_attribute("data-outcome"))


def drag(slider: Locator, start: float, to: float) -> None:
    """Drag the line of a threshold from one place of its axis to another, with the mouse."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    thumb = 24  # px, half of which lies outside the axis at each end
    x = [box["x"] + thumb / 2 + place * (box["width"] - thumb) for place in (start, to)]
    mouse = slider.page.mouse
    mouse.move(x[0], box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(x[1], box["y"] + box["height"] / 2, steps=8)
    mouse.up()


def test_an_answer_shows_its_choice_and_everything_about_its_uncertainty(page: Page) -> None:
    results = ask(page, "p=0.95 f=0.4")
    expect(results.locator(".said")).to_have_text("billing")
    assert outcome(results) == "answered"
    rows = results.locator(".choices li")
    assert rows.count() == 3
    expect(rows.first).to_contain_text("billing")
    expect(rows.first).to_contain_text("0.950 ± 0.000")
    assert rows.first.locator(".ticks line").count() == 4  # one a draw
    expect(results).to_contain_text("Leading choice by draw: billing 4.")
    expect(results).to_contain_text("Prediction set: billing.")
    for part in ("In the text", "In the model", "Together", "Familiarity"):
        expect(results.locator(".legend").get_by_text(part, exact=True)).to_be_visible()
    expect(results).to_contain_text("Proved: at most 5 % of its answers are wrong, with probability 95 %")


def at_another_risk(*, delta: float, coverage: float) -> AdapterHandle:
    """Return triage as calibrated anew, with another proof and another coverage of its prediction sets."""
    made = calibration(TRIAGE_DIGEST)
    asks = tuple(replace(ask, delta=delta) for ask in made.asks)
    quantiles = tuple(replace(each, coverage=coverage) for each in made.quantiles)
    anew = replace(made, delta=delta, coverage=coverage, asks=asks, quantiles=quantiles)
    return handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=anew)


def serve_instead(page: Page, address: str, *, cards: bool = True) -> list[str]:
    """Let another server answer the page, with its cards or without them; return the requests for cards to come."""
    fetched: list[str] = []

    def cards_of_now(route: Route) -> None:
        fetched.append(route.request.url)
        if cards:
            route.fulfill(response=route.fetch(url=f"{address}/v1/adapters"))
        else:
            route.fulfill(status=500)

    page.route("**/v1/predict", lambda route: route.fulfill(response=route.fetch(url=f"{address}/v1/predict")))
    page.route("**/v1/adapters", cards_of_now)
    return fetched


def test_what_is_proved_is_said_of_the_adapter_that_answered_and_not_of_the_one_before(page: Page) -> None:
    with serving(FakeEngine(handles=(at_another_risk(delta=0.4, coverage=0.6), *HANDLES[1:]))) as address:
        assert "with probability 95 %" in ask(page, "p=0.95").inner_text()
        fetched = serve_instead(page, address)
        for number in range(2):
            results = ask(page, f"p=0.95 {number}")
            assert "Proved: at most 5 % of its answers are wrong, with probability 60 % over" in results.inner_text()
            assert "Of such sets, 60 % hold the right choice" in results.inner_text()
        assert len(fetched) == 1


def test_nothing_is_proved_with_the_card_of_another_adapter_than_the_one_that_answered(page: Page) -> None:
    with serving(FakeEngine(handles=(at_another_risk(delta=0.4, coverage=0.6), *HANDLES[1:]))) as address:
        fetched = serve_instead(page, address, cards=False)
        results = ask(page, "p=0.95")
        expect(results).to_contain_text("The adapter's policy. Proved: at most 5 % of its answers are wrong.")
        assert "hold the right choice" not in results.inner_text()
        assert len(fetched) == 1


def test_an_abstention_says_why_in_words(page: Page) -> None:
    results = ask(page, "p=0.7")
    assert outcome(results) == "withheld"
    expect(page.locator("#view-ask > [role=status]")).to_have_text("Withheld, leaning to billing")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_focused()
    expect(results.locator(".said")).to_have_text("No answer")
    expect(results.locator(".verdict")).to_contain_text("It leans to billing with probability 0.7.")
    expect(results.locator(".reasons li")).to_have_text(
        "The leading choice is not probable enough: confidence 0.7, below the limit of 0.9."
    )


def test_a_value_just_beyond_its_limit_is_told_from_it(page: Page) -> None:
    results = ask(page, "p=0.89998")
    expect(results.locator(".reasons li")).to_have_text(
        "The leading choice is not probable enough: confidence 0.89998, below the limit of 0.9."
    )
    expect(results.locator(".line-value").first).to_have_text("0.89998")
    expect(threshold(results)).to_have_attribute(
        "aria-valuetext", "answers need at least 0.9; this one has 0.89998, so it is withheld"
    )


def test_a_line_that_is_dragged_turns_an_abstention_into_an_answer_and_back(page: Page) -> None:
    results = ask(page, "p=0.7")
    slider = threshold(results)
    drag(slider, 0.9, 0.5)
    assert outcome(results) == "answered"
    expect(results.locator(".said")).to_have_text("billing")
    expect(results).to_contain_text("Your thresholds: a trial in this page, about which nothing is proved.")
    drag(slider, 0.5, 0.8)
    assert outcome(results) == "withheld"
    results.get_by_role("button", name="Back to the policy").click()
    expect(results).to_contain_text("below the limit of 0.9.")
    expect(results).to_contain_text("Proved: at most 5 %")
    expect(results.get_by_role("button", name="Back to the policy")).to_be_hidden()


def test_the_keyboard_moves_a_line_and_a_screen_reader_hears_what_that_means(page: Page) -> None:
    results = ask(page, "p=0.7")
    slider = threshold(results)
    slider.focus()
    for _ in range(3):
        page.keyboard.press("PageDown")  # a tenth of the axis
    assert outcome(results) == "answered"
    assert "this one has 0.7, so it is given" in str(slider.get_attribute("aria-valuetext"))
    page.keyboard.press("End")
    assert outcome(results) == "withheld"
    assert "so it is withheld" in str(slider.get_attribute("aria-valuetext"))
    page.keyboard.press("Home")
    expect(results.locator(".line-limit").first).to_have_text("no limit")
    assert outcome(results) == "answered"
    assert results.locator(".verdict").get_attribute("role") == "status"


def withheld(results: Locator, score: str, place: int) -> bool:
    """Return whether page and server withhold the first answer under a threshold at this place of its axis."""
    results.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    results = results.locator(".answer").first
    threshold(results, score).evaluate(
        "(input, place) => { input.value = place; input.dispatchEvent(new Event('input')); }", str(place)
    )
    words = shlex.split(results.get_by_label("The request for a shell").inner_text())
    body = json.loads(words[-1])
    assert body["policy"].keys() == {("min_" if score in ("confidence", "margin", "familiarity") else "max_") + score.replace(" ", "_")}  # fmt: skip
    answer = httpx.post(words[2], json=body).json()
    assert answer["abstained"] == (outcome(results) == "withheld"), (place, answer)
    return bool(answer["abstained"])


@pytest.mark.parametrize(
    ("score", "text"),
    [("confidence", "p=0.7"), ("margin", "a"), ("predictive entropy", "p=0.7"), ("mutual information", "c d"), ("familiarity", "x f=0.02")],
)  # fmt: skip
def test_the_page_decides_as_the_server_does(page: Page, score: str, text: str) -> None:
    results = ask(page, text, "desk")
    assert {withheld(results, score, place) for place in (1, *range(50, 1000, 95))} == {True, False}


def test_a_value_within_rounding_of_its_threshold_is_answered_as_by_the_server(page: Page) -> None:
    results = ask(page, "p=0.99999999", "desk")  # a predictive entropy of 2e-7
    assert not withheld(results, "predictive entropy", 0)


def test_an_answer_without_any_line_is_a_request_that_the_server_answers(page: Page) -> None:
    results = ask(page, "p=0.7")
    threshold(results).focus()
    page.keyboard.press("Home")
    assert outcome(results) == "answered"
    results.get_by_text("As a request").click()
    words = shlex.split(results.get_by_label("The request for a shell").inner_text())
    answer = httpx.post(words[2], json=json.loads(words[-1]))
    assert (answer.status_code, answer.json()["abstained"]) == (200, False)


def test_the_questions_of_a_model_are_asked_at_once(page: Page) -> None:
    with page.expect_request("**/v1/predict") as sent:
        results = ask(page, "something happened", "desk")
    asked = [item["adapter"] for item in json.loads(sent.value.post_data or "")["inputs"]]
    assert asked == ["desk", "desk.urgent", "desk.mood"]
    assert results.locator(".kicker").all_inner_texts() == ["DESK", "URGENT", "MOOD"]
    assert page.locator("#model option").all_inner_texts() == ["triage", "desk", "open"]
    expect(results.locator(".choices").nth(2)).to_contain_text("annoyed")
    given = [panel.inner_text() for panel in results.locator(".answer .said").all()]
    shown = results.get_by_role("region", name="All questions").locator("dd").all_inner_texts()
    assert shown == given  # no policy withholds one
    said = ". ".join(
        f"{name}: Answer: {answer}" for name, answer in zip(("desk", "urgent", "mood"), given, strict=True)
    )
    expect(page.locator("#view-ask > [role=status]")).to_have_text(said)


def test_choices_are_typed_where_an_adapter_has_none(page: Page) -> None:
    results = ask(page, "p=0.6", "open")
    expect(results.get_by_role("alert")).to_contain_text("choices")
    expect(page.locator(".ask-form")).to_contain_text("2 to 255, one a line")
    page.get_by_label("Choices", exact=True).fill("yes\nno | maybe")
    results = ask(page, "p=0.6", "open")
    expect(results.locator(".said")).to_have_text("yes")
    assert results.locator(".choices li").count() == 3
    expect(results).to_contain_text("This adapter has no policy")


def test_an_error_is_said_in_the_servers_words(page: Page) -> None:
    results = ask(page, "POISON")
    expect(results.get_by_role("alert")).to_contain_text("An error")
    results = ask(page, "UNPACKABLE")
    expect(results.get_by_role("alert")).to_contain_text("got what cannot be packed, expected text")
    assert outcome(ask(page, "p=0.95")) == "answered"


def test_a_server_that_is_gone_is_an_error_too(browser: Browser) -> None:
    with serving(FakeEngine(handles=HANDLES)) as address, open_page(browser, address) as watched:
        page = watched.page
        page.get_by_label("Text", exact=True).wait_for()
        page.route("**/v1/predict", lambda route: route.abort("connectionrefused"))
        expect(ask(page, "p=0.9").get_by_role("alert")).to_contain_text("The server cannot be reached")
        watched.complaints.clear()  # Chromium tells of the refused connection


def test_the_outcome_of_an_answer_is_reported(page: Page) -> None:
    results = ask(page, "p=0.95")
    results.get_by_role("button", name="Send feedback").click()
    expect(results).to_contain_text("Choose the right one first.")
    results.get_by_label("Which choice is right?").select_option("technical")
    results.get_by_role("button", name="Send feedback").click()
    expect(results).to_contain_text("Recorded: the leading choice was wrong.")
    results.get_by_label("Which choice is right?").select_option("billing")
    results.get_by_role("button", name="Send feedback").click()
    expect(results).to_contain_text("Recorded: the leading choice was right.")
    results.get_by_label("Which choice is right?").select_option(label="None of these")
    with page.expect_request("**/v1/feedback") as sent:
        results.get_by_role("button", name="Send feedback").click()
    assert set(sent.value.post_data_json) == {"prediction_id", "none_of_these"}
    expect(results).to_contain_text("Recorded: the leading choice was wrong.")


def test_a_text_is_never_read_as_html(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='pwned'\"><b>p</b>"
    page.get_by_label("Text", exact=True).wait_for()
    page.locator("#model").select_option("open")
    page.get_by_label("Choices", exact=True).fill(f"{evil}\nno")
    results = ask(page, evil, "open")
    expect(results.locator(".choices")).to_contain_text("<img src=x")
    assert page.locator("#results img, #results b").count() == 0
    assert page.title() != "pwned"


def test_the_browser_itself_refuses_to_read_a_text_as_html(browser: Browser, url: str) -> None:
    with open_page(browser, url) as watched:
        refused = watched.page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x'; } catch (e) { return e.name; } }"
        )
        assert refused == "TypeError"
        assert "TrustedHTML" in " ".join(watched.complaints)
        watched.complaints.clear()


def test_an_address_fills_in_a_text_and_sends_nothing(page: Page, url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/?again#ask?text=p%3D0.95%20hello&adapter=desk")
    expect(page.get_by_label("Text", exact=True)).to_have_value("p=0.95 hello")
    expect(page.locator("#model")).to_have_value("desk")
    assert not [address for address in asked if "predict" in address or "hello" in address.partition("#")[0]]


def test_an_address_fills_in_an_open_page_too_and_says_if_its_adapter_is_not_there(page: Page, url: str) -> None:
    notice = page.locator("#view-ask .notice")
    for number, (adapter, model) in enumerate((("desk.urgent", "desk"), ("open", "open"), ("nonesuch", "open"))):
        page.evaluate("(hash) => { location.hash = hash; }", f"#ask?text=again+{number}&adapter={adapter}")
        expect(page.get_by_label("Text", exact=True)).to_have_value(f"again {number}")
        expect(page.locator("#model")).to_have_value(model)
        expect(notice).to_be_visible(visible=adapter == "nonesuch")
    expect(notice).to_contain_text('The address names the adapter "nonesuch", which is not loaded here')
    page.reload()
    expect(notice).to_be_visible()
    page.locator("#model").select_option("desk")
    expect(notice).to_be_hidden()


def test_a_page_that_is_opened_too_early_goes_on_by_itself(browser: Browser) -> None:
    engine = FakeEngine(handles=HANDLES)
    engine.load_gate.clear()
    with serving(engine) as address, open_page(browser, address) as watched:
        expect(watched.page.get_by_role("alert")).to_contain_text("The model is being loaded.")
        engine.load_gate.set()
        expect(watched.page.get_by_label("Text", exact=True)).to_be_visible()
        expect(watched.page.locator("#problem")).to_be_empty()


def test_the_request_for_a_shell_names_a_variable_and_not_the_key(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('blora-api-key', 'secret-key')")
    results = ask(page, "it's p=0.95")
    results.get_by_text("As a request").click()
    command = results.get_by_label("The request for a shell").inner_text()
    assert "secret-key" not in command
    assert "$BLORA_API_KEY" in command
    assert json.loads(shlex.split(command)[-1])["prompt"] == "it's p=0.95"
    assert re.match(r"curl -s http://127\.0\.0\.1:\d+/v1/predict ", command)
