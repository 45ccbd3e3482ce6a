"""`continuad serve`: the inspection station, a service with a web page."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.options import BankArgument, EveryOption, MqttOption
from continuad.cli.output import say, stderr
from continuad.errors import SettingsError

MIB = 2**20
GIB = 2**30


@app.command(
    epilog=example(
        "continuad serve parts.bank",
        "continuad serve parts.bank --watch /camera/out --mqtt mqtt://broker/line1",
        "CONTINUAD_TOKEN=... continuad serve parts.bank --host 0.0.0.0",
    )
)
def serve(
    bank: BankArgument,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Listen here; other machines need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="TCP port; 0 takes one that is free.")
    ] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TEXT",
            envvar="CONTINUAD_TOKEN",
            show_envvar=True,
            show_default="nobody is asked",
            help="What clients must know. Better in the environment, where no process list shows it.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            show_default="BANK.station",
            help="Where history and pictures are kept.",
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            envvar="CONTINUAD_DATABASE",
            show_default="SQLite in the folder",
            help="Keep the history in PostgreSQL: postgresql+psycopg://user:password@host/name.",
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            "--budget", metavar="GIB", min=0.001, help="Disk that pictures of the history may take."
        ),
    ] = 10.0,
    watch: Annotated[
        str | None,
        typer.Option(
            "--watch",
            metavar="SOURCE",
            show_default=False,
            help="Inspect all the time what this folder, video, camera (0) or address brings.",
        ),
    ] = None,
    every: EveryOption = None,
    mqtt: MqttOption = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook",
            metavar="URL",
            envvar="CONTINUAD_WEBHOOK",
            show_default=False,
            help="Post verdicts as JSON to this address.",
        ),
    ] = None,
    webhook_secret: Annotated[
        str | None,
        typer.Option(
            "--webhook-secret",
            metavar="TEXT",
            envvar="CONTINUAD_WEBHOOK_SECRET",
            show_default=False,
            help="Sign what is posted with HMAC-SHA256. Better in the environment.",
        ),
    ] = None,
    max_upload: Annotated[
        float, typer.Option("--max-upload", metavar="MIB", min=0.1, help="Largest image file that is taken.")
    ] = 32.0,
    certificate: Annotated[
        Path | None,
        typer.Option("--tls-certificate", metavar="FILE", show_default=False, help="PEM file, for HTTPS."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", show_default=False, help="PEM file of its key."),
    ] = None,
) -> None:
    """Run an inspection station: a web page to teach and inspect with, and an HTTP service.

    The bank is created if there is none. Everything that was acknowledged survives a power cut. Ctrl-C ends
    the station: images that wait are inspected, and a product that is being taught goes on at the next start.
    """
    if (certificate is None) != (key is None):
        raise SettingsError("HTTPS needs a certificate and its key.", "Give both, or neither.")
    for file in (certificate, key):
        if file is not None and not file.is_file():
            raise SettingsError(f"There is no file {file}.", "Check the spelling.")
    from continuad.station.serving import Tls
    from continuad.station.serving import serve as run
    from continuad.station.settings import Limits, StationSettings

    upload = round(max_upload * MIB)
    settings = StationSettings(
        bank=bank,
        folder=folder,
        database=database,
        host=host,
        port=port,
        token=token or None,
        budget=round(budget * GIB),
        watch=watch,
        every=every,
        mqtt=mqtt,
        webhook=webhook,
        webhook_secret=webhook_secret,
        limits=Limits(bytes=upload, bytes_at_once=max(Limits.bytes_at_once, 4 * upload)),
    )
    say("Starting the station ...", console=stderr)
    tls = Tls(certificate, key) if certificate and key else None
    received = run(settings, tls=tls, note=lambda text: say(text, console=stderr))
    if received[:1] == [signal.SIGINT]:
        raise UserInterruptError("The station has ended; nothing is lost.")
