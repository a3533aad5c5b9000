"""The depths of the states that a head reads, by `blora train --depths`."""

from pathlib import Path

import pytest

from blora.adapter import read_config
from blora.cli import main
from blora.errors import ConfigError
from blora.training.head.train import parse_depths
from tests.training.head.test_fit import FAST, arguments, fixed
from tests.training.toys import toy_data, write_jsonl


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_head_and_its_familiarity_read_the_depths_that_are_asked_for(
    readout: str, base_folder: Path, tmp_path: Path
) -> None:
    rows = toy_data(60)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(rows) if readout == "linear" else rows)
    assert main(arguments(base_folder, data, tmp_path / "toy", "--depths", "last")) == 0
    config = read_config(tmp_path / "toy")
    assert config.head is not None
    assert config.familiarity is not None
    assert config.head.depths == config.familiarity.depths == (2,)


def test_a_lora_above_all_that_a_linear_head_reads_is_refused(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy", "--depths", "0,1", "--layers", "last:1", *FAST)) != 0
    assert "got --layers from 1 on with --depths up to 1, expected layers below 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("spec", ["", "first", "-1", "1,", "1, 2", "0.5", "31", "2,99"])
def test_other_depths_are_refused(spec: str) -> None:
    assert parse_depths("2,0,2", 30) == (0, 2)
    with pytest.raises(ConfigError, match=f"got depths {spec!r}.*, expected"):
        parse_depths(spec, 30)
