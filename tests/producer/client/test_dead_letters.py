"""Dead letters: seen, sent again as new jobs, deleted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from workers.null_workers import command

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.dead_letters import MAX_BODY_BYTES, DeadLetters
from tokenbus.producer.commands.cli import main
from tokenbus.producer.contract.events import Failure, Finish
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = JobRequest(prompt="hello", max_tokens=5, idempotency_key="once", tenant="ada")


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of an empty pool."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made


async def _bury(client: AsyncClient, job_id: str, body: str = "") -> str:
    finish = Finish("failed", error=Failure("poison", "every worker died")).dump()
    key = client.scripts.keys.of("dead")
    entry: bytes = await command(
        client.scripts, "XADD", key, "*", "job", job_id, "tenant", "ada", "finish", finish,
        "body", body or REQUEST.dump(), "at", 1700000000000,
    )  # fmt: skip
    return entry.decode()


async def test_letters_are_listed_newest_first_and_found_by_either_name(
    client: AsyncClient,
) -> None:
    """A letter is known by its entry id and by its job's id."""
    entries = [await _bury(client, f"j-{number}") for number in range(300)]
    letters = DeadLetters(client)
    assert [letter.entry_id async for letter in letters.newest()] == entries[::-1]
    assert [letter.job_id async for letter in letters.newest(2)] == ["j-299", "j-298"]
    found = await letters.find("j-7")
    assert found == await letters.find(entries[7])
    assert found.reason == "poison: every worker died"
    with pytest.raises(RequestInvalid, match="no dead letter"):
        await letters.find("j-1000")


async def test_retry_makes_one_new_job_however_often_it_is_tried(client: AsyncClient) -> None:
    """A retry that died before it deleted the letter meets its own job again."""
    await client.submit(REQUEST)
    letters = DeadLetters(client)
    await _bury(client, "j-1")
    letter = await letters.find("j-1")
    first = await letters.retry(letter)
    second = await letters.retry(letter)
    assert first.created
    assert not second.created
    assert first.job_id == second.job_id == f"retry~{letter.entry_id}"
    assert [found async for found in letters.newest()] == []


@pytest.mark.parametrize("body", ["{", "x" * MAX_BODY_BYTES], ids=["malformed", "cut"])
async def test_letter_that_is_no_whole_request_stays(client: AsyncClient, body: str) -> None:
    """What cannot be sent again is refused and kept."""
    letters = DeadLetters(client)
    await _bury(client, "j-1", body)
    letter = await letters.find("j-1")
    with pytest.raises(RequestInvalid):
        await letters.retry(letter)
    assert await letters.find("j-1") == letter


async def test_command_lists_shows_retries_and_purges(
    client: AsyncClient, redis_url: str, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each action of `tokenbus dead` does what it says and nothing without being told which."""
    for number in range(3):
        await _bury(client, f"j-{number}")

    async def run(*args: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["dead", *args, "--redis", redis_url, "--pool", pool])
        return code, capsys.readouterr().out

    code, output = await run("list", "--limit", "2")
    assert code == 0
    assert [line.split()[2] for line in output.splitlines()] == ["j-2", "j-1"]
    code, output = await run("show", "j-1")
    assert json.loads(output)["finish"]["error"]["code"] == "poison"
    assert (await run("purge"))[0] == 2
    code, output = await run("retry", "j-0")
    assert (code, "is job retry~" in output) == (0, True)
    assert await run("purge", "--all") == (0, "2 dead letters deleted\n")
    assert await run("list") == (0, "")
