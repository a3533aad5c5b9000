"""Upload of an adapter to the hub, in one commit."""

from pathlib import Path

from blora.adapter import CARD_FILE, OWN_FILES, adapter_digest, read_config
from blora.adapter.calibration_file import read_calibrations
from blora.adapter.card import is_edited, model_card
from blora.errors import AdapterError, ConfigError
from blora.hub.client import TOKEN, hub_api, hub_errors, hub_token, is_moved, why
from blora.hub.name import HubName, branch, repository

__all__ = ["push"]


def push(folder: Path, repo: str, *, revision: str | None = None, private: bool = False) -> HubName:
    """Upload an adapter, and return its name with commit and digest.

    Only an adapter's own files are uploaded; those that an earlier adapter left in the repository are deleted. The card
    gets the repository's name as its title, unless it was edited.

    Args:
        folder: the adapter's folder.
        repo: repository, owner/name; created if it is missing.
        revision: branch; created if it is missing. None for main.
        private: whether to require that the repository is private.

    Raises:
        ConfigError: if a name is malformed, HF_TOKEN is not set or malformed, the hub refuses, the branch gets another
            commit meanwhile, or the repository is public although `private` is set.
        AdapterError: if the folder holds no adapter, or only calibrations of other contents.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = HubName(repository(repo), branch(revision if revision is not None else "main"))
    digest = adapter_digest(folder)
    _check_calibration(folder, digest)
    if hub_token() is None:
        raise ConfigError(
            f"got no {TOKEN} in the environment, expected a token of the hub that may write to {repo}: set it"
        )
    files: dict[str, str | bytes] = {file: str(folder / file) for file in OWN_FILES if (folder / file).exists()}
    files[CARD_FILE] = _card(folder, name.name).encode()
    api = hub_api()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: the owner's default
        if private and not api.model_info(repo).private:
            raise ConfigError(
                f"got --private for {repo}, which exists and is public: make it private on the hub, or name another"
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        head = api.model_info(repo, revision=name.revision)
        there = {file.rfilename for file in head.siblings or ()}
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in files.items()),
                *(CommitOperationDelete(path_in_repo=file) for file in OWN_FILES if file in there - files.keys()),
            ],
            commit_message=f"Upload adapter {digest}",
            revision=name.revision,
            parent_commit=head.sha,
        )
    except hub_errors() as exc:
        refused = f"check the name, and what the token in {TOKEN} may do"
        raise ConfigError(
            f"got {why(exc)!r} from the hub for {repo}, expected it to take the adapter: "
            f"{'the branch has got another commit meanwhile; push again' if is_moved(exc) else refused}"
        ) from exc
    return HubName(repo, done.oid, digest)


def _check_calibration(folder: Path, digest: str) -> None:
    calibrations = read_calibrations(folder)
    if calibrations and all(entry.binding.adapter_digest != digest for entry in calibrations):
        raise AdapterError(
            f"got a calibration of other contents in {folder}, expected one of {digest}: run `blora calibrate` again, "
            "or remove calibration.json"
        )


def _card(folder: Path, name: str) -> str:
    """Return the card in an adapter's folder; one that nobody has edited is written anew, under another name.

    Raises:
        AdapterError: if the card is a link, which may lead to a file that is not meant for the hub, or not UTF-8.
    """
    file, config = folder / CARD_FILE, read_config(folder)
    if file.is_symlink():
        raise AdapterError(f"got {file}, which is a link to {file.readlink()}, expected a file: copy it there")
    try:
        if file.is_file() and is_edited(text := file.read_text(encoding="utf-8"), config):
            return text
    except UnicodeDecodeError as exc:
        raise AdapterError(f"got {file}, which is not UTF-8 ({exc.reason}), expected text: write it in UTF-8") from exc
    return model_card(config, name)
