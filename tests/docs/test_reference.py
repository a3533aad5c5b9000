"""The generated pages and pictures are those of the code and of the committed results."""

import ast
import re

import pytest

from blora import cli
from blora.server.app import create_app
from blora.server.settings import Settings
from docs.site.pictures import PICTURES
from docs.site.reference import PAGES
from docs.site.stage import DOCS, ROOT
from tests.test_project import PROJECT

COMMANDS = PROJECT["entry-points"]["blora.commands"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_that_of_the_code(name: str) -> None:
    written = (DOCS / "reference" / f"{name}.md").read_text()
    assert PAGES[name]() == written, "run `python -m docs.site.reference`"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_that_of_the_code(name: str) -> None:
    assert PICTURES[name]() == (DOCS / "concepts" / f"{name}.svg").read_text(), "run `python -m docs.site.pictures`"


def test_every_command_and_flag_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "reference" / "cli.md").read_text()
    assert re.findall(r"^## blora (\w+)$", page, re.MULTILINE) == sorted(COMMANDS)
    for command in set(COMMANDS) - {"serve"}:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", capsys.readouterr().out.partition("\n\n")[0]))
        section = page.partition(f"## blora {command}\n")[2].partition("\n## ")[0]
        assert {flag for flag in flags - {"--help"} if f"`{flag}" not in section} == set()


@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/systemone"])
def test_the_schemas_of_typed_questions_are_there(path: str) -> None:
    document = create_app(Settings(adapters="demo=adapter")).openapi()
    post = document["paths"][path]["post"]
    shown = set(re.findall(r"^## (\w+)$", (DOCS / "reference" / "http.md").read_text(), re.MULTILINE))
    bodies = (post["requestBody"], post["responses"]["200"])
    for name in (body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] for body in bodies):
        parts = document["components"]["schemas"][name]["properties"][
            "answers" if name.endswith("Response") else "questions"
        ]
        assert {name, *re.findall(r"#/components/schemas/(\w+)", str(parts))} <= shown


def test_a_prediction_leads_to_the_schemas_of_its_parts() -> None:
    page = (DOCS / "reference" / "http.md").read_text()
    fields = page.partition("\n## Prediction\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `\w+` \| (?:list of )?(?:\[(\w+)\]\(#\w+\)|[A-Z]\w+)", fields, re.MULTILINE)
    assert len(named) > 4
    assert set(named) <= set(re.findall(r"^## (\w+)$", page, re.MULTILINE))


def test_the_confidence_of_a_typed_answer_is_not_called_a_probability() -> None:
    page = (DOCS / "reference" / "http.md").read_text()
    meanings = dict(
        re.findall(r"^## (\w+)\n(?:(?!## ).*\n)*?\| `confidence` \| number \| (.*) \|$", page, re.MULTILINE)
    )
    assert meanings["Prediction"].startswith("Probability of the leading choice")
    assert meanings["ChoiceAnswer"] == meanings["SystemOneChoiceAnswer"]
    assert meanings["ChoiceAnswer"].endswith("; not that probability.")


def test_signatures_are_python() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    signatures = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if re.match(r"\w+\(", code) and ":" in code
    ]
    assert len(signatures) > 20
    for code in signatures:
        ast.parse(f"def {code.rstrip()}: ...")


def test_every_metric_that_alerts_and_pages_name_is_there() -> None:
    page = (DOCS / "reference" / "metrics.md").read_text()
    named = set()
    for file in [*(ROOT / "deploy").rglob("*.y*ml"), *(ROOT / "deploy").rglob("*.json"), *DOCS.rglob("*.md")]:
        named |= set(
            re.findall(r"\bblora_[a-z_]+(?:_total|_seconds|_nats|_info|_broken|_wealth|_depth)\b", file.read_text())
        )
    assert len(named) > 15
    assert {name for name in named if f"| `{name}` |" not in page} == set()
