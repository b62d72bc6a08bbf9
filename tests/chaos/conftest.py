"""The servers, the cargo and the rides of the chaos cases."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from matrix import SERVER_KINDS
from models.tiny_model import TinyModel
from rides.ride import ModelCargo, NullCargo, Ride
from rides.scale import IS_SHORT, NUM_JOBS, PATIENT, SEED
from servers.fixtures import pool, redis_url, server_binary

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.weights import model_store
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.embedded import EmbeddedServer, start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rides.ride import Cargo

__all__ = ["pool", "redis_url"]


def pytest_report_header() -> str:
    """Print the seed before anything fails."""
    return f"chaos: {NUM_JOBS} jobs per case, CHAOS_SEED={SEED}"


@pytest.fixture(scope="session", params=SERVER_KINDS[:1] if IS_SHORT else SERVER_KINDS)
def server_kind(request: pytest.FixtureRequest) -> str:
    """Name the kind of server."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def server(server_kind: str) -> Iterator[EmbeddedServer]:
    """Run a server that stays healthy."""
    running = start_private(server_binary(server_kind))
    yield running
    running.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Save a tiny model."""
    return TinyModel(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """Give the folder of the demo model, or of the model that `CHAOS_MODEL` names in its place."""
    given = os.environ.get("CHAOS_MODEL")
    try:
        return Path(given) if given else model_store.pull("smollm2-135m")
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Give the case its own randomness, printed with its seed."""
    seed = SEED ^ zlib.crc32(request.node.name.encode())
    print(f"CHAOS_SEED={SEED}")
    return random.Random(seed)


@pytest.fixture
def num_publishers(request: pytest.FixtureRequest) -> int:
    """Say how many processes publish for a worker, beside itself."""
    return int(getattr(request, "param", 0))


@pytest.fixture
def cargo(request: pytest.FixtureRequest, num_publishers: int) -> Cargo:
    """Give short rows made-up tokens and the others a real model."""
    made: Cargo = NullCargo(tokens_per_s=100)
    if not IS_SHORT:
        made = ModelCargo(request.getfixturevalue("model"))
    made.settings["publishers"] = num_publishers
    return made


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a patient client of an empty pool."""
    async with await AsyncClient.connect(redis_url, pool=pool, settings=PATIENT) as made:
        yield made


@pytest.fixture
def ride(client: AsyncClient, cargo: Cargo, rng: random.Random, redis_url: str) -> Ride:
    """Give a ride on the healthy server."""
    return Ride(client, cargo, rng, redis_url)


@pytest.fixture
def num_jobs() -> int:
    """Say how many jobs a case has."""
    return NUM_JOBS
