"""What a station promises when it is killed, its disk is full, and clients are slow, many or bad."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sql
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from conftest import leftovers, photos
from continuad import Inspector
from continuad.station.database import jobs
from stations import (
    KEY,
    ROOT,
    Running,
    history,
    inspect,
    job_after,
    photo_set,
    png,
    schema,
    shots,
    teach,
    wait_for,
)

pytest_plugins = ["databases"]

CLIENTS = 8
BLACK = png(np.zeros((40, 48, 3), np.uint8))


def pictures_in(station: Running) -> dict[str, bytes]:
    files = station.folder.glob("pictures/*/*")
    return {file.relative_to(station.folder / "pictures").as_posix(): file.read_bytes() for file in files}


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- killed while it inspects


class Line:
    """A client that inspects one image after another, each with a key, until the station is gone.

    Attributes:
        acknowledged: what was answered with 201: the image, by id.
        keys: the number of the last image, which nobody answered.
    """

    def __init__(self, station: Running, number: int) -> None:
        self.visitor = station.visitor()
        self.images = shots("bolt", 12, seed=number, width=40 + number)
        self.number = number
        self.acknowledged: dict[int, bytes] = {}
        self.count = 0
        self.thread = threading.Thread(target=self.work)

    def key(self, count: int) -> str:
        return f"line {self.number} part {count}"

    def work(self) -> None:
        while True:
            image = self.images[self.count % len(self.images)]
            headers = {KEY: self.key(self.count)}
            try:
                answer = self.visitor.post(f"{ROOT}/inspections", content=image, headers=headers)
            except httpx.HTTPError:
                return
            if answer.status_code == 201:
                self.acknowledged[answer.json()["id"]] = image
                self.count += 1
            else:
                assert answer.status_code == 503, answer.text
                time.sleep(0.01)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_what_was_acknowledged_survives_a_kill(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    with contextlib.ExitStack() as stack:
        environment = {}
        if kind == "postgresql":
            server = request.getfixturevalue("postgresql")
            environment = {"CONTINUAD_DATABASE": stack.enter_context(schema(server))}
        station = stack.enter_context(Running(folder, environment=environment))
        lines = [Line(station, number) for number in range(CLIENTS)]
        for line in lines:
            line.thread.start()
        wait_for(lambda: all(line.count > 3 for line in lines))
        station.kill()
        for line in lines:
            line.thread.join()
        station.start()
        pictures = pictures_in(station)  # the sweep is over
        stored = {each["id"]: each for each in history(station.client)}
        assert len(pictures) == len(stored)  # none without its row
        acknowledged = {number: data for line in lines for number, data in line.acknowledged.items()}
        assert len(acknowledged) == sum(line.count for line in lines)
        for number, data in acknowledged.items():
            assert stored[number]["has_picture"]
            place = f"{ROOT}/inspections/{number}/picture"
            assert station.client.get(place, params={"original": True}).content == data
        assert len(stored) <= len(acknowledged) + CLIENTS
        for line in lines:  # the one that nobody answered, and the last that was: both are sent again
            image = line.images[line.count % len(line.images)]
            made = {inspect(station.client, image, key=line.key(line.count))["id"] for _ in range(2)}
            assert len(made) == 1
            again = inspect(
                station.client, line.images[(line.count - 1) % len(line.images)], key=line.key(line.count - 1)
            )
            assert again["id"] == max(line.acknowledged)
        assert len(history(station.client)) == len(acknowledged) + CLIENTS
        assert len(pictures_in(station)) == len(acknowledged) + CLIENTS


def test_what_waits_is_answered_when_the_station_is_told_to_end(folder: Path) -> None:
    with Running(folder) as station:
        visitors = [station.visitor() for _ in range(24)]
        [image] = shots("bolt", 1, width=640, height=640)
        with ThreadPoolExecutor(len(visitors)) as pool:
            posts = [pool.submit(visitor.post, f"{ROOT}/inspections", content=image) for visitor in visitors]
            wait_for(lambda: any(post.done() for post in posts))
            assert station.end(signal.SIGTERM) == 0
            answered = list[int]()
            for post in posts:
                try:
                    answer = post.result()
                except httpx.HTTPError:
                    continue  # it came when nobody listened any more
                assert answer.status_code in (201, 503)
                answered += [answer.json()["id"]] if answer.status_code == 201 else []
        assert answered
        station.start()
        assert {each["id"] for each in history(station.client)} == set(answered)
        assert station.end(signal.SIGINT) == 130


# --- killed while it teaches


def begin_lesson(station: Running, count: int = 6) -> str:
    made = photo_set(station.client, shots("nut", count))
    return str(teach(station.client, name="nut", photo_set=made)["id"])


def step_of(station: Running, job: str) -> str:
    return str(station.client.get(f"{ROOT}/jobs/{job}").json()["step"])


def test_a_lesson_goes_on_after_a_kill(folder: Path) -> None:
    with Running(folder) as station:
        job = begin_lesson(station, 150)
        wait_for(lambda: step_of(station, job))
        [child] = station.children
        station.kill()
        wait_for(lambda: not is_alive(child))  # the teacher dies with the station
        station.start()
        done = job_after(station.client, job)
        assert (done["state"], done["attempts"]) == ("succeeded", 2)
        assert inspect(station.client, shots("nut", 1, seed=9)[0])["product"] == "nut"
        actions = [each["action"] for each in station.client.get(f"{ROOT}/audit").json()["items"]]
        assert actions == ["teach"]
        assert station.end() == 0
    assert leftovers(folder) == set()
    assert {"bolt", "plate", "nut"} == set(Inspector.open(folder).products)


def test_a_lesson_goes_on_after_ctrl_c(folder: Path) -> None:
    with Running(folder) as station:
        job = begin_lesson(station, 150)
        wait_for(lambda: step_of(station, job))
        [child] = station.children
        assert os.getpgid(child) != os.getpgid(station.process.pid)  # Ctrl-C does not reach it
        assert station.end(signal.SIGINT) == 130
        assert not is_alive(child)
        station.start()
        done = job_after(station.client, job)
        assert (done["state"], done["attempts"]) == ("succeeded", 2)


@pytest.mark.slow
def test_a_lesson_that_was_over_when_the_station_died_is_not_taught_again(folder: Path) -> None:
    with Running(folder) as station:
        job = begin_lesson(station)
        assert job_after(station.client, job)["state"] == "succeeded"
        assert station.end() == 0
        engine = sql.create_engine(f"sqlite:///{station.folder / 'station.db'}")
        with engine.begin() as connection:
            connection.execute(jobs.update().values(state="running", finished=None))
        engine.dispose()
        learnt = Inspector.open(folder).products["nut"].learnt
        station.start()
        assert job_after(station.client, job)["state"] == "succeeded"
    assert Inspector.open(folder).products["nut"].learnt == learnt


@pytest.mark.slow
def test_a_lesson_that_never_gets_through_fails(folder: Path) -> None:
    with Running(folder) as station:
        job = begin_lesson(station, 150)
        for attempt in (1, 2, 3):
            wait_for(lambda: step_of(station, job))
            assert station.client.get(f"{ROOT}/jobs/{job}").json()["attempts"] == attempt
            station.kill()
            station.start()
        failed = job_after(station.client, job)
        assert (failed["state"], failed["attempts"]) == ("failed", 3)
        assert "3 times" in failed["problem"]
        assert "nut" not in Inspector.open(folder).products
        inspect(station.client, shots("plate", 1)[0])
        assert job_after(station.client, begin_lesson(station))["state"] == "succeeded"
    assert leftovers(folder) == set()


@pytest.mark.slow
def test_a_teacher_that_dies_is_a_failure_that_is_told(folder: Path) -> None:
    with Running(folder) as station:
        job = begin_lesson(station)
        wait_for(lambda: step_of(station, job))
        [child] = station.children
        os.kill(child, signal.SIGKILL)
        failed = job_after(station.client, job)
        assert (failed["state"], failed["attempts"]) == ("failed", 1)
        assert "-9" in failed["problem"]
        assert failed["remedy"]
        photos_left = station.client.get(f"{ROOT}/jobs/{job}").json()
        assert photos_left == failed
        again = begin_lesson(station)
        assert job_after(station.client, again)["state"] == "succeeded"


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can make a disk that is small enough to be full")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_refuses_and_the_station_goes_on_when_there_is_space(
    folder: Path, small_disk: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = png(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))  # 270 kB
    with Running(folder, folder=small_disk / "station") as station:
        client = station.client
        kept = [inspect(client, shots("bolt", 1)[0])["id"]]
        made = photo_set(client, shots("nut", 6))
        for _ in range(20):
            answer = client.post(f"{ROOT}/inspections", content=noise)
            if answer.status_code != 201:
                break
            kept.append(answer.json()["id"])
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        for answer in (
            client.post(f"{ROOT}/inspections", content=noise),
            client.post(f"{ROOT}/photo-sets/{made}/photos", content=noise),
        ):
            assert answer.status_code == 507, answer.text
            assert "full" in answer.json()["problem"]
        shown = history(client)
        assert [each["id"] for each in shown] == kept[::-1]
        assert client.get("/healthz").status_code == 200
        codes = {client.post(f"{ROOT}/photo-sets").status_code for _ in range(50)}
        assert codes <= {201, 507}
        filler.unlink()
        removed = [file for file in small_disk.glob("station/pictures/*/*") if file.stat().st_size > 10**5]
        for file in removed[:3]:
            file.unlink()  # somebody makes space
        inspect(client, shots("bolt", 1)[0])
        job = teach(client, name="nut", photo_set=made)["id"]
        assert job_after(client, job)["state"] == "succeeded"
        assert station.end() == 0
        station.start()  # nothing is broken
        assert len(history(station.client)) == len(kept) + 1


# --- slow, many and bad clients


def half_sent(station: Running, path: str, *, length: int, body: bytes, kind: str) -> socket.socket:
    """A connection over which a part of a request has come."""
    host, port = station.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return connection


def test_slow_clients_are_told_so_and_hold_up_nobody(folder: Path) -> None:
    [image] = shots("bolt", 1)
    with Running(folder, limits={"upload_seconds": 5.0, "bytes_at_once": 2**20, "bytes": 2**18}) as station:
        slow = [
            half_sent(station, path, length=len(image), body=image[:99], kind=kind)
            for path, kind in (
                (f"{ROOT}/inspections", "image/png"),
                (f"{ROOT}/photo-sets/{'ab' * 16}/photos", "image/png"),
                (f"{ROOT}/session", "application/json"),
            )
        ]
        for _ in range(10):
            inspect(station.client, image)
        for connection in slow:
            with connection, connection.makefile("rb") as stream:
                answer = stream.read()  # to the end: the connection is of no use any more
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"problem"' in answer
        gone = half_sent(station, f"{ROOT}/inspections", length=len(image), body=image[:99], kind="image/png")
        gone.close()  # in the middle of it
        for _ in range(5):  # what they held is free again
            inspect(station.client, image)
        greedy = [
            half_sent(
                station,
                f"{ROOT}/inspections",
                length=2**18,
                body=b"",
                kind="image/png\r\nExpect: 100-continue",
            )
            for _ in range(4)
        ]
        for connection in greedy:
            assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")  # now it is counted
        busy = station.client.post(f"{ROOT}/inspections", content=image)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert station.client.get(f"{ROOT}/status").status_code == 200
        for connection in greedy:
            connection.close()
        wait_for(lambda: station.client.post(f"{ROOT}/inspections", content=image).status_code == 201)
        assert station.end() == 0
        assert not [line for line in station.said if "Traceback" in line]


def test_two_hundred_uploads_at_once(folder: Path) -> None:
    count, limit = 200, 16
    images = shots("bolt", 8)
    with Running(folder, limits={"queue": limit}) as station:
        limits = httpx.Limits(max_connections=count)
        with station.visitor(limits=limits) as visitor, ThreadPoolExecutor(count) as pool:
            posts = [
                pool.submit(visitor.post, f"{ROOT}/inspections", content=images[number % 8])
                for number in range(count)
            ]
            waiting = list[int]()
            while not all(post.done() for post in posts):
                status = station.client.get(f"{ROOT}/status")
                assert status.status_code == 200  # others are answered meanwhile
                waiting.append(status.json()["queue"]["waiting"])
            answers = [post.result() for post in posts]
        assert max(waiting) <= limit
        assert {answer.status_code for answer in answers} <= {201, 503}
        ids = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert len(ids) >= limit
        for answer in answers:
            if answer.status_code == 503:
                assert 1 <= int(answer.headers["retry-after"]) <= 10
                assert answer.json().keys() == {"problem", "remedy"}
        assert sorted(each["id"] for each in history(station.client)) == sorted(ids)
        inspect(station.client, images[0])


def bomb(width: int, height: int) -> bytes:
    """A small PNG that would be a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photos("bolt", 1)[0]).save(stream, kind, **options)
    return stream.getvalue()


