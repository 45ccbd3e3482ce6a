"""Deliveries to an MQTT broker."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from continuad.needs import needed
from continuad.station.target import SendError
from continuad.watching.mqtt import MqttAddress

KEEPALIVE = 20
"""Seconds after which a connection that is silent is tried out."""


class MqttTarget:
    """Publishes each text at least once (QoS 1), over a connection that lasts until something fails.

    Args:
        address: as `MqttAddress.parse` reads it.
        timeout: seconds for the connection, and for the confirmation of what was sent.

    Raises:
        SettingsError: this is no such address.
        MissingError: paho-mqtt is not installed.
    """

    def __init__(self, address: str, *, timeout: float = 10) -> None:
        self._address = MqttAddress.parse(address)
        self._timeout = timeout
        self._mqtt = needed("paho.mqtt.client")
        # The same for all connections: a broker ends the one that it still has when the next one comes.
        self._client_id = f"continuad-{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._is_closed = False

    @property
    def name(self) -> str:
        """The broker."""
        return f"the broker {self._address.broker}"

    def send(self, payloads: Sequence[str]) -> None:
        """Publish texts in order.

        Raises:
            SendError: the broker has not confirmed them all.
        """
        connection = self._living()
        try:
            connection.open()
            connection.publish(payloads)
        except SendError:
            connection.close()  # it may know of messages that will come again
            raise

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._is_closed = True
            connection = self._connection
        if connection:
            connection.close()

    def _living(self) -> _Connection:
        """The connection, or a new one if it is over."""
        with self._lock:
            if self._is_closed:
                raise SendError("is not used any more")
            if self._connection is None or self._connection.is_over:
                self._connection = _Connection(
                    self._mqtt, self._address, client_id=self._client_id, timeout=self._timeout
                )
            return self._connection


class _Connection:
    """One connection to a broker, from its beginning to its end."""

    def __init__(self, mqtt: Any, address: MqttAddress, *, client_id: str, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._changed = threading.Condition()
        self._thread = threading.Lock()  # paho's: it cannot be joined while it is being started
        self._is_up = False
        self.is_over = False
        self._refusal = ""
        self._confirmed: set[int] = set()
        version = mqtt.CallbackAPIVersion.VERSION2
        self._client = client = mqtt.Client(version, client_id=client_id, reconnect_on_failure=False)
        client.connect_timeout = timeout
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_publish = self._published
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.uses_tls:
            client.tls_set()

    def open(self) -> None:
        """Connect, unless it is.

        Raises:
            SendError: the broker cannot be reached, or refuses the connection.
        """
        if self._is_up:
            return
        try:
            self._client.connect(self._address.host, self._address.port, keepalive=KEEPALIVE)
        except (OSError, UnicodeError) as error:
            cause = getattr(error, "strerror", None) or str(error)
            raise SendError(f"cannot be reached ({cause})") from None
        with self._thread:
            if not self.is_over:
                self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_up or self.is_over, timeout=self._timeout)
            if not self._is_up:
                raise SendError(self._refusal or "does not answer")

    def publish(self, texts: Sequence[str]) -> None:
        """Publish texts.

        Raises:
            SendError: the broker has not confirmed them all.
        """
        with self._changed:
            self._confirmed.clear()
        numbers = [self._client.publish(self._address.topic, text, qos=1).mid for text in texts]
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_over or self._confirmed.issuperset(numbers), timeout=self._timeout
            )
            sent = next(
                (index for index, number in enumerate(numbers) if number not in self._confirmed), len(numbers)
            )
            if sent < len(numbers):
                raise SendError("is gone" if self.is_over else "confirms nothing", sent=sent)

    def close(self) -> None:
        """End it, whatever it is at."""
        self._end()
        self._client.disconnect()
        with self._thread, suppress(AttributeError):  # where it ends at this very moment
            self._client.loop_stop()

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:  # noqa: ARG002
        with self._changed:
            if reason.is_failure:
                self._refusal = f"refuses the connection ({reason})"
            else:
                self._is_up = True
            self._changed.notify_all()

    def _published(self, client: Any, data: Any, number: int, reason: Any, properties: Any) -> None:  # noqa: ARG002
        with self._changed:
            self._confirmed.add(number)
            self._changed.notify_all()

    def _disconnected(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()
