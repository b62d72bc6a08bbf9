"""Messages as publishers tell them: deltas in every event, equal from any cursor, for any owner."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import JOB_ID, KEY, RULES, running_publisher, take_over
from workers.steps import step
from workers.stubs import raw

from tokenbus.engine.types import FinishReason
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages
from tokenbus.producer.contract.messages.wire_delta import joined
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.scripts import Append, Begin
from tokenbus.worker.messages.publishing import Committed, OpenGate, Progress, Taken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from workers.publisher_bench import PublisherBench

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.contract.events import Event
    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import TakeOver

__all__ = ["pool", "redis_url", "server"]

# One kind of server: what is shown is the publisher's.
pytestmark = pytest.mark.parametrize("server", ["valkey"], indirect=True)

CHAT = JobChat("qwen3", {"now": {}, "wait": {}})
TOWN = '{"town": "Tromsø", "at": [1, {"h": "7"}]}'
CALL = f'<tool_call>\n{{"name": "now", "arguments": {TOWN}}}\n</tool_call>'
ANSWER = f"<think>\nWhere is it?\n</think>\n\nLet me look. <to\n{CALL}\n{CALL}"


def ids_of(text: str) -> list[int]:
    """Spell a text in tokens of one byte."""
    return list(text.encode())


def order(epoch: int = 1, num_choices: int = 1, chat: JobChat | None = CHAT) -> TakeOver:
    """Return the order for a job whose answers are messages; a first owner starts it at once."""
    rules = msgspec.structs.replace(RULES, num_choices=num_choices, chat=chat)
    begun = take_over(is_ahead=epoch == 1)
    return msgspec.structs.replace(begun, epoch=epoch, rules=rules)


def rows(tokens: Mapping[int, Sequence[int]], ends: Mapping[int, FinishReason]) -> StepRecord:
    """Return a step with tokens, and ends, of choices of the one job."""
    plain = step(tokens={KEY: ()})
    return msgspec.structs.replace(
        plain,
        request_ids=[KEY] * len(tokens),
        choices=list(tokens),
        counts=[len(ids) for ids in tokens.values()],
        token_ids=[token for ids in tokens.values() for token in ids],
        ends=[(list(tokens).index(choice), why, None, None) for choice, why in ends.items()],
    )


async def write(bench: PublisherBench, ids: Sequence[int], sizes: Sequence[int]) -> None:
    """Let the engine bring tokens, so many a step, and wait for each until it is logged."""
    at = 0
    for size in sizes:
        bench.publisher.obey(step(tokens={KEY: ids[at : at + size]}))
        at += size
        while not (await bench.first(Progress)).logged_tokens:
            pass


async def finish(bench: PublisherBench, ids: Sequence[int], why: FinishReason) -> None:
    """Let the engine bring the last tokens, and wait for the end."""
    bench.publisher.obey(step(tokens={KEY: ids}, ends={KEY: why}))
    await bench.first(Committed)


class Ear:
    """A plain reader: raw pub/sub, without anything of a client."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self.heard: list[bytes] = []

    @classmethod
    async def of(cls, client: AsyncClient) -> Ear:
        """Listen to the job's channel."""
        listener = raw(client.scripts).pubsub()
        await listener.subscribe(client.scripts.keys.channel(JOB_ID))
        assert await listener.get_message(timeout=PATIENCE_S)
        return cls(listener)

    async def all(self) -> list[dict[str, Any]]:
        """Return all events up to the terminal one."""
        while not self.heard or b'"finish"' not in self.heard[-1]:
            message = await self._listener.get_message(timeout=PATIENCE_S)
            assert message is not None
            self.heard.append(message["data"])
        await self._listener.aclose()
        return [json.loads(each) for each in self.heard]


def deltas_of(events: Sequence[Event]) -> dict[int, MessageDelta]:
    """Join what events tell, by choice; each of them has to tell its delta."""
    assert all(event.told is not None for event in events)
    told: dict[int, list[MessageDelta]] = {}
    for event in events:
        for choice, delta in event.deltas:
            told.setdefault(choice, []).append(delta)
    return {choice: joined(deltas) for choice, deltas in told.items()}


def check_joined(deltas: Mapping[int, MessageDelta], result: JobResult) -> None:
    """Check that joined deltas are the messages of a result."""
    for choice in result.choices:
        delta, message = deltas[choice.index], choice.message
        assert (delta.content, delta.reasoning) == (message.content, message.reasoning)
        assert [(c.id, c.name, c.arguments) for c in delta.calls] == [
            (c.id, c.name, c.arguments) for c in message.calls
        ]


async def stored(bench: PublisherBench) -> JobResult:
    """Read the result."""
    value = await bench.scripts.log.result(JOB_ID)
    assert value is not None
    return JobResult.parse(value)


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of the pool."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made