BAD: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"P3 is what a text may begin with",
    "html": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
    "half a PNG": lambda: encoded("PNG")[:-900],
    "half a JPEG": lambda: encoded("JPEG")[:200],
    "half a TIFF": lambda: encoded("TIFF")[:300],
    "half a WebP": lambda: encoded("WEBP")[:60],
    "a head": lambda: encoded("PNG")[:33],
    "a disturbed PNG": lambda: encoded("PNG")[:200] + bytes(200) + encoded("PNG")[400:],
    "a GIF": lambda: encoded("GIF"),
    "an icon": lambda: encoded("ICO"),
    "a PDF": lambda: encoded("PDF"),
    "a bomb": lambda: bomb(50_000, 50_000),
    "a long bomb": lambda: bomb(2**31 - 1, 1),
    "too small": lambda: png(np.zeros((2, 2, 3), np.uint8)),
}
NAMES = (
    *("../../../etc/passwd", "..", "/etc/passwd", "%2e%2e%2f%2e%2e%2fx", "..%2fstation.db", "C:\\x", "a\0b"),
    *(
        "x" * 199,
        "\u202egnp.exe",
        "'; DROP TABLE photos; --",
        '"><script>',
        "\r\nSet-Cookie: a=b",
        ".",
        "ä/ö",
    ),
)


