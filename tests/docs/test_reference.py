"""The generated pages and pictures are those of the code and of the committed results."""

import ast
import re

import pytest

from blora import cli
from docs.site.pictures import PICTURES
from docs.site.reference import PAGES
from docs.site.stage import DOCS
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


def test_signatures_are_python() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    signatures = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if re.match(r"\w+\(", code) and ":" in code
    ]
    assert len(signatures) > 20
    for code in signatures:
        ast.parse(f"def {code.rstrip()}: ...")
