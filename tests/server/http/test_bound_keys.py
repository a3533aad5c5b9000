"""Keys bound to adapters, for which other adapters are unknown."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from blora.errors import ConfigError
from blora.server.commands.key import main
from blora.server.keys import Key, Keys, line_of
from tests.server.fakes import OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running

DIGEST = "sha256:" + "3" * 64
KEYS = {"shop": ["triage"], "lab": ["open", "third", "not-yet"], "none": ["not-yet"], "all": []}
CHOICES = ("yes", "no")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    lines = [line_of(name, "predict", name, adapters) for name, adapters in KEYS.items()]
    (tmp_path / "keys").write_text("\n".join([*lines, line_of("ops", "admin", "ops")]))
    names = {"triage": TRIAGE_DIGEST, "open": OPEN_DIGEST, "third": DIGEST}
    engine = FakeEngine(handles=tuple(handle(name, digest, choices=CHOICES) for name, digest in names.items()))
    async with running(engine, api_keys=tmp_path / "keys") as up:
        yield up


async def get(server: Running, key: str, path: str) -> tuple[int, Any]:
    response = await server.client.get(path, headers={"authorization": f"Bearer {key}"})
    return response.status_code, response.json()


async def ask(server: Running, key: str, **fields: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"}
    response = await server.client.post("/v1/predict", json={"prompt": "p=0.9", **fields}, headers=headers)
    return response.status_code, response.json()


@pytest.mark.parametrize(
    ("key", "seen"),
    [
        ("shop", ["triage"]),
        ("lab", ["open", "third"]),
        ("none", []),
        ("all", ["triage", "open", "third"]),
        ("ops", ["triage", "open", "third"]),
    ],
)
async def test_a_key_sees_and_asks_its_own_adapters_alone(server: Running, key: str, seen: list[str]) -> None:
    _, cards = await get(server, key, "/v1/adapters")
    _, models = await get(server, key, "/v1/models")
    assert [card["name"] for card in cards["data"]] == [model["id"] for model in models["data"][1:]] == seen
    for name, digest in (("triage", TRIAGE_DIGEST), ("open", OPEN_DIGEST), ("third", DIGEST)):
        for spec in (name, f"{name}@{digest}", f"{name}@sha256:{'0' * 64}"):
            asked, shown = await ask(server, key, adapter=spec), await get(server, key, f"/v1/adapters/{spec}")
            as_model = await get(server, key, f"/v1/models/{spec}")
            assert (as_model[0], as_model[1].get("error")) == (shown[0], shown[1].get("error"))
            if name not in seen:
                unknown = await ask(server, key, adapter="nowhere")
                assert asked == (404, unknown[1])  # word for word as if it did not exist
                assert (shown[0], shown[1]["error"]["code"]) == (404, "unknown_adapter")
            elif "000" in spec:
                assert (asked[0], asked[1]["error"]["code"]) == (404, "digest_mismatch")
            else:
                assert (asked[0], asked[1]["adapter"]["name"], shown[1]["name"]) == (200, name, name)


async def test_messages_name_what_the_key_may_see(server: Running) -> None:
    for key, others in (("shop", ("open", "third")), ("lab", ("triage", "not-yet")), ("none", ("triage", "open"))):
        _, unknown = await ask(server, key, adapter="nowhere")
        assert not any(name in unknown["error"]["message"] for name in others)


async def test_a_batch_is_answered_where_the_key_opens_the_adapter(server: Running) -> None:
    _, batch = await ask(server, "shop", inputs=[{"adapter": "triage"}, {"adapter": "open"}])
    assert [one.get("error", {}).get("code") for one in batch["predictions"]] == [None, "unknown_adapter"]


async def test_without_a_name_a_key_of_one_adapter_gets_that_one(server: Running) -> None:
    assert (await ask(server, "all"))[1]["adapter"]["name"] == "triage"  # the server's default
    assert (await ask(server, "shop"))[1]["adapter"]["name"] == "triage"
    status, refused = await ask(server, "lab")
    assert (status, refused["error"]["code"]) == (422, "missing")
    assert "open, third" in refused["error"]["message"]
    assert "triage" not in refused["error"]["message"]


async def test_a_key_looks_at_the_cards_of_the_adapters_below_its_own_which_it_may_ask(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line_of("shop", "predict", "shop", ["triage", "ghost"]))
    names = "triage", "triage.urgent", "triages", "open", "ghost.mood"
    handles = tuple(handle(name, f"sha256:{k:064d}", choices=CHOICES) for k, name in enumerate(names))
    async with running(FakeEngine(handles=handles), api_keys=tmp_path / "keys") as up:
        for name in ("triage", "triage.urgent", f"triage.urgent@sha256:{1:064d}", "ghost.mood"):
            status, card = await get(up, "shop", f"/v1/adapters/{name}")
            assert (status, card.get("name")) == (200, name.partition("@")[0])
        _, pinned = await get(up, "shop", f"/v1/adapters/triage.urgent@sha256:{0:064d}")
        assert pinned["error"]["code"] == "digest_mismatch"
        for name in ("triages", "open", "ghost", "triage.nothing"):
            status, unknown = await get(up, "shop", f"/v1/adapters/{name}")
            assert (status, unknown["error"]["code"]) == (404, "unknown_adapter")
            assert not any(other in unknown["error"]["message"] for other in ("triages", "open"))
        _, cards = await get(up, "shop", "/v1/adapters")
        assert [card["name"] for card in cards["data"]] == ["triage"]
        status, _ = await ask(up, "shop", adapter="triage.urgent")
        assert status == 404


async def test_refused_names_mint_no_metrics(server: Running) -> None:
    await ask(server, "shop", adapter="open")
    assert await server.metric("blora_requests_total", adapter="open", outcome="unknown_adapter") == 0
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="unknown_adapter") == 1


# The file and the command


def test_the_file_says_which_adapters(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line_of("shop", "predict", "key", ["a", "b.c-1"]) + "\n")
    assert Keys(file).find("key") == Key("shop", "predict", frozenset({"a", "b.c-1"}))


@pytest.mark.parametrize("bound", ["adapters=", "adapters=a,", "adapters=a b", "adapters=a@b", "adapter=a", "a"])
def test_a_line_that_does_not_say_which_is_no_key(tmp_path: Path, bound: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{line_of('shop', 'predict', 'key')} {bound}\n")
    with pytest.raises(ConfigError, match="Line 1 of .* is not a key"):
        Keys(file)


def test_an_admins_key_opens_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an admin's key may use all"):
        line_of("ops", "admin", "key", ["a"])
    file = tmp_path / "keys"
    file.write_text(f"{line_of('ops', 'admin', 'key')} adapters=a\n")
    with pytest.raises(ConfigError, match="Line 1 of .* is not a key"):
        Keys(file)


def test_the_command_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["shop", "--file", str(file), "--adapters", "triage, open"]) == 0
    assert Keys(file).find(capsys.readouterr().out.strip()) == Key("shop", "predict", frozenset({"triage", "open"}))
    with pytest.raises(ConfigError, match="got adapter name 'a b'"):
        main(["other", "--file", str(file), "--adapters", "a b"])
    with pytest.raises(SystemExit):
        main(["other", "--file", str(file), "--adapters", "a", "--admin"])