@pytest.fixture(scope="module")
def station(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    bank = Path(shutil.copytree(taught, tmp_path_factory.mktemp("bad") / "bank"))
    with Running(bank) as running:
        yield running
        assert not [line for line in running.said if "Traceback" in line]


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_good_image_is_refused(station: Running, what: str) -> None:
    client, data = station.client, BAD[what]()
    made = photo_set(client, [])
    before = history(client), set(station.folder.glob("*/*/*"))
    for path in (f"{ROOT}/inspections", f"{ROOT}/photo-sets/{made}/photos"):
        answer = client.post(path, content=data, headers={"Content-Type": "image/png"})
        assert answer.status_code == 422, answer.text
        assert answer.json().keys() == {"problem", "remedy"}
    assert (history(client), set(station.folder.glob("*/*/*"))) == before
    assert client.get("/readyz").status_code == 200


def test_too_large_an_upload_is_refused_before_it_is_read(station: Running) -> None:
    before = history(station.client)
    sent = half_sent(station, f"{ROOT}/inspections", length=2**31, body=b"x", kind="image/png")
    assert sent.recv(4096).startswith(b"HTTP/1.1 413 ")
    sent.close()
    pieces = (bytes(2**20) for _ in range(40))  # of a length that nobody tells
    with contextlib.suppress(httpx.WriteError):  # the answer may come before all was sent
        assert station.client.post(f"{ROOT}/inspections", content=pieces).status_code == 413
    assert history(station.client) == before


def test_no_text_of_a_client_becomes_a_path(station: Running, tmp_path: Path) -> None:
    client = station.client
    made = photo_set(client, [])
    [image] = shots("bolt", 1)
    around = sorted(path.name for path in station.folder.parent.iterdir())
    for name in NAMES:
        photo = client.post(f"{ROOT}/photo-sets/{made}/photos", params={"name": name}, content=image)
        assert photo.status_code == 201
        assert photo.json()["name"].isprintable()
        answers = [
            client.post(f"{ROOT}/inspections", params={"reference": name}, content=image),
            client.post(f"{ROOT}/inspections", params={"product": name}, content=image),
            client.post(f"{ROOT}/inspections", content=image, headers={KEY: ascii(name)}),
            client.get(f"{ROOT}/inspections", params={"product": name}),
            client.post(f"{ROOT}/teachings", json={"name": name, "photo_set": name}),
            client.post(f"{ROOT}/teachings", json={"name": name, "photo_set": made}),
        ]
        quoted = "".join(f"%{byte:02x}" for byte in name.encode())
        for method, path in (
            ("GET", f"products/{quoted}"),
            ("PATCH", f"products/{quoted}"),
            ("DELETE", f"products/{quoted}"),
            ("GET", f"products/{quoted}/samples/0"),
            ("GET", f"products/{quoted}/calibration"),
            ("POST", f"products/{quoted}/recalibration"),
            ("GET", f"inspections/{quoted}/picture"),
            ("GET", f"photo-sets/{quoted}"),
            ("DELETE", f"photo-sets/{quoted}"),
            ("GET", f"photo-sets/{made}/photos/{quoted}/picture"),
            ("GET", f"jobs/{quoted}"),
            ("POST", f"jobs/{quoted}/cancel"),
            ("GET", f"../../page/{quoted}"),
        ):
            given = {"json": {}} if method in ("PATCH", "POST") else {}
            answers.append(client.request(method, f"{ROOT}/{path}", **given))
        for path in (f"/page/{quoted}", f"/page/../{quoted}", f"/{quoted}"):
            answers.append(client.get(path))
            assert b"root:" not in answers[-1].content
        for answer in answers:
            assert answer.status_code < 500, (name, answer.request.url, answer.text)
            assert answer.status_code < 300 or answer.json().keys() == {"problem", "remedy"}
            assert "a=b" not in answer.headers.get("set-cookie", "")
    for job in client.get(f"{ROOT}/jobs").json()["items"]:
        client.post(f"{ROOT}/jobs/{job['id']}/cancel")
    assert sorted(path.name for path in station.folder.parent.iterdir()) == around
    assert {path.name for path in station.folder.iterdir()} <= {
        *(".lock", "identity", "photos", "pictures", "station.db", "station.db-shm", "station.db-wal")
    }
    assert {path.suffix for path in station.folder.glob("*/*/*")} <= {".png"}


# --- a watched folder


def test_a_watched_folder_is_inspected_once_even_over_restarts(folder: Path, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()

    def arrive(name: str, image: bytes) -> None:
        hidden = incoming / ".part"
        hidden.write_bytes(image)
        hidden.rename(incoming / name)

    def references(station: Running) -> list[str]:
        return sorted(each["reference"] for each in history(station.client) if each["source"] == "watch")

    images = shots("bolt", 6)
    arrive("0.png", images[0])
    arrive("\u00e4 1.png", images[1])
    with Running(folder, "--watch", incoming) as station:
        wait_for(lambda: len(references(station)) == 2)
        arrive("2.png", images[2])
        arrive("broken.png", images[3][:-500])
        arrive("3.png", images[3])
        wait_for(lambda: len(references(station)) == 4)
        watch = station.client.get(f"{ROOT}/status").json()["watch"]
        assert (watch["source"], watch["inspected"]) == (str(incoming), 4)
        picture = f"{ROOT}/inspections/1/picture"
        assert station.client.get(picture, params={"original": True}).content in images[:2]
        station.kill()
        arrive("4.png", images[4])
        arrive("2.png", images[5])  # another part under the same name
        station.start()
        wait_for(lambda: len(references(station)) == 6)
        arrive("6.png", images[0])
        wait_for(lambda: "6" in references(station))
        assert len(references(station)) == 7
        assert references(station).count("2") == 2
