"""Adapters of the hub in the cache: downloaded once, checked, and used from there.

A revision is resolved to a commit once, and all files are those of this commit. Only files with an adapter's own names
are downloaded, and each must have the hash that the hub lists for it. The cache (`BLORA_CACHE_DIR`/hub) gets the folder
of a commit whole or not at all, with a record of the files' hashes, which are compared on every use.
"""

import hashlib
import json
import logging
import shutil
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from blora.adapter import OWN_FILES, adapter_digest, check_output, new_adapter
from blora.disk.atomic import new_folder, remove_abandoned, write_file
from blora.disk.cache import ORIGIN_FILE, cache_folder
from blora.disk.files import file_digest, read_json
from blora.errors import AdapterError
from blora.hub.client import TIMEOUT_S, TOKEN, hub_api, hub_errors, is_out_of_service, is_private_answer, why
from blora.hub.name import HubName, place_of

__all__ = ["fetch", "local_folder", "pull"]

logger = logging.getLogger(__name__)

# Longest name of a file with a branch's commit; the name of a file being written is a little longer.
MOST_CHARACTERS = 200
ADVICE = "remove the folder, to download it again"


def local_folder(place: str | PathLike[str] | HubName) -> Path:
    """Return the local folder of an adapter: the path itself, or the folder that the hub's adapter was fetched into.

    Raises:
        ConfigError: if a name on the hub is malformed.
        AdapterError: see `fetch`.
    """
    found = place if isinstance(place, HubName) else place_of(place)
    return fetch(found) if isinstance(found, HubName) else found


def fetch(name: HubName) -> Path:
    """Return the cached folder of an adapter on the hub, which is downloaded if it is not there.

    A commit that is there is used without asking the hub. A branch or tag is looked up, unless HF_HUB_OFFLINE is set;
    if the hub cannot be reached, the commit that was found last time is used, with a warning.

    Raises:
        AdapterError: if the hub has no such adapter or cannot be reached, a file's hash is not the listed one, a cached
            file has changed, or the adapter's commit or digest is not the name's.
        ConfigError: if the cache folder cannot be created, or HF_TOKEN is malformed.
    """
    cached = cache_folder() / "hub" / name.repo
    commit = name.revision if name.is_commit and (cached / name.revision).is_dir() else _look_up(name, cached)
    folder = cached / commit
    _check_unchanged(folder)
    digest = adapter_digest(folder)
    if name.digest not in (None, digest):
        raise AdapterError(
            f"got {name.repo}, whose commit {commit} has the digest {digest}, expected {name.digest}: name the commit "
            "that has it, or this digest"
        )
    logger.info("Using %s", HubName(name.repo, commit, digest))
    return folder


def pull(name: HubName, output: Path) -> None:
    """Copy an adapter of the hub into a new folder, where it may be calibrated.

    Raises:
        AdapterError: if the folder is taken, or see `fetch`.
    """
    check_output(output)
    if output.is_dir() and any(output.iterdir()):
        raise AdapterError(f"got output {output}, which holds an adapter, expected a new folder: name another")
    cached = fetch(name)
    with new_adapter(output) as partial:
        for file in OWN_FILES:
            if (cached / file).exists():
                shutil.copyfile(cached / file, partial / file)


