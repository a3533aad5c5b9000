"""The pages for people: their files, their headers, and the setting that turns them off."""

import re
from pathlib import Path

import pytest

from blora.server.http.pages import CONTENT_SECURITY_POLICY, PAGE_PATHS
from blora.server.keys import line_of
from blora.server.web.files import page_files
from tests.server.fakes import FakeEngine, Running, running

ROOT = Path(__file__).parents[3]
FILES = page_files()
PAGES = sorted(path for path, file in FILES.items() if file.media_type.startswith("text/html"))


def loads(text: str) -> set[str]:
    """Return the paths that a file of a page loads, beside the page itself."""
    of_html = re.findall(r'(?:src|href)="(web/[^"]+)"', text)
    of_scripts = re.findall(r'from "\./([^"]+)"', text)
    return {f"/{path}" for path in of_html} | {f"/web/{path}" for path in of_scripts}


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
async def test_a_file_is_served_as_what_it_is_and_loads_nothing_from_elsewhere(server: Running, path: str) -> None:
    response = await server.client.get(path)
    assert response.status_code == 200
    assert response.content == FILES[path].content
    assert response.headers["content-type"] == FILES[path].media_type
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    text = response.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//\w+\.\w+/|@import|url\(", text)
    assert loads(text) <= PAGE_PATHS


def test_the_policy_of_the_pages_is_strict() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    for page in PAGES:
        text = FILES[page].content.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), (
            f"{page} has what the policy blocks"
        )


def test_every_file_of_a_page_is_used() -> None:
    assert {path for file in FILES.values() for path in loads(file.content.decode())} | set(PAGES) == PAGE_PATHS


def test_the_pages_are_as_small_as_documented() -> None:
    total_kib = sum(len(file.content) for file in FILES.values()) / 1024
    [documented] = re.findall(r"files of both pages have (\d+) KiB", (ROOT / "docs" / "playground.md").read_text())
    assert total_kib == pytest.approx(int(documented), rel=0.1)
    assert total_kib <= 300


def test_scripts_never_read_a_text_as_html() -> None:
    for path, file in FILES.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.content.decode()
        ), path


async def test_other_paths_stay_unknown_and_load_nothing(server: Running) -> None:
    for path in ("/web/", "/web/files.py", "/web/../settings.py", "/web/%2e%2e/settings.py"):
        response = await server.client.get(path)
        assert response.status_code == 404
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_a_setting_turns_the_pages_off(engine: FakeEngine) -> None:
    async with running(engine, playground=False) as server:
        assert {(await server.client.get(path)).status_code for path in PAGE_PATHS} == {404}
        assert (await server.client.post("/v1/predict", json={"prompt": "p=0.9"})).status_code == 200


@pytest.mark.parametrize(("playground", "status"), [(True, 200), (False, 401)])
async def test_with_keys_the_pages_open_without_one_and_nothing_else_does(
    engine: FakeEngine, tmp_path: Path, playground: bool, status: int
) -> None:
    (tmp_path / "keys").write_text(line_of("shop", "predict", "key-of-the-shop") + "\n")
    async with running(engine, api_keys=tmp_path / "keys", playground=playground) as server:
        assert {(await server.client.get(path)).status_code for path in PAGE_PATHS} == {status}
        for path in ("/v1/adapters", "/info", "/web/nothing.js"):
            assert (await server.client.get(path)).status_code == 401


async def test_the_pages_are_no_part_of_the_api(server: Running) -> None:
    assert not PAGE_PATHS & (await server.client.get("/openapi.json")).json()["paths"].keys()


async def test_head_says_how_long_a_page_is(server: Running) -> None:
    response = await server.client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(FILES["/"].content)
