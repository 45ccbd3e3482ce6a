"""What a station is told when it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from continuad.errors import SettingsError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them, may ask for.

    Attributes:
        bytes: of one upload.
        pixels: of one image.
        photos: of one photo set.
        bytes_at_once: of all uploads that are being received.
        queue: inspections that wait; further ones are told to come back.
        upload_seconds: until an upload must be complete.
        requests: of one client in a second, in the long run.
        burst: requests that a client may make at once.
        attempts: wrong tokens of one client in a minute.
    """

    bytes: int = 32 * MIB
    pixels: int = 50_000_000
    photos: int = 1000
    bytes_at_once: int = 256 * MIB
    queue: int = 64
    upload_seconds: float = 60
    requests: float = 200
    burst: int = 400
    attempts: int = 10


@dataclass(frozen=True)
class StationSettings:
    """What a station is told when it starts; printed without secrets.

    Attributes:
        bank: its folder; created if there is none.
        folder: where the station keeps its database and its pictures; by default beside the bank.
        database: address of a PostgreSQL database; by default SQLite in the folder.
        host: name or address to listen on.
        port: TCP port; 0 for any that is free.
        token: what a client must know; None lets everybody in, which only a loopback address may.
        budget: bytes that the pictures of the history may take.
        watch: a folder, video, camera or address to inspect all the time.
        every: of a video or camera, at most one frame in so many seconds.
        mqtt: where verdicts are published, as mqtt://user:password@host:port/topic.
        webhook: where verdicts are posted.
        webhook_secret: signs what is posted.
        limits: of what clients may ask for.
    """

    bank: Path
    folder: Path | None = None
    database: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    budget: int = 10 * 1024 * MIB
    watch: str | None = field(default=None, repr=False)
    every: float | None = None
    mqtt: str | None = field(default=None, repr=False)
    webhook: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.is_loopback and not self.token:
            raise SettingsError(
                f"Whoever reaches {self.host} could change what the station knows.",
                "Give it a token that clients must know, or listen on 127.0.0.1.",
            )
        if self.token is not None and not re.fullmatch("[!-~]{16,}", self.token):
            raise SettingsError(
                "The token cannot be used: it is short, or not plain.",
                "Give 16 letters, digits and signs or more, without blanks.",
            )
        if self.budget < MIB:
            raise SettingsError("The disk budget holds no picture.", "Give 1 MiB or more.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the station."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def place(self) -> Path:
        """The station's folder."""
        return self.folder or self.bank.with_name(f"{self.bank.name}.station")
