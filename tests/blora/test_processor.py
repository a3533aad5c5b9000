"""The limit of CPU time of a container, from files as the kernel writes them."""

import os
from pathlib import Path

import pytest

from blora import processor
from blora.cli import main
from blora.processor import cpu_limit, limit_threads, usable_cores

TWO, ONE = "0::/pods/one\n", "9:name=systemd:/pods/one\n4:memory:/pods/one\n2:cpu,cpuacct:/pods/one\n0::/\n"


def version_2(mount: Path, group: str, limit: str) -> None:
    (mount / group).mkdir(parents=True, exist_ok=True)
    (mount / group / "cpu.max").write_text(f"{limit}\n")


def version_1(mount: Path, group: str, quota: int, period: int = 100_000) -> None:
    folder = mount / "cpu" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def limit(tmp_path: Path, groups: str) -> float | None:
    (tmp_path / "groups").write_text(groups)
    return cpu_limit(tmp_path / "groups", tmp_path)


def test_there_is_no_limit_without_control_groups(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path / "missing", tmp_path) is None
    assert limit(tmp_path, TWO) is None
    assert limit(tmp_path, ONE) is None
    assert limit(tmp_path, "") is None
    assert limit(tmp_path, "not a group\n\n") is None


def test_the_own_group_has_the_limit(tmp_path: Path) -> None:
    version_2(tmp_path, "pods/one", "150000 100000")
    version_2(tmp_path, "pods/other", "50000 100000")
    assert limit(tmp_path, TWO) == 1.5
    version_2(tmp_path, "pods/one", "max 100000")
    assert limit(tmp_path, TWO) is None
    version_1(tmp_path, "pods/one", 500_000, 250_000)
    version_1(tmp_path, "pods/other", 1)
    assert limit(tmp_path, ONE) == 2
    version_1(tmp_path, "pods/one", -1)
    assert limit(tmp_path, ONE) is None


@pytest.mark.parametrize(("own", "enclosing"), [(4, 3), (3, 4), (-1, 3), (3, -1)])
def test_the_limits_of_enclosing_groups_hold_too(tmp_path: Path, own: int, enclosing: int) -> None:
    def words(cores: int) -> str:
        return "max 100000" if cores < 0 else f"{cores * 100_000} 100000"

    version_2(tmp_path, "pods/one", words(own))
    version_2(tmp_path, "pods", words(enclosing))
    assert limit(tmp_path, TWO) == 3
    version_1(tmp_path, "pods/one", own * 100_000 if own > 0 else -1)
    version_1(tmp_path, "pods", enclosing * 100_000 if enclosing > 0 else -1)
    assert limit(tmp_path, ONE) == 3


@pytest.mark.parametrize("path", ["/", "/docker/of-the-host", "/../.."])
def test_the_group_at_the_mount_is_that_of_a_container(tmp_path: Path, path: str) -> None:
    version_2(tmp_path, "", "200000 100000")
    assert limit(tmp_path, f"0::{path}\n") == 2
    (tmp_path / "cpu.max").unlink()
    version_1(tmp_path, "", 250_000)
    assert limit(tmp_path, f"3:cpu,cpuacct:{path}\n") == 2.5


@pytest.mark.parametrize(
    ("cores", "limited", "given", "expected"),
    [
        (64, 2.0, None, "2"),
        (64, 2.9, None, "2"),
        (64, 0.5, None, "1"),
        (4, 4.0, None, None),
        (4, 8.0, None, None),
        (64, None, None, None),
        (64, 2.0, "16", "16"),
    ],
)
def test_threads_follow_the_limit_unless_they_are_set(
    cores: int, limited: float | None, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: cores)
    monkeypatch.setattr(processor, "cpu_limit", lambda: limited)
    monkeypatch.setattr(os, "environ", {} if given is None else {"OMP_NUM_THREADS": given})
    limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == expected


def test_every_command_sets_its_threads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processor, "cpu_limit", lambda: 0.5)
    monkeypatch.setattr(processor, "usable_cores", lambda: 2)
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", others)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "usage: blora train" in capsys.readouterr().out
    assert others["OMP_NUM_THREADS"] == "1"


def test_usable_cores_are_those_of_the_process() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
