"""Verdicts as messages to an MQTT broker, which may come and go."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from continuad.errors import SettingsError
from continuad.needs import needed
from continuad.watching.sighting import Note

PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class MqttAddress:
    """Broker and topic; printed without user and password.

    Attributes:
        host: name or IP address.
        port: TCP port.
        topic: what to publish under.
        uses_tls: whether the connection is encrypted and the broker's certificate checked.
        user: None for nobody in particular.
        password: of the user.
    """

    host: str
    port: int
    topic: str
    uses_tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read mqtt://user:password@host:port/topic, or mqtts://; special characters as %23 and so on.

        Raises:
            SettingsError: it is not of this form; the message holds nothing of it.
        """
        try:
            url = urlsplit(text)
            port = url.port
            (url.hostname or "").encode("idna")
        except ValueError:
            raise _refusal("has no proper host and port") from None  # they may be a part of the password
        if url.scheme not in PORTS or not url.hostname:
            raise _refusal("is not of the form mqtt://host/topic")
        topic = unquote(url.path[1:])
        if not topic or "?" in text or "#" in text or any(sign in topic for sign in "#+\0"):
            raise _refusal("has no proper topic")
        user = None if url.username is None else unquote(url.username)
        password = None if url.password is None else unquote(url.password)
        tls = url.scheme == "mqtts"
        return cls(url.hostname, port or PORTS[url.scheme], topic, tls, user, password)

    @property
    def broker(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class MqttSettings:
    """How patiently messages are delivered.

    Attributes:
        queue: messages that wait for the broker at most.
        waits: seconds between attempts to reach it: at first, and at most.
        linger: seconds that messages have at the end.
    """

    queue: int = 1000
    waits: tuple[float, float] = (1, 30)
    linger: float = 3.0


class Publisher:
    """Publishes texts at least once each (QoS 1), in the background; they wait while the broker is away.

    Args:
        address: where to.
        note: told, also from another thread, how the broker fares.
        settings: bounds and waits.

    Attributes:
        dropped: texts that found the queue full.

    Raises:
        MissingError: paho-mqtt is not installed.
    """

    def __init__(self, address: MqttAddress, *, note: Note, settings: MqttSettings | None = None) -> None:
        self._address, self._note = address, note
        self._settings = settings or MqttSettings()
        self.dropped = 0
        self._state = ""
        self._waiting = 0
        self._is_full = False
        self._changed = threading.Condition()
        mqtt = needed("paho.mqtt.client")
        self._full = mqtt.MQTT_ERR_QUEUE_SIZE
        self._client = client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_connect, client.on_connect_fail = self._connected, self._not_connected
        client.on_disconnect, client.on_publish = self._disconnected, self._published
        client.max_queued_messages_set(self._settings.queue)
        client.reconnect_delay_set(*self._settings.waits)
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.uses_tls:
            client.tls_set()
        client.connect_async(address.host, address.port, keepalive=20)
        client.loop_start()

    def publish(self, text: str) -> None:
        """Hand over a text; returns at once."""
        with self._changed:
            self._waiting += 1  # before it can be confirmed
        is_refused = self._client.publish(self._address.topic, text, qos=1).rc == self._full
        if is_refused:
            with self._changed:
                self._waiting -= 1
                self.dropped += 1
        if is_refused and not self._is_full:
            self._note(
                f"{self._settings.queue} verdicts wait for the broker {self._address.broker}; "
                "further ones do not go there."
            )
            self._is_full = True

    def close(self) -> int:
        """Wait a little for what is on its way, and end; returns how many texts did not get through."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=self._settings.linger)
        self._state = "closed"
        self._client.disconnect()
        self._client.loop_stop()
        return self._waiting + self.dropped

    def _published(self, *_: Any) -> None:
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:  # noqa: ARG002
        broker = self._address.broker
        if reason.is_failure:
            self._turn("refused", f"The broker {broker} refuses the connection ({reason}).")
        else:
            self._is_full = False
            self._turn(
                "connected",
                f"Connected to the broker {broker}; verdicts go to the topic {self._address.topic}.",
            )

    def _not_connected(self, *_: Any) -> None:
        self._turn("away", f"The broker {self._address.broker} cannot be reached; verdicts wait for it.")

    def _disconnected(self, *_: Any) -> None:
        if self._state == "connected":  # a refusal ends so, too
            self._turn("away", f"The broker {self._address.broker} is gone; verdicts wait for it.")

    def _turn(self, state: str, text: str) -> None:
        """Say something when it is news."""
        if self._state not in (state, "closed"):
            self._state = state
            self._note(text)


def _refusal(fault: str) -> SettingsError:
    return SettingsError(
        f"The MQTT address {fault}.",
        "Give one like mqtt://host/topic or mqtts://user:password@host:8883/topic.",
    )
