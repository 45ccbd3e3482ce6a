"""What the API takes and gives, as types: the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Label = Literal["normal", "anomalous", "unknown"]
Truth = Literal["good", "bad"]
Rate = Annotated[float, Field(gt=0, lt=0.5, description="Share of good parts that may be called anomalous.")]
Id = Annotated[int, Field(ge=1, lt=2**63)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=80)]


class Given(BaseModel):
    """What a client sends: a field that we do not know is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    problem: str
    remedy: str


class Inspection(BaseModel):
    """One inspected picture."""

    id: int
    time: str
    label: Label
    product: str | None
    score: float | None
    threshold: float | None
    nearest: str | None
    distance: float | None
    source: str
    reference: str
    width: int
    height: int
    has_picture: bool
    has_map: bool
    map_peak: float | None
    truth: Truth | None
    corrected: str | None
    settled: bool
    timings_ms: dict[str, float]


class Inspections(BaseModel):
    """A page of the history, newest first."""

    items: list[Inspection]
    next: int | None = Field(description="Give it as `before` to get the next page.")


class Correction(Given):
    """What a human says about a part."""

    truth: Truth | None


class Counts(BaseModel):
    """Inspections of a product, by verdict and by correction."""

    normal: int = 0
    anomalous: int = 0
    good: int = 0
    bad: int = 0


class Product(BaseModel):
    """A product that the station knows."""

    id: str = Field(description="For addresses; it changes when the product is renamed.")
    name: str
    state: Literal["active", "archived"]
    method: str
    reason: str
    images: int
    bytes: int
    learnt: str
    seconds: float
    false_alarm_rate: float
    threshold: float
    samples: int
    counts: Counts
    last_inspected: str | None


class Products(BaseModel):
    """All products, archived ones last."""

    items: list[Product]


class ProductChange(Given):
    """What is to change about a product; what is left out stays."""

    name: Name | None = None
    archived: bool | None = None
    false_alarm_rate: Rate | None = None


class Scored(BaseModel):
    """One inspection's score."""

    id: int
    score: float
    truth: Truth | None


class CurvePoint(BaseModel):
    """The threshold that a false-alarm rate leads to."""

    false_alarm_rate: float
    threshold: float


class Calibration(BaseModel):
    """What a false-alarm rate would do, beside what holds now."""

    false_alarm_rate: float
    threshold: float
    proposed_threshold: float
    held_out: list[float]
    confirmed_good: list[float]
    confirmed_bad: list[float]
    recent: list[Scored]
    alarms_now: int
    alarms_then: int
    missed_now: int
    missed_then: int
    curve: list[CurvePoint]


class Recalibration(Given):
    """How to set a threshold anew."""

    false_alarm_rate: Rate | None = None
    use_corrections: bool = Field(
        False, description="Take the scores of parts that were confirmed good, too."
    )


class PhotoWarning(BaseModel):
    """What may be wrong with a photo or with all of them."""

    kind: str
    text: str


class Photo(BaseModel):
    """One photo from which a product will be taught."""

    id: int
    name: str
    width: int
    height: int
    bytes: int
    warnings: list[PhotoWarning] = []


class PhotoSet(BaseModel):
    """The photos from which a product will be taught."""

    id: str
    created: str
    photos: list[Photo]
    warnings: list[PhotoWarning]
    examined: int
    minimum: int
    advised: int
    ready: bool = Field(description="Whether there are enough photos to teach.")


class Teaching(Given):
    """What to teach: the photos of a set, or pictures of the history."""

    name: Name
    photo_set: Annotated[str, Field(pattern="^[0-9a-f]{16,32}$")] | None = None
    inspections: Ids | None = None
    false_alarm_rate: Rate = 0.01
    replace: bool = False


class Job(BaseModel):
    """Long work: how far it is, and how it ended."""

    id: str
    kind: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    product: str
    step: str
    done: int
    total: int
    created: str
    started: str | None
    finished: str | None
    attempts: int
    problem: str | None
    remedy: str | None


class Jobs(BaseModel):
    """The latest jobs, newest first."""

    items: list[Job]


class UnknownGroup(BaseModel):
    """Unknown images that look alike."""

    size: int
    nearest: str | None
    inspections: list[int]


class Unknown(BaseModel):
    """Images that match no product."""

    total: int
    groups: list[UnknownGroup]


class Dismissal(Given):
    """Unknown images that need no product."""

    inspections: Ids


class Token(Given):
    """What lets a client in."""

    token: Annotated[str, Field(max_length=1000)]


class Queue(BaseModel):
    """Images that wait for their inspection."""

    waiting: int
    limit: int


class Storage(BaseModel):
    """What the pictures of the history take, and the rule by which they go."""

    pictures: int
    bytes: int
    budget: int
    free: int
    removed: int
    rule: str


class Target(BaseModel):
    """A place that verdicts are delivered to."""

    target: str
    waiting: int
    delivered: int
    dropped: int
    problem: str | None


class Watched(BaseModel):
    """The source that is inspected all the time."""

    source: str
    note: str
    inspected: int


class UploadLimits(BaseModel):
    """The most that one upload may have."""

    bytes: int
    pixels: int
    photos: int


class Status(BaseModel):
    """How the station is."""

    version: str
    bank: str
    backbone: str
    image_size: int
    products: int
    queue: Queue
    storage: Storage
    deliveries: list[Target]
    watch: Watched | None
    limits: UploadLimits
    minimum_photos: int
    advised_photos: int
    needs_token: bool


class AuditEntry(BaseModel):
    """Who changed what."""

    id: int
    time: str
    actor: str
    action: str
    subject: str
    detail: dict[str, object]


class AuditLog(BaseModel):
    """A page of the audit log, newest first."""

    items: list[AuditEntry]
    next: int | None


class Alive(BaseModel):
    """The process answers."""

    alive: Literal[True] = True


class Ready(BaseModel):
    """Whether the station can inspect; by part, "ok" or what is wrong."""

    ready: bool
    checks: dict[str, str]