def _look_up(name: HubName, cached: Path) -> str:
    """Return the commit of a revision, whose folder is in the cache afterwards.

    Raises:
        AdapterError: see `fetch`.
    """
    from huggingface_hub.constants import is_offline_mode

    known = cached / "refs" / _file_name(name.revision)
    before = known.read_text() if known.is_file() and not name.is_commit else None
    usable = before is not None and (cached / before).is_dir()
    if is_offline_mode():
        if before is None or not usable:
            raise AdapterError(f"got {name}, which was never fetched, with HF_HUB_OFFLINE set: fetch it once without")
        return before
    errors: tuple[type[Exception], ...] = (OSError, *hub_errors())
    try:
        commit = _download(name, cached)
        if commit not in (before, name.revision):
            known.parent.mkdir(parents=True, exist_ok=True)
            write_file(known, commit)
    except errors as exc:
        if isinstance(exc, OSError) and exc.errno is not None:  # the disk's, as the client's have no number
            raise AdapterError(
                f"got {name}, which cannot be written to {cached} ({why(exc)}), expected a folder that can be written; "
                "set BLORA_CACHE_DIR"
            ) from exc
        if before is not None and usable and is_out_of_service(exc):
            logger.warning("The hub cannot be reached (%s): using %s as it was fetched before", why(exc), name)
            return before
        hint = f"; a private one needs {TOKEN} in the environment" if is_private_answer(exc) else ""
        again = ", and HF_ENDPOINT if it is set, or try again" if is_out_of_service(exc) else ""
        raise AdapterError(
            f"got {name}, which the hub does not give ({why(exc)}), expected an adapter that it has: check the name "
            f"and the revision{again}{hint}"
        ) from exc
    return commit


def _file_name(revision: str) -> str:
    """Return a name for the file with a revision's commit, which never leads out of its folder."""
    quoted = quote(revision, safe="")
    fits = quoted.strip(".") and len(quoted) <= MOST_CHARACTERS
    return quoted if fits else hashlib.sha256(revision.encode()).hexdigest()


def _download(name: HubName, cached: Path) -> str:
    """Return the commit of a revision after downloading its files, unless they are in the cache.

    Raises:
        AdapterError: if the commit is not the name's or holds no adapter, or a file's hash is not the listed one.
    """
    api = hub_api()
    info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT_S)
    commit = str(info.sha)
    if not HubName(name.repo, commit).is_commit:
        raise AdapterError(f"got commit {commit!r} of {name} from the hub, expected 40 hexadecimal digits: try again")
    if name.is_commit and commit != name.revision:
        raise AdapterError(f"got commit {commit} from the hub, expected that of {name}: ask another hub (HF_ENDPOINT)")
    folder = cached / commit
    if folder.is_dir():
        return commit
    remove_abandoned(cached)
    listed = {file.rfilename: file for file in info.siblings or () if file.rfilename in OWN_FILES}
    try:
        with new_folder(folder) as partial:
            for file, entry in listed.items():
                api.hf_hub_download(name.repo, file, revision=commit, local_dir=partial)
                _check_hash(partial / file, entry)
            shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client keeps its notes there
            adapter_digest(partial)  # fails if a file is missing
            hashes = {file: file_digest(partial / file, advice=ADVICE) for file in listed}
            origin = {"repo": name.repo, "commit": commit, "files": hashes}
            (partial / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n")
    except AdapterError as exc:
        raise AdapterError(f"{name}: {str(exc).replace(str(partial), name.repo)}") from exc
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    return commit


def _check_hash(file: Path, listed: Any) -> None:
    """Compare a downloaded file with its hash in the commit: SHA-256 of a large file, else the hash of a git blob.

    Raises:
        AdapterError: if they differ, or the hub lists no hash.
    """
    if listed.lfs is not None:
        expected, found = listed.lfs.sha256, file_digest(file, advice="try again")
    else:
        content = file.read_bytes()
        expected = listed.blob_id
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise AdapterError(f"got {file.name} of hash {found}, expected {expected}, which the hub lists: try again")


def _check_unchanged(folder: Path) -> None:
    """Compare the files of a cached folder with their hashes when they were downloaded.

    Raises:
        AdapterError: if a file was changed, added or removed.
    """
    origin = read_json(folder / ORIGIN_FILE, advice=ADVICE)
    recorded = origin.get("files") if isinstance(origin, dict) else None
    found = {file: file_digest(folder / file, advice=ADVICE) for file in OWN_FILES if (folder / file).exists()}
    if found != recorded:
        raise AdapterError(f"got {folder}, whose files have changed since they were downloaded; {ADVICE}")
