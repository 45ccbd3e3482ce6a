"""Photo sets: uploaded photos from which a product will be taught."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sql
from sqlalchemy import Connection, Row

from continuad.images import MAX_PIXELS, load_image
from continuad.station.database import Database, jobs, now, photo_sets, photos
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.inspecting import suffix
from continuad.station.pictures import Pictures

NAME_LENGTH = 200

Encoded: TypeAlias = bytes
"""What `Photo` calls by its kind, having a field `bytes`."""


@dataclass(frozen=True)
class Photo:
    """One photo of a set.

    Attributes:
        id: unique in the station, and growing.
        name: what its owner calls it; printable, never empty.
        file: its name among the pictures.
        width: in pixels, upright.
        height: in pixels, upright.
        bytes: of the file.
        sha256: of the file.
        traits: as `Traits.to_bytes` gives them; None until it was examined.
    """

    id: int
    name: str
    file: str
    width: int
    height: int
    bytes: int
    sha256: str
    traits: Encoded | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PhotoSet:
    """A set and its photos, in the order in which they came."""

    id: str
    created: int  # microseconds
    photos: tuple[Photo, ...]


class PhotoSets:
    """The photo sets of a station. Safe to use from several threads.

    Args:
        database: where the rows are.
        folder: where the files are; of these photos alone, and created if it is not there.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._pictures = database, Pictures(folder)

    def create(self) -> str:
        """Begin an empty set; returns its id."""
        name = secrets.token_hex(16)
        with self._database.write() as connection:
            connection.execute(photo_sets.insert().values(id=name, created=now()))
        return name

    def add(
        self, photo_set: str, data: bytes, name: str, *, max_photos: int, max_pixels: int = MAX_PIXELS
    ) -> Photo:
        """Add a photo; when this returns, it survives a power cut. Sent again, it is the same photo.

        Args:
            photo_set: its id.
            data: the encoded photo.
            name: what its owner calls it; of any text, what can be printed is kept.
            max_photos: of a set.
            max_pixels: of a photo.

        Raises:
            NotFoundError: there is no such set.
            ConflictError: the set is full.
            ImageError: the photo is damaged, of an unknown kind or too large.
            OSError: the disk is full or broken.
        """
        height, width, _ = load_image(data, max_pixels=max_pixels).shape
        values: dict[str, Any] = {
            "name": _printable(name),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "width": width,
            "height": height,
        }
        file = self._pictures.save(data, suffix(data))
        try:
            with self._database.write() as connection:
                _hold(connection, photo_set)
                same = sql.and_(photos.c.name == values["name"], photos.c.sha256 == values["sha256"])
                query = sql.select(photos).where(photos.c.photo_set == photo_set, same)
                if (sent_before := connection.execute(query).first()) is not None:
                    self._pictures.remove([file])
                    return _photo(sent_before)
                count = sql.select(sql.func.count()).where(photos.c.photo_set == photo_set)
                if connection.execute(count).scalar_one() >= max_photos:
                    raise ConflictError(
                        f"The set holds {max_photos} photos already, the most it can.",
                        "Teach the product from these, or remove some.",
                    )
                insert = photos.insert().values(photo_set=photo_set, file=file, **values)
                added = connection.execute(insert.returning(photos.c.id)).scalar_one()
        except BaseException:
            self._pictures.remove([file])
            raise
        return Photo(id=added, file=file, **values)

    def get(self, photo_set: str) -> PhotoSet:
        """A set as it is now.

        Raises:
            NotFoundError: there is no such set.
        """
        with self._database.read() as connection:
            created = connection.execute(
                sql.select(photo_sets.c.created).where(photo_sets.c.id == photo_set)
            ).scalar()
            if created is None:
                raise _no_set()
            query = sql.select(photos).where(photos.c.photo_set == photo_set).order_by(photos.c.id)
            found = tuple(_photo(row) for row in connection.execute(query))
        return PhotoSet(photo_set, created, found)

    def files(self, photo_set: str) -> list[Path]:
        """The files of a set, in an order that their contents give: the same photos teach the same.

        Raises:
            NotFoundError: there is no such set.
        """
        found = sorted(self.get(photo_set).photos, key=lambda photo: (photo.sha256, photo.id))
        return [self._pictures.folder / photo.file for photo in found]

    def picture(self, photo_set: str, photo: int) -> bytes:
        """A photo as it came.

        Raises:
            NotFoundError: there is no such photo.
        """
        return self._pictures.read(self._file(photo_set, photo))

    def thumbnail(self, photo_set: str, photo: int, width: int | None = None) -> bytes:
        """A photo as a browser shows it: JPEG, upright, at most `width` wide.

        Raises:
            NotFoundError: there is no such photo.
        """
        return self._pictures.thumbnail(self._file(photo_set, photo), width)

    def unexamined(self) -> list[tuple[str, int]]:
        """The photos without traits, by set and id, in the order in which they came."""
        query = sql.select(photos.c.photo_set, photos.c.id).where(photos.c.traits.is_(None))
        with self._database.read() as connection:
            return [(row.photo_set, row.id) for row in connection.execute(query.order_by(photos.c.id))]

    def keep_traits(self, photo_set: str, photo: int, traits: bytes) -> None:
        """Store what was measured on a photo; one that was removed meanwhile does not matter."""
        with self._database.write() as connection:
            connection.execute(photos.update().where(_is(photo_set, photo)).values(traits=traits))

    def remove(self, photo_set: str, photo: int) -> None:
        """Remove one photo.

        Raises:
            NotFoundError: there is no such photo.
        """
        with self._database.write() as connection:
            file = connection.execute(
                photos.delete().where(_is(photo_set, photo)).returning(photos.c.file)
            ).scalar()
        if file is None:
            raise _no_photo()
        self._pictures.remove([file])

    def discard(self, photo_set: str) -> None:
        """Remove a set and its photos, if it is there."""
        with self._database.write() as connection:
            files = _delete(connection, [photo_set])
        self._pictures.remove(files)

    def expire(self, older_than_seconds: float) -> int:
        """Remove sets that were begun so long ago, but none that a job waits for; returns how many."""
        needed = sql.exists().where(
            jobs.c.state.in_(("queued", "running")), jobs.c.request.contains(photo_sets.c.id)
        )
        begun = now() - round(older_than_seconds * 1e6)
        query = sql.select(photo_sets.c.id).where(photo_sets.c.created < begun, ~needed)
        with self._database.write() as connection:
            old = list(connection.execute(query.with_for_update()).scalars())
            files = _delete(connection, old)
        self._pictures.remove(files)
        return len(old)

    def sweep(self) -> int:
        """Remove the files that a crash left without a row; returns how many there were."""
        return self._pictures.sweep(self._files_of)

    def _files_of(self, day: str) -> set[str]:
        query = sql.select(photos.c.file).where(photos.c.file.startswith(f"{day}/"))
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def _file(self, photo_set: str, photo: int) -> str:
        with self._database.read() as connection:
            file = connection.execute(sql.select(photos.c.file).where(_is(photo_set, photo))).scalar()
        if file is None:
            raise _no_photo()
        return str(file)


