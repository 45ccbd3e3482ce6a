"""A real MQTT broker in this process, which can be stopped and started again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

amqtt_broker = pytest.importorskip("amqtt.broker")
plugins = pytest.importorskip("amqtt.plugins.base")
pytest.importorskip("paho.mqtt.client")

USER, PASSWORD = "camera", "p@ss/word"
RECEIVED: list[tuple[str, str]] = []  # topic and text, of the broker that was made last


class Recorder(plugins.BaseAuthPlugin):  # type: ignore[misc, name-defined]
    """Lets one user in, and writes down what is published."""

    async def authenticate(self, *, session: Any) -> bool:
        return (session.username, session.password) == (USER, PASSWORD)

    async def on_broker_message_received(self, *, client_id: str, message: Any) -> None:
        RECEIVED.append((message.topic, bytes(message.data).decode()))


class Broker:
    """Listens on a free port of this machine while it is entered or started."""

    def __init__(self) -> None:
        RECEIVED.clear()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"mqtt://{USER}:p%40ss%2Fword@127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._broker = self._call(self._new())
        self._call(self._broker.start())
        return self

    def stop(self) -> None:
        self._call(self._broker.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _new(self) -> Any:
        listener = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        return amqtt_broker.Broker({"listeners": {"default": listener}, "plugins": {"brokers.Recorder": {}}})

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
