"""The clients of station.py, in a process of their own: each posts a photo, waits for the answer, goes on.

They speak plain HTTP over connections that are kept: on two cores, what a client computes is taken from the
station that it measures. They end when standard input does, and print what they saw as a line of JSON. With
`--count`, they post so many images once, each under a key of its own, print a line for each that was
acknowledged, and try again when the station is away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from continuad.files import find_images

PATH = "/api/v1/inspections"
CREATED, BUSY = 201, (429, 503)
AWAY_SECONDS = 0.1


@dataclass(frozen=True)
class Answer:
    """What the station says to a request."""

    status: int
    retry_after: float
    body: bytes


@dataclass
class Seen:
    """What the clients have seen since they warmed up.

    Attributes:
        since: when that was (perf_counter).
        latencies: seconds from the first byte of each request that was answered to the last of its answer.
        refused: answers that told to come back; the time until then is no part of a latency.
    """

    since: float
    latencies: list[float] = field(default_factory=list)
    refused: int = 0


class Connection:
    """A connection that is kept; opened anew when it was lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, *headers: str) -> Answer:
        """Post; raises OSError or EOFError when the station is away."""
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream"]
        lines += [f"Content-Length: {len(body)}", *headers, "", ""]
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        try:
            writer.write("\r\n".join(lines).encode())
            writer.write(body)
            await writer.drain()
            start = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in start[1:] if line)
            content = await reader.readexactly(int(fields["content-length"]))
        except (OSError, EOFError):
            self.close()
            raise
        return Answer(int(start[0].split()[1]), float(fields.get("retry-after", 0)), content)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="a folder")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds that do not count")
    parser.add_argument("--count", type=int, help="of images that are to be acknowledged, each once")
    arguments = parser.parse_args(words)
    photos = [path.read_bytes() for path in find_images(arguments.photos)]
    asyncio.run(load(arguments, photos) if arguments.count is None else deliver(arguments, photos))


async def load(arguments: argparse.Namespace, photos: list[bytes]) -> None:
    """Post until standard input ends."""
    seen = Seen(time.perf_counter() + arguments.warm_up)
    clients = [
        asyncio.create_task(client(Connection(arguments.port), islice(cycle(photos), first, None), seen))
        for first in range(arguments.clients)
    ]
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.sleep(arguments.warm_up)
    used = cpu_seconds()
    done, _ = await asyncio.wait([ending, *clients], return_when=asyncio.FIRST_COMPLETED)
    seconds = time.perf_counter() - seen.since
    for each in done - {ending}:
        each.result()  # a client ends by itself only if it fails
    share = (cpu_seconds() - used) / seconds
    for each in clients:
        each.cancel()
    print(json.dumps({"seconds": seconds, "client_cpu": share, **vars(seen)}))


async def client(connection: Connection, photos: Iterator[bytes], seen: Seen) -> None:
    for photo in photos:
        while True:
            begin = time.perf_counter()
            answer = await connection.post(PATH, photo)
            end = time.perf_counter()
            if answer.status == CREATED:
                break
            checked(answer)
            seen.refused += end >= seen.since
            await asyncio.sleep(answer.retry_after)
        if end >= seen.since:
            seen.latencies.append(end - begin)


async def deliver(arguments: argparse.Namespace, photos: list[bytes]) -> None:
    """Post each image until it is acknowledged, whatever happens to the station meanwhile."""
    waiting = iter(range(arguments.count))

    async def work() -> None:
        connection = Connection(arguments.port)
        for number in waiting:
            photo, path = photos[number % len(photos)], f"{PATH}?reference={number}"
            while True:
                try:
                    answer = await connection.post(path, photo, f"Idempotency-Key: {number}")
                except (OSError, EOFError):
                    await asyncio.sleep(AWAY_SECONDS)
                    continue
                if answer.status == CREATED:
                    break
                checked(answer)
                await asyncio.sleep(answer.retry_after)
            made: dict[str, Any] = json.loads(answer.body)
            line = {key: made[key] for key in ("id", "reference", "score")}
            print(json.dumps(line), flush=True)
        connection.close()

    await asyncio.gather(*(work() for _ in range(arguments.clients)))


def checked(answer: Answer) -> None:
    """Go on only if the station is busy."""
    if answer.status not in BUSY:
        sys.exit(f"the station answers {answer.status}: {answer.body.decode()}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
