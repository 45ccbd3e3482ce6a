"""What the station knows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from continuad.station.api import models
from continuad.station.api.common import Actor, Route, StationHere

router = APIRouter(prefix="/products", tags=["products"], route_class=Route)

ProductId = Annotated[str, Path(max_length=200, description="Id or name of a product.")]


@router.get("", response_model=models.Products)
def products(station: StationHere) -> dict[str, Any]:
    """All products, archived ones last."""
    return {"items": station.catalogue.describe(station.catalogue.entries())}


@router.get("/{product}", response_model=models.Product)
def product(station: StationHere, product: ProductId) -> dict[str, Any]:
    """One product."""
    return station.catalogue.describe([station.catalogue.entry(product)])[0]


@router.patch("/{product}", response_model=models.Product)
def change(
    station: StationHere, product: ProductId, wish: models.ProductChange, actor: Actor
) -> dict[str, Any]:
    """Rename, archive or restore a product, or set its false-alarm rate."""
    catalogue = station.catalogue
    entry = catalogue.entry(product)
    if wish.archived is False:
        entry = catalogue.archive(entry, False, actor=actor)
    if wish.name is not None:
        entry = catalogue.rename(entry, wish.name, actor=actor)
    if wish.false_alarm_rate is not None:
        entry = catalogue.recalibrate(entry, wish.false_alarm_rate, use_corrections=False, actor=actor)
    if wish.archived is True:
        entry = catalogue.archive(entry, True, actor=actor)
    station.events.publish("products", {})
    return catalogue.describe([entry])[0]


@router.delete("/{product}", status_code=204)
def forget(station: StationHere, product: ProductId, actor: Actor) -> None:
    """Remove what was learnt about a product; its inspections stay in the history."""
    station.catalogue.forget(station.catalogue.entry(product), actor=actor)
    station.events.publish("products", {})


@router.get(
    "/{product}/samples/{index}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
)
def sample(station: StationHere, product: ProductId, index: Annotated[int, Path(ge=0, le=7)]) -> Response:
    """One of the photos that are kept of a product."""
    data = station.catalogue.sample(station.catalogue.entry(product), index)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


@router.get("/{product}/calibration", response_model=models.Calibration)
def calibration(
    station: StationHere,
    product: ProductId,
    false_alarm_rate: Annotated[float | None, Query(gt=0, lt=0.5)] = None,
    use_corrections: bool = False,
) -> dict[str, Any]:
    """What a false-alarm rate would do, before it is applied."""
    entry = station.catalogue.entry(product)
    return station.catalogue.calibration(entry, false_alarm_rate, use_corrections=use_corrections)


@router.post("/{product}/recalibration", response_model=models.Product)
def recalibrate(
    station: StationHere, product: ProductId, wish: models.Recalibration, actor: Actor
) -> dict[str, Any]:
    """Set a product's threshold anew."""
    catalogue = station.catalogue
    entry = catalogue.recalibrate(
        catalogue.entry(product), wish.false_alarm_rate, use_corrections=wish.use_corrections, actor=actor
    )
    station.events.publish("products", {})
    return catalogue.describe([entry])[0]