def _hold(connection: Connection, photo_set: str) -> None:
    """Keep a set from being removed, and from other additions, until the transaction ends."""
    query = sql.select(photo_sets.c.id).where(photo_sets.c.id == photo_set).with_for_update()
    if connection.execute(query).first() is None:
        raise _no_set()


def _delete(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Delete sets and their photos; returns the photos' files."""
    connection.execute(photo_sets.delete().where(photo_sets.c.id.in_(ids)))
    gone = photos.delete().where(photos.c.photo_set.in_(ids)).returning(photos.c.file)
    return list(connection.execute(gone).scalars())


def _is(photo_set: str, photo: int) -> sql.ColumnElement[bool]:
    return sql.and_(photos.c.photo_set == photo_set, photos.c.id == photo)


def _photo(row: Row[Any]) -> Photo:
    return Photo(row.id, row.name, row.file, row.width, row.height, row.bytes, row.sha256, traits=row.traits)


def _printable(name: str) -> str:
    kept = "".join(letter for letter in name if letter.isprintable())
    return kept.strip()[:NAME_LENGTH] or "photo"


def _no_set() -> NotFoundError:
    return NotFoundError("There is no such photo set.", "Begin a new one: sets that nobody uses expire.")


def _no_photo() -> NotFoundError:
    return NotFoundError("There is no such photo.", "It may have been removed; look at the set again.")
