"""A choice between a hundred thousand texts, from a tenant's submit to the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from workers.null_workers import worker

from tokenbus.engine.chat.requests.bounds import MAX_GRAMMAR_LENGTH
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

NUM_LABELS, LABEL_LENGTH = 100_000, 40
LABELS = [f"{idx:06} {'of many labels that are as long as this':.33}" for idx in range(NUM_LABELS)]


@pytest.mark.slow
# One kind of server: what is shown is the door, the engine and the worker between them.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_choice_of_a_hundred_thousand_is_answered_or_refused_by_its_size(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """What fits is one of its texts; what does not is refused at the door, with the limit."""
    known = {*LABELS}
    assert (len(known), *map(len, LABELS[:1])) == (NUM_LABELS, LABEL_LENGTH)
    with pytest.raises(RequestInvalid, match=f"{MAX_GRAMMAR_LENGTH}") as refused:
        await client.submit("x", tenant="t", guided_choice=[label + "!" * 20 for label in LABELS])
    assert refused.value.field == "guided_choice"
    folder = str(TinyModel(tmp_path).folder)
    settings: dict[str, Any] = {"engine": "paged", "model": folder, "dtype": "float32"}
    settings |= {"device": "cpu", "num_pages": 40, "num_threads": 1}
    async with worker(pool, redis_url, **settings):
        spelled = {"kind": "choice", "source": json.dumps(LABELS, separators=(",", ":"))}
        for fields in ({"guided_choice": LABELS}, {"grammar": spelled}):
            job = await client.submit("x", tenant="t", max_tokens=200, **fields)
            result = await client.result(job)
            assert result.text in known
