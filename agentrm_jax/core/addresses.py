"""Addresses of servers, as configurations and commands name them."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable

_EXPECTED = "the address of a server, http://HOST:PORT or https://HOST"


def is_url(text: str | None) -> bool:
    """Returns whether a text names a server, not a folder."""
    return text is not None and text.startswith(("http://", "https://"))


def is_store_url(text: str) -> bool:
    """Returns whether a text is the URL of an object store or another remote file system."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


def is_loopback(url: str) -> bool:
    """Returns whether a server runs on this machine, so that no proxy is asked for it."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_address(url: Any, field: str = "url", *, without: str = "") -> str:
    """Returns the address of a server without slashes at its end.

    Args:
      url: `http://HOST:PORT` or `https://HOST/PATH`; any value of a configuration.
      field: The key or option that holds it, for errors.
      without: An end of the path that is left out, such as `/v1`.

    Raises:
      UserError: It is something else, or holds a user name, a password, a query or a fragment.
        Parts that may be a key are not shown.
    """
    text = url if isinstance(url, str) else ""
    try:
        parts = urllib.parse.urlsplit(text)
        (parts.hostname or "").encode("idna")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise _refused(url, field) from None
    if usable and (parts.username is not None or parts.password is not None):
        raise UserError("must hold no user name and no password", field=field)
    # urlsplit silently drops line breaks and tabs, and a blank belongs to no address.
    if not usable or parts.query or parts.fragment or printable(text) != text or " " in text:
        raise _refused(url, field)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix(without)}"


def _refused(url: Any, field: str) -> UserError:
    """The error for an address; its value is left out if it may hold a key."""
    may_hold_key = isinstance(url, str) and any(mark in url for mark in "@?#")
    return UserError(field=field, value=None if may_hold_key else url, expected=_EXPECTED)
