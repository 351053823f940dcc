"""Run folders and written files."""

import json
from pathlib import Path

import pytest

from mnv2det.errors import ConfigError, DataError
from mnv2det.io import RunFolder, config_file, write_atomically, write_json


def test_a_yaml_is_its_own_config_and_a_run_folder_has_one(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("")
    assert config_file(str(tmp_path)) == tmp_path / "config.yaml"
    assert config_file(tmp_path / "some.yaml") == tmp_path / "some.yaml"


def test_a_folder_without_config_is_no_run(tmp_path: Path):
    (tmp_path / "config.yaml").mkdir()
    message = f"^{tmp_path}: not a run folder \\(no config.yaml in it\\)$"
    assert not RunFolder(tmp_path).exists
    with pytest.raises(ConfigError, match=message):
        config_file(tmp_path)
    with pytest.raises(ConfigError, match=message):
        RunFolder(tmp_path).check_begun()


def test_a_run_with_a_checkpoint_and_a_file_are_no_places_for_a_new_run(tmp_path: Path):
    RunFolder(tmp_path / "new").check_unused()
    RunFolder(tmp_path).check_unused()
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds a run already; choose another --out, or go on with --resume"):
        RunFolder(tmp_path).check_unused()
    with pytest.raises(ConfigError, match=r"last\.pt: is a file; a run needs a folder"):
        RunFolder(tmp_path / "last.pt").check_unused()


def test_written_json_is_json_where_numbers_are_not_finite(tmp_path: Path):
    data = {"metrics": {"a": float("nan"), "b": 0.5}, "rows": [float("inf"), (1, -float("inf"))], "name": "NaN"}
    write_json(tmp_path / "x.json", data)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse) == {
        "metrics": {"a": None, "b": 0.5},
        "rows": [None, [1, None]],
        "name": "NaN",
    }


@pytest.mark.parametrize("name", ["", "folder", "file/x.json"])
def test_a_json_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r": cannot write \(") as error:
        write_json(tmp_path / name, {})
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "file"}


def test_a_file_may_have_the_longest_name_that_the_file_system_takes(tmp_path: Path):
    path = tmp_path / ("n" * 250 + ".json")
    write_atomically(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
