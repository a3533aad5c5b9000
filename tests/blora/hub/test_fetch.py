import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from blora.adapter import OWN_FILES, adapter_digest
from blora.disk.cache import check_own
from blora.errors import AdapterError, ConfigError
from blora.hub.fetch import fetch, local_folder, pull
from blora.hub.name import HubName
from tests.blora.adapters import contents
from tests.hub import Hub, Repository, _Handler

NAME = HubName("acme/tickets")


def published(remote: Hub, adapter: Path, *, private: bool = False, **more: bytes) -> str:
    """Put an adapter on the hub, with further files beside it, and return the commit."""
    files = {file.name: file.read_bytes() for file in adapter.iterdir() if file.is_file()}
    repository = remote.repositories.setdefault(NAME.repo, Repository(private=private))
    return repository.commit(files | more)


def own(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name in OWN_FILES}


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_an_adapter_is_fetched_as_it_is(remote: Hub, adapter: Path) -> None:
    commit = published(remote, adapter)
    folder = fetch(NAME)
    assert folder.name == commit
    assert own(folder) == own(adapter)
    assert adapter_digest(folder) == adapter_digest(adapter)


def test_nothing_but_an_adapters_own_files_is_downloaded(remote: Hub, adapter: Path) -> None:
    published(remote, adapter, **{"evil.pkl": b"cos\nsystem\n", "run.py": b"1/0", "sub/head.safetensors": b"x"})
    folder = fetch(NAME)
    assert set(remote.downloads()) == set(own(adapter))
    assert set(contents(folder)) == {*own(adapter), "origin.json"}


def test_a_commit_is_fetched_once_and_then_needs_no_hub(remote: Hub, adapter: Path) -> None:
    commit = HubName(NAME.repo, published(remote, adapter))
    folder = fetch(commit)
    asked = len(remote.requests)
    assert fetch(commit) == folder
    assert len(remote.requests) == asked


def test_a_branch_is_looked_up_each_time(remote: Hub, adapter: Path) -> None:
    before = published(remote, adapter)
    assert fetch(NAME).name == before
    downloads = len(remote.downloads())
    assert fetch(NAME).name == before
    assert len(remote.downloads()) == downloads
    (adapter / "README.md").write_text("# another card\n")
    after = published(remote, adapter)
    assert fetch(NAME).name == after
    assert fetch(HubName(NAME.repo, before)).name == before


