"""The view Card."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from blora.decision.by_choice import ChoiceCounts
from blora.decision.gate import Gate
from tests.server.calibrations import calibration
from tests.server.fakes import FakeEngine
from tests.web.browser import ask_within, needs_chromium, open_page, serving
from tests.web.conftest import HANDLES

pytestmark = needs_chromium


def test_a_card_shows_what_is_proved_and_what_is_not(page: Page) -> None:
    page.get_by_role("link", name="Card").click()
    card = page.locator("#view-card")
    expect(card.get_by_role("radio", name="5 % proved")).to_be_checked()
    expect(card).to_contain_text("60 % answered")
    expect(card).to_contain_text(
        "With confidence at least 0.9, at most 5 % of the answers are wrong, with probability 95 %"
    )
    card.get_by_role("radio", name="1 % not proved").check()
    expect(card).to_contain_text("These 300 rows do not prove that at most 1 % of the answers are wrong.")
    card.get_by_role("radio", name="20 % proved", exact=True).check()
    expect(card).to_contain_text("With predictive entropy at most 0.7 nats, at most 20 %")
    expect(
        card.get_by_role("img", name=re.compile("Risk by coverage: from 2 % wrong at 50 % answered"))
    ).to_be_visible()
    expect(card.get_by_role("img", name="Reliability: 90 % right at confidence 90 %")).to_be_visible()
    expect(card).to_contain_text("NLL0.5")


def test_a_promise_is_never_shown_as_more_than_is_proved(browser: Browser) -> None:
    proved = calibration(HANDLES[1].digest)
    gate = Gate(max_false_alarms=0.015, n_beyond=1, reference=tuple(i / 100 for i in range(99)))
    levels = tuple(replace(level, target_risk=0.024, upper_bound=0.01612) for level in proved.levels[1:2])
    quantiles = tuple(replace(each, coverage=0.994) for each in proved.quantiles)
    proved = replace(
        proved, levels=levels, target_risk=0.024, delta=0.004, quantiles=quantiles, coverage=0.994, gate=gate
    )
    desk = replace(HANDLES[1], calibration=proved)
    with (
        serving(FakeEngine(handles=(desk,)), default_adapter="desk") as address,
        open_page(browser, address) as watched,
    ):
        page, card = watched.page, watched.page.locator("#view-card")
        page.get_by_label("Text", exact=True).fill("p=0.95 f=0.55")
        page.get_by_role("button", name="Ask", exact=True).click()
        results = page.locator("#results")
        expect(results).to_contain_text("Proved: at most 2.4 % of its answers are wrong, with probability 99.6 %")
        expect(results).to_contain_text("Of such sets, 99.4 % hold the right choice")
        page.get_by_role("link", name="Card").click()
        expect(card.get_by_role("radio", name="2.4 % proved")).to_be_checked()
        expect(card).to_contain_text("at most 2.4 % of the answers are wrong, with probability 99.6 %")
        expect(card).to_contain_text("the upper confidence bound of that is 1.7 %.")
        expect(card).to_contain_text("target 2.4 %")
        expect(card.get_by_role("region", name="Prediction sets")).to_contain_text("99.4 %")
        expect(card).to_contain_text("at most 1.5 % of all familiar texts, with probability 99.6 %")


def test_a_card_shows_what_the_proofs_rows_got_by_choice_and_a_limit_for_each(browser: Browser) -> None:
    proved = calibration(HANDLES[0].digest)
    counts = [
        ChoiceCounts(choice="billing", n_rows=200, n_missed=3, n_answers=150, n_wrong=2),
        ChoiceCounts(choice="security", n_rows=1100, n_missed=41, n_answers=1050, n_wrong=42),
    ]
    plain = replace(proved, choices=tuple(counts))
    limited = replace(plain, asks=(replace(proved.asks[0], max_missed=0.125),))
    for made, promise in (
        (plain, "The target 5 % is proved for all answers together, not for each choice."),
        (limited, "Of the texts of each choice, at most 12.5 % get another answer, with probability 95 %"),
    ):
        engine = FakeEngine(handles=(replace(HANDLES[0], calibration=made),))
        with serving(engine) as address, open_page(browser, address) as watched:
            watched.page.get_by_role("link", name="Card").click()
            panel = watched.page.locator("#view-card section.panel", has_text="By choice")
            expect(panel).to_contain_text(promise)
            row = panel.get_by_role("row", name="security")
            expect(row).to_contain_text("security1,100411,05042")
    with serving(FakeEngine(handles=HANDLES[:1])) as address, open_page(browser, address) as watched:
        watched.page.get_by_role("link", name="Card").click()
        expect(watched.page.locator("#view-card")).to_contain_text("Where this comes from")
        expect(watched.page.locator("#view-card")).not_to_contain_text("By choice")


def test_a_card_shows_the_question_and_the_cheapest_methods(page: Page) -> None:
    page.get_by_role("link", name="Card").click()
    page.locator("#card-adapter").select_option("desk.urgent")
    expect(page.locator("#view-card")).to_contain_text("urgent, a predicate: Is it urgent?")
    page.locator("#card-adapter").select_option("desk")
    row = page.get_by_role("row", name="regression on frozen states")
    expect(row).to_contain_text("71 %")


@pytest.mark.parametrize("trained", [True, False])
def test_after_a_tuning_a_card_shows_its_metrics(browser: Browser, trained: bool) -> None:
    desk, trials = HANDLES[1], [{"scale": 1.0, "nll": 0.4}, {"scale": 2.0, "nll": 0.25}]
    tuning = {"source": "later.jsonl", "digest": "sha256:1", "n_examples": 20, "scale": 2.0, "trials": trials}
    record = (desk.config.training if trained else {}) | {"tuning": tuning}
    engine = FakeEngine(handles=(replace(desk, config=replace(desk.config, training=record)),))
    with serving(engine, default_adapter="desk") as address, open_page(browser, address) as watched:
        watched.page.get_by_role("link", name="Card").click()
        panel = watched.page.locator("#view-card section", has_text="On validation rows").last
        expect(panel).to_contain_text("NLL0.25")
        expect(panel).to_contain_text("20 rows of later.jsonl, which chose the posterior's width and the recalibration")
        expect(panel.get_by_text("before the adapter was tuned")).to_have_count(1 if trained else 0)


def test_a_card_without_a_calibration_says_what_to_do(page: Page) -> None:
    page.get_by_role("link", name="Card").click()
    page.locator("#card-adapter").select_option("open")
    expect(page.locator("#view-card")).to_contain_text(
        "Nothing is proved about this adapter's answers. Run blora calibrate"
    )
    expect(page.locator("#view-card")).to_contain_text("Each request brings its own choices.")


def test_a_card_shows_familiar_and_foreign_texts_as_they_are_asked(browser: Browser) -> None:
    gate = Gate(max_false_alarms=0.05, n_beyond=1, reference=tuple(i / 100 for i in range(99)))
    desk = replace(HANDLES[1], calibration=calibration(HANDLES[1].digest, gate=gate))
    with (
        serving(FakeEngine(handles=(desk, HANDLES[0])), default_adapter="desk") as address,
        open_page(browser, address) as watched,
    ):
        page, card = watched.page, watched.page.locator("#view-card")
        page.get_by_role("link", name="Card").click()
        expect(card).to_contain_text("Texts with a familiarity below 0.03 are withheld as unfamiliar: ")
        expect(card).to_contain_text(
            "1 of 99 familiar rows of the calibration (1 %), and at most 5 % of all familiar texts"
        )
        expect(card).to_contain_text("with probability 95 %.")
        expect(card).to_contain_text("No text has been asked yet.")
        ask_within(page, *["p=0.95 f=0.01"] * 2, *["p=0.95 f=0.55"] * 48)
        page.get_by_role("link", name="Live").click()
        expect(page.locator("#view-live")).to_contain_text(
            re.compile(r"than the calibration allows: [\d.]+\. From 20 on")
        )
        page.get_by_role("link", name="Card").click()
        expect(card).to_contain_text("2 of 50 texts so far are unfamiliar")
        expect(card).to_contain_text("Of 50 texts like the calibration's rows, about 1 would be.")
        expect(card).to_contain_text("Unfamiliar2 (4 %)Familiar48 (96 %)")
        expect(card).to_contain_text(re.compile(r"than the calibration allows: [\d.]+\. From 20 on"))
        chart = card.get_by_role("img", name="4 % of 50 lie below 0.1, where 10 % of familiar texts do")
        expect(chart).to_be_visible()
        assert chart.locator("rect.unlike").count() == 1
        assert chart.locator("rect.alike").count() == 1
        assert chart.locator("line.gate").count() == 1
        details = card.locator(
            "details",
            has=page.get_by_role("region", name="Familiarity of the texts asked: the numbers", include_hidden=True),
        )
        details.locator("summary").click()
        expect(details.get_by_role("row", name="0 to 0.1")).to_contain_text("25")
        page.clock.install()
        page.get_by_role("link", name="Live").click()
        page.get_by_role("link", name="Card").click()
        ask_within(page, "p=0.95 f=0.02")
        page.clock.fast_forward(5_000)
        expect(card).to_contain_text("3 of 51 texts so far are unfamiliar")
        expect(details.get_by_role("row", name="0 to 0.1")).to_contain_text("35.1")
        page.locator("#card-adapter").select_option("triage")
        expect(card).to_contain_text("Answers of this adapter have no familiarity")


def test_a_card_shows_the_gate_even_if_the_metrics_are_on_another_port(browser: Browser) -> None:
    with serving(FakeEngine(handles=HANDLES), metrics_port=9) as address, open_page(browser, address) as watched:
        watched.page.get_by_role("link", name="Card").click()
        watched.page.locator("#card-adapter").select_option("desk")
        card = watched.page.locator("#view-card")
        expect(card).to_contain_text("Without a calibration there is no gate")
        expect(card).to_contain_text("The texts asked so far cannot be shown, because the metrics cannot be read")


# Live
