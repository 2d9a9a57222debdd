"""What processes of a run agree on before they meet; together: `tests/cli/test_processes.py`."""

from __future__ import annotations

import jax
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.processes import (
    DistributedConfig,
    check_joined,
    ended_with_others,
    from_first,
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_processes": 2}, r"num_processes needs distributed\.coordinator"),
        ({"coordinator": "auto", "process_id": 1}, r"process_id needs distributed\.coordinator"),
        ({"coordinator": "here"}, r"coordinator must be HOST:PORT or auto .got 'here'"),
        ({"coordinator": ":1234"}, r"coordinator must be HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2}, r"process_id must be set"),
        ({"coordinator": "a:1", "process_id": 0}, r"num_processes must be set"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"process_id must be in .0, 2. .got 2",
        ),
        ({"heartbeat_seconds": 0}, r"heartbeat_seconds must be at least 1"),
    ],
)
def test_bad_values_name_the_key(values, message):
    with pytest.raises(UserError, match=rf"^{message}"):
        DistributedConfig(**values)


def test_a_pod_that_was_not_joined_is_refused(monkeypatch):
    check_joined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(
        UserError, match=r"distributed\.coordinator must be auto .* one of 4 processes"
    ):
        check_joined()


def test_one_process_alone_keeps_its_values_and_errors():
    value = object()
    assert from_first(lambda: value) is value
    with pytest.raises(jax.errors.JaxRuntimeError, match="own"), ended_with_others():
        raise jax.errors.JaxRuntimeError("its own")
