from pathlib import Path
from typing import Any

import pytest
import yaml

from blora.adapter import OWN_FILES, adapter_digest, read_config
from blora.adapter.card import model_card
from blora.errors import AdapterError, ConfigError
from blora.hub.fetch import fetch
from blora.hub.name import HubName
from blora.hub.push import push
from tests.blora.adapters import contents, rewrite_json
from tests.hub import Hub, Repository, _Handler

# The hub's client hands files to its HTTP library in a way that the library will no longer take.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _token(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", remote.token)


def files(remote: Hub, branch: str = "main") -> dict[str, bytes]:
    repository = remote.repositories["acme/tickets"]
    return repository.commits[repository.branches[branch]]


def test_what_is_pushed_can_be_fetched(remote: Hub, adapter: Path) -> None:
    name = push(adapter, "acme/tickets")
    assert name == HubName(
        "acme/tickets", remote.repositories["acme/tickets"].branches["main"], adapter_digest(adapter)
    )
    fetched = contents(fetch(name))
    for file in OWN_FILES:
        if (adapter / file).exists() and file != "README.md":
            assert fetched[file] == (adapter / file).read_bytes()


def test_only_an_adapters_own_files_are_pushed(remote: Hub, adapter: Path) -> None:
    push(adapter, "acme/tickets")
    assert set(files(remote)) - {".gitattributes"} == set(contents(adapter)) - {"notes.txt"}


def test_the_card_has_the_repositorys_name_and_the_hubs_front_matter(remote: Hub, adapter: Path) -> None:
    push(adapter, "acme/tickets")
    card = files(remote)["README.md"].decode()
    assert "\n# tickets\n" in card
    [entry] = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert entry["name"] == "tickets"


def test_an_edited_card_stays(remote: Hub, adapter: Path) -> None:
    (adapter / "README.md").write_text("# mine\n")
    push(adapter, "acme/tickets")
    assert files(remote)["README.md"] == b"# mine\n"


def test_a_card_that_is_a_link_or_no_text_is_not_pushed(remote: Hub, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of this machine")
    card = adapter / "README.md"
    card.unlink()
    card.symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match=f"which is a link to {tmp_path / 'secret'}, expected a file: copy it there"):
        push(adapter, "acme/tickets")
    card.unlink()
    card.write_bytes(b"caf\xe9")
    with pytest.raises(AdapterError, match="which is not UTF-8"):
        push(adapter, "acme/tickets")
    assert not remote.repositories


def test_a_card_that_nobody_edited_gets_the_name_of_the_repository(remote: Hub, adapter: Path) -> None:
    card = (adapter / "README.md").read_text()
    (adapter / "README.md").write_text(model_card(read_config(adapter), "as-it-was-pulled"))
    push(adapter, "acme/tickets")
    assert b"\n# tickets\n" in files(remote)["README.md"]
    assert card != files(remote)["README.md"].decode()


def test_files_of_an_earlier_adapter_are_deleted_and_others_stay(remote: Hub, adapter: Path) -> None:
    push(adapter, "acme/tickets")
    files(remote)["LICENSE"] = b"Apache-2.0"
    (adapter / "calibration.json").unlink()
    push(adapter, "acme/tickets")
    assert "calibration.json" not in files(remote)
    assert "LICENSE" in files(remote)


def test_a_branch_is_made_and_leaves_main_alone(remote: Hub, adapter: Path) -> None:
    for _ in range(2):
        name = push(adapter, "acme/tickets", revision="v2")
    assert set(files(remote)) == {".gitattributes"}
    assert remote.repositories["acme/tickets"].branches["v2"] == name.revision
    assert "head.safetensors" in files(remote, "v2")


@pytest.mark.parametrize("revision", ["", "a@b", "a,b", "a b", "v1#x"])
def test_a_revision_that_no_name_can_hold_is_refused(remote: Hub, adapter: Path, revision: str) -> None:
    with pytest.raises(ConfigError, match="expected a branch's name, without white space, @, # and comma"):
        push(adapter, "acme/tickets", revision=revision)
    assert remote.requests == []


def test_a_private_repository_is_private(remote: Hub, adapter: Path) -> None:
    push(adapter, "acme/tickets", private=True)
    assert remote.repositories["acme/tickets"].private
    push(adapter, "acme/tickets", private=True)


def test_what_should_be_private_is_not_pushed_to_a_public_repository(remote: Hub, adapter: Path) -> None:
    remote.repositories["acme/tickets"] = Repository()
    remote.repositories["acme/tickets"].commit({})
    with pytest.raises(ConfigError, match="exists and is public"):
        push(adapter, "acme/tickets", private=True)
    assert files(remote) == {}


def test_without_a_token_the_hub_is_not_asked(remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="got no HF_TOKEN in the environment"):
        push(adapter, "acme/tickets")
    assert remote.requests == []


def test_a_push_that_another_overtakes_is_refused(remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(adapter, "acme/tickets")
    (adapter / "calibration.json").unlink()
    take = _Handler.commit

    def overtaken(self: _Handler, name: str, repository: Repository, *commit: Any) -> None:
        repository.commit({"calibration.json": b"another adapter's"})
        take(self, name, repository, *commit)

    with monkeypatch.context() as patched:
        patched.setattr(_Handler, "commit", overtaken)
        with pytest.raises(ConfigError, match="the branch has got another commit meanwhile; push again"):
            push(adapter, "acme/tickets")
    assert files(remote) == {"calibration.json": b"another adapter's"}
    push(adapter, "acme/tickets")
    assert "calibration.json" not in files(remote)


def test_a_token_is_sent_without_whitespace_around_it(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f" {remote.token}\n")
    push(adapter, "acme/tickets")
    monkeypatch.setenv("HF_TOKEN", "\n")
    with pytest.raises(ConfigError, match="got HF_TOKEN with a token of 0 characters"):
        push(adapter, "acme/tickets")


def test_a_hub_that_refuses_is_named(remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_one")
    with pytest.raises(ConfigError, match="from the hub for acme/tickets") as caught:
        push(adapter, "acme/tickets")
    assert "hf_wrong_one" not in str(caught.value)


def test_what_is_no_adapter_is_not_pushed(remote: Hub, adapter: Path) -> None:
    rewrite_json(lambda raw: raw.update(policy={"min_confidence": 0.5}))(adapter / "bayesian_config.json")
    with pytest.raises(AdapterError, match="calibration of other contents"):
        push(adapter, "acme/tickets")
    (adapter / "head.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"without head\.safetensors"):
        push(adapter, "acme/tickets")
    with pytest.raises(ConfigError, match="expected owner/name"):
        push(adapter, "tickets")
    assert remote.requests == []
