# SPDX-License-Identifier: MIT
"""A listening socket in a loop that must never wait for it, nor spin on it.

A connection that cannot be taken (no descriptor is left, or as many clients are there as may be)
stays in the socket's queue, and the socket stays readable: it is not looked at again for a moment.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ("Listener",)

_PAUSE_SECONDS = 0.1


def _always() -> bool:
    return True


def _in_silence(_error: OSError) -> None:
    pass


class Listener:
    """Hands each new connection, which does not block, to `on_connection`. Owns the socket.

    `has_room` is asked before one is taken; `on_lack` is told why one could not be.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        on_connection: Callable[[socket.socket], None],
        *,
        has_room: Callable[[], bool] = _always,
        on_lack: Callable[[OSError], None] = _in_silence,
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._on_connection = on_connection
        self._has_room = has_room
        self._on_lack = on_lack
        self._again: float | None = None
        listener.setblocking(False)
        self._resume()

    def deadline(self) -> float | None:
        """Return when `tick` has something to do; None while connections are taken."""
        return self._again

    def tick(self) -> None:
        """Take connections again, if it is time."""
        if self._again is not None and time.monotonic() >= self._again:
            self._resume()

    def close(self) -> None:
        """Take no more connections; those that were not taken are reset. Again: no effect."""
        if self._listener.fileno() < 0:
            return
        if self._again is None:
            self._selector.unregister(self._listener)
        self._listener.close()

    def _resume(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_ready)
        self._again = None

    def _pause(self) -> None:
        self._selector.unregister(self._listener)
        self._again = time.monotonic() + _PAUSE_SECONDS

    def _on_ready(self) -> None:
        if not self._has_room():
            self._pause()
            return
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptor left: others may give some back
            self._on_lack(error)
            self._pause()
            return
        connection.setblocking(False)
        self._on_connection(connection)
