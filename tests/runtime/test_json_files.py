"""The settings that a folder was made with."""

from __future__ import annotations

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.json_files import read_record, same_settings, write_json_atomic


def test_a_folder_of_other_settings_is_refused(tmp_path) -> None:
    path = tmp_path / "settings.json"
    assert not same_settings(path, {"seed": 1}, "trees")
    write_json_atomic(path, {"seed": 1, "later": True})
    assert same_settings(path, {"seed": 1}, "trees")
    with pytest.raises(
        UserError, match=r"holds trees with seed = 1 \(got 2\); choose another folder"
    ):
        same_settings(path, {"seed": 2}, "trees")
    path.write_text("{")
    with pytest.raises(UserError, match=r"settings\.json, line 1: not JSON"):
        same_settings(path, {"seed": 1}, "trees")


def test_a_key_that_may_be_null_must_be_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"total": null}')
    assert read_record(path, total=int | None) == {"total": None}
    path.write_text("{}")
    with pytest.raises(UserError, match="total is missing"):
        read_record(path, total=int | None)