async def replayed(client: AsyncClient, cursor: int) -> list[Event]:
    """Read the job after a cursor, to its end."""
    return [event async for event in client.stream(JOB_ID, cursor)]


def read_up_to(result: JobResult, cursor: int) -> MessageDelta:
    """Read the first tokens of an answer with one choice."""
    choice = result.choices[0]
    messages = JobMessages(CHAT, JOB_ID)
    if cursor == 0:
        return joined(())
    return messages.read(0, choice.text[: choice.ends[cursor - 1]], choice.ends[:cursor])


async def test_plain_reader_hears_deltas_and_the_log_has_text_alone(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Events spell them as OpenAI does; from every cursor, of log and result, they are the same."""
    ids = ids_of(ANSWER)
    async with running_publisher(redis_url, pool) as bench:
        ear = await Ear.of(client)
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(order())
        await write(bench, ids, [1, 20, 1, 1, 30, 7, 1])
        await finish(bench, ids[61:], FinishReason.STOP)
        heard, result = await ear.all(), await stored(bench)
        entries = await raw(bench.scripts).xrange(bench.scripts.keys.log(JOB_ID))
        for cursor in (*range(0, len(ids), 7), len(ids) - 1, len(ids)):
            rest = list(result.events(cursor))
            if cursor % 5 == 0:
                assert deltas_of(await replayed(client, cursor)) == deltas_of(rest)
            parts = (read_up_to(result, cursor), deltas_of(rest).get(0, joined(())))
            check_joined({0: joined(parts)}, result)
    check_joined(deltas_of([parse_message(each) for each in ear.heard]), result)
    message = result.message
    assert (message.reasoning, message.content) == ("Where is it?", "Let me look. <to")
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("now", TOWN)] * 2
    assert JobChat.parse(entries[0][1][b"chat"]) == CHAT
    assert all(b"delta" not in fields.get(b"e", b"") for _, fields in entries)
    calls = [call for event in heard for call in event["delta"].get("tool_calls", ())]
    assert [call["type"] for call in calls if "id" in call] == ["function"] * 2
    assert {call["index"] for call in calls} == {0, 1}
    ending = heard[-1]["finish"]
    assert ending["finish_reasons"] == ["tool_calls"]
    assert (ending["reason"], ending["choices"]) == ("stop", ["stop"])
    assert ending["usage"]["reasoning_tokens"] == len("<think>\nWhere is it?")


async def test_takeover_inside_arguments_goes_on_where_the_message_was(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """The next owner reads what is logged first; a reader of both owners misses nothing.

    Its own template may say another format: answers are read as their first owner wrote them.
    """
    ids = ids_of(ANSWER)
    half = len(ids_of(ANSWER[: ANSWER.index("Tromsø") + 5]))
    async with running_publisher(redis_url, pool) as first:
        ear = await Ear.of(client)
        first.publisher.obey(OpenGate(0, time.monotonic()))
        first.publisher.obey(order())
        await write(first, ids, [1, half - 1])
    async with running_publisher(redis_url, pool) as second:
        second.publisher.obey(OpenGate(0, time.monotonic()))
        second.publisher.obey(order(epoch=2, chat=JobChat("mistral", {"now": {}})))
        assert (await second.first(Taken)).last == half
        await write(second, ids[half:], [1, 9])
        await finish(second, ids[half + 10 :], FinishReason.STOP)
        await ear.all()
        result = await stored(second)
        for cursor in (0, half - 1, half, half + 1):
            rest = deltas_of(await replayed(client, cursor))
            check_joined({0: joined((read_up_to(result, cursor), rest[0]))}, result)
    events = [parse_message(each) for each in ear.heard]
    assert {event.epoch for event in events} == {1, 2}
    check_joined(deltas_of(events), result)
    assert [call.arguments for call in result.tool_calls] == [TOWN] * 2


async def test_choices_have_messages_of_their_own(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Three at once, one cut in its second call: the first is kept, and each has its reason."""
    cut = f"{CALL}\n{CALL[:50]}"
    texts = [ids_of(ANSWER), ids_of("No call. <to"), ids_of(cut)]
    async with running_publisher(redis_url, pool) as bench:
        ear = await Ear.of(client)
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(order(num_choices=3))
        for at in range(0, max(map(len, texts)), 7):
            parts = {c: ids[at : at + 7] for c, ids in enumerate(texts) if ids[at : at + 7]}
            over = {c for c in parts if at + 7 >= len(texts[c])}
            why = {c: FinishReason.LENGTH if c == 2 else FinishReason.STOP for c in over}
            bench.publisher.obey(rows(parts, why))
        await bench.first(Committed)
        heard, result = await ear.all(), await stored(bench)
    told = [parse_message(each) for each in ear.heard]
    check_joined(deltas_of(told), result)
    check_joined(deltas_of(list(result.events(0))), result)
    assert [choice.finish_reason for choice in result.choices] == ["tool_calls", "stop", "length"]
    assert heard[-1]["finish"]["finish_reasons"] == ["tool_calls", "stop", "length"]
    assert [len(choice.tool_calls) for choice in result.choices] == [2, 0, 1]
    assert [len(choice.message.tool_calls) for choice in result.choices] == [2, 0, 1]
    assert len({call.id for call in result.finish.tool_calls}) == 3
    assert result.choices[1].message.content == "No call. <to"
    assert heard[-1]["deltas"][1] == {"content": " <to"}


async def test_reasoning_is_told_apart_where_no_tool_is_given(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """The prompt has opened the block; what is no call of a tool is content."""
    chat = JobChat("qwq", {}, starts_in_reasoning=True)
    thought, said = "Two and two\n</think>", f"\n\nFour. {CALL}"
    async with running_publisher(redis_url, pool) as bench:
        ear = await Ear.of(client)
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(order(chat=chat))
        await write(bench, ids_of(thought), [1, len(thought) - 1])
        await finish(bench, ids_of(said), FinishReason.STOP)
        heard, result = await ear.all(), await stored(bench)
    check_joined(deltas_of([parse_message(each) for each in ear.heard]), result)
    assert heard[0]["delta"] == {"reasoning_content": "T"}
    message = result.message.dump()
    assert message == {
        "role": "assistant", "content": f"Four. {CALL}", "reasoning_content": "Two and two",
    }  # fmt: skip
    assert result.finish_reason == "stop"
    assert result.finish.usage.reasoning_tokens == len("Two and two")


async def test_entry_that_the_log_has_lost_is_told_again_as_it_was(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A server that forgets a second gets the same events anew; so do those who listen."""
    ids = ids_of(ANSWER)
    async with running_publisher(redis_url, pool) as bench:
        ear = await Ear.of(client)
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(order())
        await write(bench, ids, [1, 30])
        log = bench.scripts.keys.log(JOB_ID)
        kept = await raw(bench.scripts).dump(log)
        await write(bench, ids[31:], [60])
        await raw(bench.scripts).restore(log, 0, kept, replace=True)
        bench.publisher.session.lose("the server is gone")
        bench.publisher.obey(OpenGate(1, time.monotonic()))
        await finish(bench, ids[91:], FinishReason.STOP)
        await ear.all()
        result = await stored(bench)
    events: list[Event] = []
    for event in map(parse_message, ear.heard):
        lost = [each for each in events if each.start >= event.start]
        assert not lost or event.finish is None
        events = [each for each in events if each.start < event.start] + [event]
    assert len(events) < len(ear.heard)
    check_joined(deltas_of(events), result)


async def test_log_of_an_earlier_release_goes_on_without_deltas(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """It says nothing of a chat; calls are told at the end, as ever, and the message of them."""
    async with running_publisher(redis_url, pool) as bench:
        ear = await Ear.of(client)
        [ids, ends] = ids_of(CALL[:12]), list(range(1, 13))
        first = Append(JOB_ID, 1, 0, 1, 12, CALL[:12], ids, ends)
        await bench.scripts.log.begin([Begin(JOB_ID, 1, "7", [first])], "old")
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(order(epoch=2))
        await bench.first(Taken)
        await write(bench, ids_of(CALL[12:]), [5])
        await finish(bench, ids_of(CALL[12:])[5:], FinishReason.STOP)
        heard, result = await ear.all(), await stored(bench)
        events = await replayed(client, 3)
    assert not any("delta" in event for event in heard)
    assert all(event.told is None for event in events)
    assert joined(delta for event in events for _, delta in event.deltas).content == CALL[3:]
    assert "chat" not in heard[-1]["finish"]
    [call] = result.message.tool_calls
    assert (call.name, call.arguments, result.content) == ("now", TOWN, "")
    assert (call.id, result.finish_reason) == (result.tool_calls[0].id, "tool_calls")


async def test_marks_that_are_special_tokens_are_read(redis_url: str, pool: str) -> None:
    """The text has them, because the job shows their ids; of other jobs it has not."""
    async with running_publisher(redis_url, pool) as bench:
        tokenizer: Any = bench.publisher._tokenizer
        tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
        [mark] = tokenizer.encode("[TOOL_CALLS]")
        ids = [mark, *ids_of(f'[{{"name": "now", "arguments": {TOWN}}}]')]
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        told = order(chat=JobChat("mistral", {"now": {}}))
        assert told.rules is not None
        rules = msgspec.structs.replace(told.rules, shown_ids=(mark,))
        bench.publisher.obey(msgspec.structs.replace(told, rules=rules))
        await write(bench, ids, [1, 5])
        await finish(bench, ids[6:], FinishReason.STOP)
        result = await stored(bench)
    assert result.text.startswith("[TOOL_CALLS][{")
    [call] = result.message.tool_calls
    assert (call.name, call.arguments, result.content) == ("now", TOWN, "")
