"""News for whoever listens: the page follows jobs and inspections without asking again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

BACKLOG = 200
"""Events that a slow listener may be behind; then it is cut off, and asks anew when it comes back."""

HEARTBEAT = 15.0
"""Seconds of silence after which a comment shows that the connection lives."""


class Events:
    """Hands events to all listeners, from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: set[asyncio.Queue[str | None]] = set()

    def open(self) -> None:
        """Take the running event loop, in which the listeners live."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End all listeners, from any thread; whoever comes later is sent away at once."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end_all)

    def publish(self, kind: str, data: Any) -> None:
        """Tell everybody; `data` are plain values for JSON."""
        if (loop := self._loop) is not None and not loop.is_closed():
            text = f"event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
            loop.call_soon_threadsafe(self._spread, text)

    def _end_all(self) -> None:
        for queue in self._queues:
            _end(queue)

    def _spread(self, text: str) -> None:
        for queue in self._queues:
            if queue.full():
                _end(queue)
            else:
                queue.put_nowait(text)

    async def listen(self) -> AsyncIterator[str]:
        """Yield events in the format of server-sent events, until the station ends."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(BACKLOG)
        self._queues.add(queue)
        try:
            yield "retry: 2000\nevent: hello\ndata: {}\n\n"
            while self._loop is not None:
                try:
                    text = await asyncio.wait_for(queue.get(), HEARTBEAT)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            self._queues.discard(queue)


def _end(queue: asyncio.Queue[str | None]) -> None:
    """Make the end the next thing that a listener hears."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
