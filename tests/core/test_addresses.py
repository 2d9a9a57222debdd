"""Addresses of servers: what is taken, what is refused, and that no error shows a key."""

from __future__ import annotations

import pytest

from agentrm_jax.core.addresses import is_loopback, is_url, server_address
from agentrm_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000//", "http://[::1]:8000"),
        ("https://host:8000/maze/", "https://host:8000/maze"),
        ("HTTP://host", "http://host"),
    ],
)
def test_addresses_that_are_taken(url, address):
    assert server_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://a..b",
        "http://h/ a",
        "http://h\n/a",
        "http://h/?key=sk1",
        "http://h/#sk1",
        "me:sk1@h",
        "http://me:sk1@h:x",
        3,
        None,
    ],
)
def test_addresses_that_are_refused(url):
    with pytest.raises(UserError, match="policy must be the address of a server, http://") as error:
        server_address(url, "policy")
    assert "sk1" not in str(error.value)
    assert "\n" not in str(error.value)


def test_user_names_are_refused():
    for url in ("http://me:sk1@host", "https://me@host/v1", "http://me:sk1@h/ a"):
        with pytest.raises(UserError, match="url must hold no user name") as error:
            server_address(url)
        assert "sk1" not in str(error.value)


def test_an_end_of_the_path_is_left_out():
    assert server_address("http://host/v1/", without="/v1") == "http://host"
    assert server_address("https://host/openai/v1", without="/v1") == "https://host/openai"
    assert server_address("http://v1", without="/v1") == "http://v1"


def test_what_names_a_server():
    assert is_url("http://host")
    assert not is_url("runs/quickstart")
    assert not is_url(None)


def test_servers_of_this_machine():
    assert all(map(is_loopback, ("http://127.0.0.2:1", "http://[::1]", "http://localhost/v1")))
    assert not any(map(is_loopback, ("http://10.0.0.1", "http://localhost.example")))
