"""The station's OpenAPI document: complete, and true of the station under requests made at random."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from stations import ROOT, Running, inspect, photo_set, shots

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

DOCUMENT = "/api/openapi.json"
METHODS = {"get", "put", "post", "delete", "patch"}
BOUNDED = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def station(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A station that knows two products and has a little history; nobody asks too often."""
    bank = Path(shutil.copytree(taught, tmp_path_factory.mktemp("openapi") / "bank"))
    with Running(bank, limits={"requests": 1e6, "burst": 10**6}) as running:
        inspect(running.client, shots("bolt", 1)[0])
        photo_set(running.client, shots("nut", 1))
        yield running
        assert not [line for line in running.said if "Traceback" in line]


@pytest.fixture(scope="module")
def document(station: Running) -> Any:
    return station.client.get(DOCUMENT).json()


@pytest.fixture
def api(station: Running) -> Any:
    made = schemathesis.openapi.from_url(f"{station.url}{DOCUMENT}")
    made.config.update(request_timeout=20)
    return made


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_station_does_what_the_document_says(api: Any, mode: str) -> None:
    found = [result.ok() for result in api.exclude(path=f"{ROOT}/events").get_all_operations()]
    assert len(found) >= 33
    for operation in found:
        cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @BOUNDED
        @given(cases)
        def ask(case: Any) -> None:
            case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])  # text is no image

        try:
            ask()
        except Unsatisfiable:
            assert mode == "negative"  # there is nothing that could be wrong with such a request


def operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_every_operation_is_explained(document: Any) -> None:
    found = operations(document)
    assert len(found) >= 34
    for name, operation in found:
        assert operation["summary"], name
        assert operation["description"], name
        problem = {"$ref": "#/components/schemas/Problem"}
        for status in ("400", "401", "403", "404", "408", "409", "413", "422", "429", "500", "503", "507"):
            answer = operation["responses"][status]
            assert answer["description"], name
            if (name, status) != ("GET /readyz", "503"):
                assert answer["content"]["application/json"]["schema"] == problem, (name, status)
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                assert parameter["schema"].keys() & {"pattern", "maxLength", "maximum", "exclusiveMaximum"}, (
                    name
                )


def test_what_is_stored_says_what_it_is(document: Any) -> None:
    for name, model in document["components"]["schemas"].items():
        assert model.get("description") or "enum" in model, name
