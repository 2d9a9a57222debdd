"""Cancels the work for a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection before the answer was there."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Returns the result of a coroutine, which is cancelled if the client disconnects.

    A cancelled request to a policy's server closes its connection, and a cancelled question to a
    model leaves its queue. A call of a model that runs already is finished, because it answers
    other clients as well.

    Args:
      request: A request whose body was read to its end.
      work: The coroutine that answers it.

    Raises:
      ClientGone: The client disconnected first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    tasks = (working, watching)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # until the connections are closed


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