def test_offline_the_last_commit_of_a_branch_is_used(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(HubName(NAME.repo, published(remote, adapter)))
    offline(monkeypatch)
    with pytest.raises(AdapterError, match="never fetched, with HF_HUB_OFFLINE set"):
        fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch(NAME)
    offline(monkeypatch)
    asked = len(remote.requests)
    assert fetch(NAME) == folder
    assert len(remote.requests) == asked


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_down_is_replaced_by_the_cache_with_a_warning(
    status: int, remote: Hub, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published(remote, adapter)
    folder = fetch(NAME)
    remote.failing = status
    with caplog.at_level(logging.WARNING):
        assert fetch(NAME) == folder
    assert "The hub cannot be reached" in caplog.text


def test_a_hub_that_cannot_be_reached_is_replaced_by_the_cache(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    published(remote, adapter)
    folder = fetch(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(NAME) == folder
    assert "The hub cannot be reached" in caplog.text


@pytest.mark.parametrize("answer", [{"hello": 1}, [1], "text"])
def test_an_answer_that_is_not_a_hubs_is_an_error_or_replaced_by_the_cache(
    answer: Any,
    remote: Hub,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    published(remote, adapter)
    with monkeypatch.context() as patched:
        patched.setattr("tests.hub._Handler.info", lambda self, *_: self.answer(200, answer))
        with pytest.raises(AdapterError, match="which the hub does not give"):
            fetch(NAME)
    folder = fetch(NAME)
    monkeypatch.setattr("tests.hub._Handler.info", lambda self, *_: self.answer(200, answer))
    assert fetch(NAME) == folder
    assert "The hub cannot be reached" in caplog.text


def test_a_hub_that_refuses_is_no_reason_to_use_the_cache(remote: Hub, adapter: Path) -> None:
    published(remote, adapter)
    fetch(NAME)
    remote.repositories[NAME.repo].private = True
    with pytest.raises(AdapterError, match="needs HF_TOKEN"):
        fetch(NAME)


@pytest.mark.parametrize("status", [403, 410, 451])
def test_a_hub_that_refuses_a_file_is_no_reason_to_use_the_cache(
    status: int, remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(remote, adapter)
    fetch(NAME)
    published(remote, adapter, **{"README.md": b"# another card\n"})
    monkeypatch.setattr("tests.hub._Handler.file", lambda self, *_: self.answer(status, {"error": "no"}))
    with pytest.raises(AdapterError, match=f"which the hub does not give .*{status}"):
        fetch(NAME)


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_file_of_another_size_than_announced_is_an_error_or_replaced_by_the_cache(
    more: bytes, remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def resized(self: _Handler, repository: Repository, revision: str, path: str) -> None:
        if self.command == "HEAD" or path != "calibration.json":
            return answer(self, repository, revision, path)
        return self.send(200, repository.commits[revision][path][:-1] + more)

    answer = _Handler.file
    published(remote, adapter)
    with monkeypatch.context() as patched:
        patched.setattr(_Handler, "file", resized)
        with pytest.raises(AdapterError, match="which the hub does not give .* of size .*or try again"):
            fetch(NAME)
    folder = fetch(NAME)
    published(remote, adapter, **{"README.md": b"# another card\n"})
    monkeypatch.setattr(_Handler, "file", resized)
    assert fetch(NAME) == folder
    assert "The hub cannot be reached" in caplog.text


def test_a_malformed_address_of_the_hub_is_told(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    with pytest.raises(AdapterError, match="which the hub does not give .Invalid port.*check .* HF_ENDPOINT"):
        fetch(NAME)


@pytest.mark.parametrize("name", [NAME, HubName("acme/tickets", "v2")])
def test_what_does_not_exist_is_named(name: HubName, remote: Hub, adapter: Path) -> None:
    if name.revision != "main":
        published(remote, adapter)
    with pytest.raises(AdapterError, match=f"got {name}, which the hub does not give"):
        fetch(name)


def test_a_download_that_breaks_off_leaves_nothing(remote: Hub, adapter: Path, tmp_path: Path) -> None:
    published(remote, adapter)
    remote.corrupted = {"head.safetensors"}
    with pytest.raises(AdapterError, match="head.safetensors of hash .*, which the hub lists"):
        fetch(NAME)
    assert list((tmp_path / "cache/hub/acme/tickets").iterdir()) == []
    remote.corrupted = {"calibration.json"}
    with pytest.raises(AdapterError, match="calibration.json of hash"):
        fetch(NAME)
    remote.corrupted = set()
    fetch(NAME)


def test_what_a_killed_download_left_is_removed_a_day_later(remote: Hub, adapter: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cache/hub/acme/tickets"
    for name in (".partial-old", ".partial-at-work"):
        (cached / name).mkdir(parents=True)
    os.utime(cached / ".partial-old", (0, 0))
    commit = published(remote, adapter)
    fetch(NAME)
    assert {path.name for path in cached.iterdir()} == {".partial-at-work", commit, "refs"}


@pytest.mark.parametrize("revision", ["..", "x/../../y", "long" * 100, "ü" * 60])
def test_any_revision_that_the_hub_has_is_fetched_and_found_again(
    revision: str, remote: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = published(remote, adapter)
    remote.repositories[NAME.repo].branches[revision] = commit
    folder = fetch(HubName(NAME.repo, revision))
    assert len(list((tmp_path / "cache/hub/acme/tickets/refs").iterdir())) == 1
    offline(monkeypatch)
    assert fetch(HubName(NAME.repo, revision)) == folder


def test_a_cache_that_cannot_be_written_is_told(remote: Hub, adapter: Path, tmp_path: Path) -> None:
    published(remote, adapter)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/hub").write_text("a file")
    with pytest.raises(AdapterError, match="cannot be written to .*; set BLORA_CACHE_DIR"):
        fetch(NAME)


def test_a_cache_that_cannot_be_written_is_enough_for_a_branch_that_stays(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    published(remote, adapter)
    folder = fetch(NAME)
    monkeypatch.setattr("blora.hub.fetch.write_file", read_only)
    assert fetch(NAME) == folder


def test_a_repository_without_an_adapter_is_refused(remote: Hub, adapter: Path) -> None:
    (adapter / "head.safetensors").unlink()
    published(remote, adapter)
    with pytest.raises(AdapterError, match="hf://acme/tickets@main: got adapter acme/tickets without head.safetensors"):
        fetch(NAME)


def test_a_hub_that_gives_another_commit_than_the_pinned_one_is_refused(
    remote: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = HubName(NAME.repo, published(remote, adapter))
    other = published(remote, adapter, **{"README.md": b"# another card\n"})
    with monkeypatch.context() as patched:
        info = _Handler.info
        patched.setattr(_Handler, "info", lambda self, repo, repository, _: info(self, repo, repository, "main"))
        with pytest.raises(AdapterError, match=f"got commit {other} from the hub, expected that of {name}"):
            fetch(name)
    fetch(NAME)
    refs = tmp_path / "cache/hub/acme/tickets/refs"
    (refs / name.revision).write_text(other)  # as an earlier version did
    offline(monkeypatch)
    with pytest.raises(AdapterError, match="never fetched"):
        fetch(name)


def test_a_pinned_digest_is_checked(remote: Hub, adapter: Path) -> None:
    published(remote, adapter)
    digest = adapter_digest(adapter)
    assert fetch(HubName(NAME.repo, "main", digest)).is_dir()
    with pytest.raises(AdapterError, match=f"has the digest {digest}, expected sha256:00"):
        fetch(HubName(NAME.repo, "main", f"sha256:{'00' * 32}"))


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_cached_file_that_changed_is_noticed(change: str, remote: Hub, adapter: Path) -> None:
    calibration = (adapter / "calibration.json").read_text()
    if change == "add":
        (adapter / "calibration.json").unlink()
    published(remote, adapter)
    file = fetch(NAME) / "calibration.json"
    if change == "remove":
        file.unlink()
    else:
        file.write_text(calibration + "\n")
    with pytest.raises(AdapterError, match="files have changed since they were downloaded"):
        fetch(NAME)


def test_a_private_adapter_needs_the_token_of_the_environment(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published(remote, adapter, private=True)
    (tmp_path / "token").write_text(remote.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))  # where `hf auth login` leaves one
    with pytest.raises(AdapterError, match="needs HF_TOKEN"):
        fetch(NAME)
    assert {given for _, _, given in remote.requests} == {None}
    monkeypatch.setenv("HF_TOKEN", remote.token)
    caplog.set_level(logging.DEBUG)
    fetch(NAME)
    assert remote.token not in caplog.text
    sent = {path.split("/")[1]: given for _, path, given in remote.requests[1:]}
    assert sent["lfs"] is None  # another host gets no token
    assert sent["acme"] == f"Bearer {remote.token}"


def test_a_token_is_sent_without_whitespace_around_it(
    remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(remote, adapter, private=True)
    monkeypatch.setenv("HF_TOKEN", f" {remote.token}\n")
    fetch(NAME)
    assert {given for _, path, given in remote.requests if "acme" in path} == {f"Bearer {remote.token}"}


@pytest.mark.parametrize("token", [" \n", "hf_SECRET\nhf_SECRET", "hf_SECRET\x7f", "hf_SECRETü"])
def test_a_malformed_token_is_refused_and_not_shown(
    token: str, remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    published(remote, adapter)
    fetch(NAME)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="got HF_TOKEN with a token of .* characters") as caught:
        fetch(NAME)
    assert "SECRET" not in str(caught.value) + caplog.text


def test_a_wrong_token_is_not_shown(remote: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(remote, adapter, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_one")
    with pytest.raises(AdapterError) as caught:
        fetch(NAME)
    assert "hf_wrong_one" not in str(caught.value)


def test_a_local_folder_is_taken_as_it_is(remote: Hub, adapter: Path) -> None:
    published(remote, adapter)
    assert local_folder(str(adapter)) == adapter
    assert local_folder("hf://acme/tickets") == fetch(NAME)


def test_a_copy_is_ones_own(remote: Hub, adapter: Path, tmp_path: Path) -> None:
    published(remote, adapter)
    pull(NAME, tmp_path / "copy")
    assert contents(tmp_path / "copy") == own(adapter)
    check_own(tmp_path / "copy")
    with pytest.raises(AdapterError, match="blora pull"):
        check_own(fetch(NAME))
    with pytest.raises(AdapterError, match="expected a new folder"):
        pull(NAME, tmp_path / "copy")


def test_a_copy_may_go_into_an_empty_folder_or_a_link_to_one(
    remote: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(remote, adapter)
    for name in ("here", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("linked")
    monkeypatch.chdir(tmp_path / "here")
    pull(NAME, Path())
    pull(NAME, tmp_path / "link")
    assert contents(tmp_path / "here") == contents(tmp_path / "linked") == own(adapter)
