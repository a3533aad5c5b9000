"""The view Table: a CSV answered row by row, sorted, labelled, and written back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.web.browser import needs_chromium

pytestmark = needs_chromium

ROWS = [
    ("1", "p=0.95 first", "billing"),
    ("2", 'p=0.7 "quoted", with a comma', ""),
    ("3", "c d\nwith a line break", "account"),
    ("4", "POISON", ""),
    ("5", "<img src=x onerror=alert(1)>", "nonsense"),
]
PARSED = {
    "a,b\n1,2\n": [["a", "b"], ["1", "2"]],
    "\ufeffa;b\r\n1;2,5\r\n": [["a", "b"], ["1", "2,5"]],
    'a\tb\n"x\ty"\t"say ""no"""\n': [["a", "b"], ["x\ty", 'say "no"']],
    'a,b\n"1\n2",3': [["a", "b"], ["1\n2", "3"]],
    "a,\n1,2\n\n \n": [["a", "column 2"], ["1", "2"]],
    "a,b\n1,2,,\n": [["a", "b"], ["1", "2"]],
}
RAGGED = {
    "text\nplain\nHello, my invoice is wrong, please\n": 'Line 3: got 3 cells, expected the one cell of the header. Put a text with a "," in it between double quotes.',
    'a\tb\r\n"1\n\n2"\t3\r\n\r\n4\t5\t6': "Line 6: got 3 cells, expected the 2 cells of the header. Put a text with a tab in it",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([("id", "prompt", "label"), *ROWS])
    return path


def answer(page: Page, file: Path, adapter: str = "triage") -> Locator:
    """Choose a file, answer it, and return the rows of the table."""
    page.get_by_role("link", name="Table").click()
    page.locator("#table-adapter").select_option(adapter)
    page.get_by_label("CSV file").set_input_files(file)
    page.get_by_role("button", name="Answer the rows").click()
    expect(page.locator("#view-table [role=status]")).to_contain_text(f"{len(ROWS)} of {len(ROWS)} rows")
    return page.locator("#view-table tbody tr")


def downloaded(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.path().read_text()


def column(rows: Locator, name: str) -> list[str]:
    heads = rows.page.locator("#view-table thead th").all_inner_texts()
    position = next(i for i, head in enumerate(heads) if head.strip(" ↑↓") == name)
    return [row.locator("td").nth(position).inner_text() for row in rows.all()]


def test_each_row_gets_an_answer_an_abstention_or_its_error(page: Page, file: Path) -> None:
    rows = answer(page, file)
    page.get_by_role("button", name="Row", exact=True).click()
    page.get_by_role("button", name="Row", exact=True).click()
    answers = column(rows, "Answer")
    assert answers[0] == "billing"
    assert answers[1] == "withheld leans to billing"
    assert "withheld" not in answers[3]
    assert "model" in answers[3].lower()  # the error of the server, in the row
    expect(page.locator("#view-table [role=status]")).to_contain_text(
        "1 failed. 1 of 1 answers are those of the column label"
    )
    assert column(rows, "Text")[4] == ROWS[4][1]
    assert page.locator("#view-table img").count() == 0


def test_rows_are_sorted_by_uncertainty_and_by_every_column(page: Page, file: Path) -> None:
    rows = answer(page, file)
    heads = page.locator("#view-table thead th")
    assert (
        heads.locator("visible=true").filter(has_text="Mutual information").get_attribute("aria-sort") == "descending"
    )
    values = [float(value) for value in column(rows, "Mutual information") if value]
    assert values == sorted(values, reverse=True)
    assert column(rows, "Row")[-1] == "4"  # without an answer, at the end
    page.get_by_role("button", name="Confidence").click()
    page.get_by_role("button", name="Confidence").click()
    values = [float(value) for value in column(rows, "Confidence") if value]
    assert values == sorted(values)


def test_answers_come_back_as_csv_with_the_files_own_columns(page: Page, file: Path) -> None:
    answer(page, file)
    lines = list(csv.DictReader(io.StringIO(downloaded(page, "Download answers as CSV"))))
    assert [(line["id"], line["prompt"], line["label"]) for line in lines] == ROWS
    assert [line["answer"] for line in lines][:2] == ["billing", ""]
    assert (lines[1]["top_choice"], lines[1]["abstained"], lines[1]["reasons"]) == ("billing", "true", "low_confidence")
    assert float(lines[0]["confidence"]) == pytest.approx(0.95)
    assert lines[0]["blora_label"] == "billing"


def test_labels_come_back_from_an_export_and_later_exports_repeat_no_column(page: Page, file: Path) -> None:
    answer(page, file)
    for number, label in enumerate(("technical", "account", "")):
        page.get_by_label("Label of row 1", exact=True).select_option(label)
        text = downloaded(page, "Download answers as CSV")
        head, *lines = csv.reader(io.StringIO(text))
        assert len(set(head)) == len(head) == len(lines[0])
        assert (lines[0][head.index("label")], lines[0][head.index("blora_label")]) == ("billing", label)
        export = file.with_name(f"export-{number}.csv")
        export.write_text(text, newline="")
        answer(page, export)
        expect(page.get_by_label("Label of row 1", exact=True)).to_have_value(label)
    file.write_text("text,Blora_label\np=0.95,billing\n")
    page.get_by_label("CSV file").set_input_files(file)
    expect(page.locator("#view-table [role=status]")).to_have_text(f"{file.name}: 1 rows.")  # the file is read
    page.get_by_label("Label of row 1", exact=True).select_option("technical")
    (line,) = csv.DictReader(io.StringIO(downloaded(page, "Download answers as CSV")))
    assert {name: text for name, text in line.items() if "label" in name.lower()} == {"blora_label": "technical"}


def test_labels_become_rows_to_train_on_and_outcomes(page: Page, file: Path) -> None:
    rows = answer(page, file)
    page.get_by_label("Label of row 2", exact=True).select_option("technical")
    labelled = [json.loads(line) for line in downloaded(page, "Download labelled rows as JSONL").splitlines()]
    assert labelled == [
        {"prompt": ROWS[0][1], "label": "billing"},
        {"prompt": ROWS[1][1], "label": "technical"},
        {"prompt": ROWS[2][1], "label": "account"},
    ]
    told: list[Any] = []
    page.on("request", lambda request: told.append(request.post_data_json) if "feedback" in request.url else None)
    page.get_by_role("button", name="Send labels as feedback").click()
    expect(page.locator("#view-table [role=status]")).to_have_text("3 outcomes reported.")
    assert [body["label"] for body in told] == ["billing", "technical", "account"]
    page.get_by_role("button", name="Send labels as feedback").click()
    expect(page.locator("#view-table [role=status]")).to_have_text("0 outcomes reported.")
    assert rows.count() == len(ROWS)


def test_labels_are_read_in_any_case_and_others_are_told(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("prompt,label\np=0.95 a,Billing \np=0.95 b,2\np=0.95 c,  \n  ,billing\np=0.95 d,bill\n")
    answer(page, file)
    for row, label in enumerate(("billing", "", "", "billing", ""), 1):
        expect(page.get_by_label(f"Label of row {row}", exact=True)).to_have_value(label)
    expect(page.locator("#view-table [role=status]")).to_contain_text('2 labels are none of the choices, such as "2".')
    labelled = [json.loads(line) for line in downloaded(page, "Download labelled rows as JSONL").splitlines()]
    assert labelled == [{"prompt": "p=0.95 a", "label": "billing"}]


def test_a_dropped_file_is_taken(page: Page, file: Path) -> None:
    page.get_by_role("link", name="Table").click()
    data = page.evaluate_handle(
        "(text) => { const data = new DataTransfer(); data.items.add(new File([text], 'dropped.csv')); return data; }",
        file.read_text(),
    )
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": data})
    expect(page.locator("#view-table [role=status]")).to_have_text("dropped.csv: 5 rows.")
    expect(page.get_by_label("Column with the texts")).to_have_value("1")


def test_a_file_of_windows_1252_is_read_as_such_with_a_notice(page: Page, tmp_path: Path) -> None:
    text = "Rückerstattung für März über 20 €"
    notice = page.locator("#view-table .notice")
    page.get_by_role("link", name="Table").click()
    for encoding in ("cp1252", "utf-8"):
        (tmp_path / "excel.csv").write_text(f"id;text\n1;{text}\n", encoding=encoding)
        with page.expect_file_chooser() as chooser:
            page.get_by_label("CSV file").click()
        chooser.value.set_files(tmp_path / "excel.csv")
        expect(page.locator("#view-table [role=status]")).to_have_text("excel.csv: 1 rows.")
        expect(page.locator("#view-table .cell-text")).to_have_text(text)
        if encoding == "cp1252":
            expect(notice).to_contain_text("This file is not UTF-8 and was read as Windows-1252")
        else:
            expect(notice).to_be_hidden()


def test_a_file_without_rows_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("text\n")
    page.get_by_role("link", name="Table").click()
    page.get_by_label("CSV file").set_input_files(tmp_path / "empty.csv")
    expect(page.locator("#view-table [role=status]")).to_contain_text("The file has no rows")


def test_choices_are_typed_for_an_adapter_without_any(page: Page, file: Path) -> None:
    page.get_by_role("link", name="Table").click()
    page.locator("#table-adapter").select_option("open")
    page.get_by_label("CSV file").set_input_files(file)
    page.get_by_label("Choices, one a line").fill("good\nbad")
    page.get_by_role("button", name="Answer the rows").click()
    expect(page.locator("#view-table [role=status]")).to_contain_text("5 of 5 rows: 4 answered")
    assert page.get_by_label("Label of row 1", exact=True).locator("option").all_inner_texts() == ["–", "good", "bad"]


@pytest.mark.parametrize("text", PARSED)
def test_csv_is_read_as_spreadsheets_write_it_and_written_so_that_others_read_it(page: Page, text: str) -> None:
    script = "async (text) => { const { parseCsv } = await import('/web/csv.js'); const { head, rows } = parseCsv(text); return [head, ...rows]; }"
    assert page.evaluate(script, text) == PARSED[text]
    written = page.evaluate("async (lines) => (await import('/web/csv.js')).writeCsv(lines)", PARSED[text])
    assert list(csv.reader(io.StringIO(written, newline=""))) == PARSED[text]


@pytest.mark.parametrize("text", RAGGED)
def test_a_row_with_more_cells_than_the_header_is_refused_in_words(page: Page, tmp_path: Path, text: str) -> None:
    (tmp_path / "ragged.csv").write_text(text, newline="")
    page.get_by_role("link", name="Table").click()
    page.get_by_label("CSV file").set_input_files(tmp_path / "ragged.csv")
    expect(page.locator("#view-table [role=status]")).to_contain_text(RAGGED[text])
    expect(page.locator("#view-table tbody tr")).to_have_count(0)


def test_a_text_that_a_spreadsheet_would_run_is_written_as_a_text(page: Page) -> None:
    cells = ["=HYPERLINK(1)", "@sum", "+1 for this", "-0.5", "plain", "a=b"]
    written = page.evaluate("async (lines) => (await import('/web/csv.js')).writeCsv(lines)", [cells])
    assert written == "'=HYPERLINK(1),'@sum,'+1 for this,-0.5,plain,a=b\r\n"


def test_a_text_comes_back_from_a_written_file_exactly_as_it_was(page: Page) -> None:
    cells = [
        "- cannot log in",
        "+ve",
        "=none",
        "@support, please",
        "\tx",
        "-0.5",
        "+1",
        "'-0.5",
        "'+ve",
        "''=a",
        "'a",
        "'",
        "''",
        '-\n"b"',
    ]
    script = """async (lines) => {
        const { parseCsv, writeCsv } = await import("/web/csv.js");
        const { head, rows } = parseCsv(writeCsv(lines));
        return [head, ...rows];
    }"""
    lines = [[f"+{cell.strip()}" for cell in cells], cells]
    assert page.evaluate(script, lines) == lines
    others = "a,b,c\n'-0.5,'tis,'a=b\n"  # apostrophes that the page does not write
    read = page.evaluate("async (text) => (await import('/web/csv.js')).parseCsv(text).rows", others)
    assert read == [["'-0.5", "'tis", "'a=b"]]


def test_an_export_read_again_asks_the_same_texts_and_keeps_every_label(page: Page, tmp_path: Path) -> None:
    rows = [["prompt", "label"], ["- p=0.95 since Monday", "+ve"], ["@support p=0.95", "=none"]]
    export = tmp_path / "export-0.csv"
    with export.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    page.get_by_role("link", name="Table").click()
    page.locator("#table-adapter").select_option("open")
    wanted = [{"prompt": text, "label": label} for text, label in rows[1:]]
    for number in range(3):
        page.get_by_label("CSV file").set_input_files(export)
        expect(page.locator("#view-table [role=status]")).to_have_text(f"{export.name}: 2 rows.")
        page.get_by_label("Choices, one a line").fill("+ve\n=none")
        page.get_by_role("button", name="Answer the rows").click()
        expect(page.locator("#view-table [role=status]")).to_contain_text("2 of 2 rows: 2 answered")
        labelled = [json.loads(line) for line in downloaded(page, "Download labelled rows as JSONL").splitlines()]
        assert labelled == wanted
        export = tmp_path / f"export-{number + 1}.csv"
        export.write_text(downloaded(page, "Download answers as CSV"), newline="")


def test_an_export_has_the_warnings_of_each_answer(page: Page, file: Path) -> None:
    warned = ["not_calibrated", "mostly_guesses"]

    def warn_of_the_first(route: Route) -> None:
        response = route.fetch()
        told = response.json()
        if route.request.post_data_json["prompt"] == ROWS[0][1]:
            told["warnings"] = warned
        route.fulfill(response=response, json=told)

    page.route("**/v1/predict", warn_of_the_first)
    answer(page, file)
    lines = list(csv.DictReader(io.StringIO(downloaded(page, "Download answers as CSV"))))
    assert [line["warnings"] for line in lines] == [" ".join(warned), "", "", "", ""]
