"""The calls of the scripts as they go to the server, byte for byte.

Processes of two releases share a pool while one replaces the other, so `wire_arguments.json` is a
contract: where a call has to change, its script has to take the old one too. Pull and
requeue had fewer arguments; `test_evidence.py` makes those calls as they were.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
import pytest
from lua.parts import part_names

from tokenbus.producer.contract.new_job import NewJob
from tokenbus.producer.scripts import Append, Begin, Bounds, Budget, End, Scripts, Takeover
from tokenbus.producer.scripts.append_batch import AppendBatch
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.control import ClaimedWebhook, WebhookOutcome, WebhookTry
from tokenbus.producer.scripts.evidence import Crash, Crowd
from tokenbus.producer.scripts.queue import _submit_args
from tokenbus.producer.scripts.source import read_part, script_sha

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WRITTEN: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("wire_arguments.json").read_text(encoding="utf-8")
)

JOB = NewJob(
    job_id="s1-job",
    tenant="shop",
    priority=2,
    prompt_tokens=101,
    output_tokens=50,
    n=3,
    request='{"v":1,"prompt":"hé"}',
    digest="d1",
    idempotency="i1",
    weight=2.5,
    deadline_ms=60_000,
    not_before_ms=250,
    prefix="p1",
    callback='{"url":"https://x.example/y","metadata":{"a":"b"}}',
)
HEARD_JOB = NewJob("s0-job", "shop", 0, 0, 1, 1, "{}", "d2", listen="AbCdEfGhIjKlMnOpQr-_09")
PLAIN_JOB = NewJob("s0-job", "shop", 0, 0, 1, 1, "{}", "d2")
BOUNDS = Bounds(1000, 2000, refuse_late=True)
BUDGET = Budget(
    pages=100,
    page_size=16,
    total_pages=1000,
    max_jobs=3,
    take_head_of_line=False,
    too_large_after_ms=1234,
    default_output=40,
    last_priority=1,
    expected_output={"0:shop": 20, "1:firm": 30},
    cached={"p1": 32, "p2": 64},
    idle=["p2"],
    lost_prefixes=["p3", "p4"],
    affinity_ms=800,
    max_rows=64,
)
APPEND = Append("s3-job", 2, 1, 4, 6, 'he"llo é\n', [5, 6, 7], [1, 2, 3], "[[-0.5,[]]]", 9)
CRASH = Crash(
    cause="engine",
    place=40,
    since=30,
    num_suspected=6,
    num_beside=7,
    is_beside=True,
    is_sound=False,
)
KEEP = Retention(pool_bytes=1_000_000, tenant_bytes=0)
COMPLETED = [
    Completed("s1-job", '{"reason":"stop"}', 104, False, 100, 96, 4),
    Completed("s1-other@shop", '{"reason":"failed"}', failed=True),
    Completed("s1-third"),
]
OLD_APPEND = Append("s3-job", 2, 0, 4, 4, "x", [5], [1], version=1)
HEARD_APPENDS = [
    OLD_APPEND,
    Append("s3-job@shop", 2, 0, 4, 4, "x", [5], [1], listen="c" * 22),
    OLD_APPEND,
]
FIRST = Begin("s3-job", 1, "7", [Append("s3-job", 1, 0, 1, 1, "é", [5], [1])])
WHOLE = Begin(
    "s3-job@shop",
    1,
    "8",
    [
        Append("s3-job@shop", 1, 0, 1, 2, "ab", [5, 6], [1, 2], "[[-0.5,1,[]],[-1.5,1,[]]]"),
        Append("s3-job@shop", 1, 1, 3, 3, "c", [7], [1], "[[-0.5,1,[]]]"),
    ],
    End("s3-job@shop", 1, 3, '{"reason":"stop"}', '{"é":1}'),
    listen="c" * 22,
)
CHAT = '{"format":"qwen3","tools":{},"starts_in_reasoning":true}'
TOLD = Begin(
    "s3-job",
    1,
    "7",
    [Append("s3-job", 1, 0, 1, 1, "é", [5], [1], delta='{"content":"x"}')],
    End("s3-job", 1, 1, "{}", "{}", told='"delta":{}'),
    chat=CHAT,
)
NOTHING = Begin("s3-job", 1, "9", [], End("s3-job", 1, 0, "{}", "{}"), version=1)
TENANTS_APPEND = Append("s3-job@shop", 2, 0, 4, 4, "x", [5], [1])
HOOK = ClaimedWebhook("s1-job", 7, "shop", "https://x.example/y", {}, "{}", 5, 2, b"")


def _one_token() -> AppendBatch:
    batch = AppendBatch()
    batch.add_one("s3-job", 2, 256, (1, "ÿ€", 77, 2), 5)
    return batch


CALLS: dict[str, Callable[[Scripts], Awaitable[Any]]] = {
    "append": lambda s: s.log.append([APPEND]),
    "append, version 1": lambda s: s.log.append([OLD_APPEND]),
    "append, tenant": lambda s: s.log.append([TENANTS_APPEND]),
    "append, clients": lambda s: s.log.append(HEARD_APPENDS),
    "append, delta": lambda s: s.log.append([replace(APPEND, delta='{"content":"x"}')]),
    "append, one token": lambda s: s.log.append_batch(3, _one_token()),
    "begin": lambda s: s.log.begin([FIRST], "w1"),
    "begin, until": lambda s: s.log.begin([FIRST], "w1", 1_700_000_000_000),
    "begin, told until": lambda s: s.log.begin([FIRST, TOLD], "w1", 1_700_000_000_000),
    "begin, whole": lambda s: s.log.begin([WHOLE, NOTHING], "w1"),
    "begin, messages": lambda s: s.log.begin([FIRST, TOLD], "w1"),
    "begin, prompt": lambda s: s.log.begin(
        [replace(FIRST, prompt_tokens=9), TOLD, replace(TOLD, prompt_tokens=8)], "w1"
    ),
    "cancel": lambda s: s.queue.cancel("s1-job"),
    "cancel, tenant": lambda s: s.queue.cancel("s1-job@shop", "shop"),
    "complete_many": lambda s: s.completion.complete(COMPLETED, KEEP, 125_000),
    "complete_many, first step": lambda s: s.completion.mark_done(COMPLETED),
    "cron_tick": lambda s: s.control.take_tick("nightly", 1_700_000_000_000),
    "drain_inbox": lambda s: s.queue.drain_inbox("w1", count=4, lease_ms=2500, max_bytes=99),
    "end": lambda s: s.log.end([End("s2-job", 3, 8, '{"reason":"stop"}', '{"é":1}')]),
    "end, unowned": lambda s: s.log.end([End("s2-job", 3, 8, "{}", "{}", owned=False)]),
    "end, version 1": lambda s: s.log.end([End("s2-job", 3, 8, "{}", "{}", version=1)]),
    "end, client": lambda s: s.log.end([End("s2-job", 3, 8, "{}", "{}", listen="c" * 22)]),
    "end, messages": lambda s: s.log.end([End("s2-job", 3, 8, "{}", "{}", told='"delta":{}')]),
    "end, tenant": lambda s: s.log.end([End("s2-job@a/b", 3, 8, "{}", "{}")]),
    "expire_many": lambda s: s.completion.expire_records(COMPLETED, [5, 6, 0], KEEP, 125_000),
    "drop_many": lambda s: s.completion._drop([b"s1-job", b"s1-other@shop"], 1_200_000),
    "complete_many, timelines": lambda s: s.completion.mark_done(
        [COMPLETED[0], replace(COMPLETED[1], lived="a3 f45")]
    ),
    "drain": lambda s: s.control.drain("w1", is_drained=True),
    "drop_letters": lambda s: s.queue.drop_letters(["1-2", "3-4"]),
    "leave": lambda s: s.lease.leave("w1"),
    "pause": lambda s: s.control.pause(is_paused=True),
    "pause, over": lambda s: s.control.pause(is_paused=False),
    "pull": lambda s: s.lease.pull("w1", 5, BUDGET),
    "pull, plain": lambda s: s.lease.pull("w1", 5, Budget(1, 2, 3, 4)),
    "pull, suspects": lambda s: s.lease.pull("w1", 5, Budget(1, 2, 3, 4, crowd=Crowd(3, 2, 5))),
    "raise_epoch": lambda s: s.queue.raise_epoch("s1-job", 44),
    "reconcile": lambda s: s.lease.reconcile("w1", 6, 30_000, 1000, 16),
    "reject": lambda s: s.queue.reject(
        "1-2", "refused-1", '{"reason":"failed"}', b"\xff\x00", named="j@shop", tenant="shop"
    ),
    "renew": lambda s: s.lease.renew("w1", 30_000, 1000, 16),
    "reply": lambda s: s.queue.reply("r" * 16, '{"job":"s1-job"}'),
    "requeue": lambda s: s.lease.requeue("w1", "s1-job", 4),
    "requeue, parked": lambda s: s.lease.requeue("w1", "s1-job", 4, why="parked", lived="a3 f45"),
    "retain_many": lambda s: s.completion.retain(COMPLETED, Retention()),
    "requeue, crashed": lambda s: s.lease.requeue(
        "w1", "s1-job", 4, marker_epoch=5, num_logged=6, crashed=True, max_attempts=7
    ),
    "requeue, engine died": lambda s: s.lease.requeue(
        "w1", "s1-job", 4, marker_epoch=5, num_logged=6, crash=CRASH, passed="all"
    ),
    "scan": lambda s: s.lease.scan(limit=9),
    "submit": lambda s: s.queue.submit(JOB, BOUNDS, ticket=17, entry_id="1-2"),
    "submit, heard": lambda s: s.queue.submit(HEARD_JOB, Bounds(1000, 2000)),
    "submit, many": lambda s: s.queue.submit_many([PLAIN_JOB, JOB], Bounds(1000, 2000)),
    "takeover": lambda s: s.log.takeover([Takeover("s2-job", 3, "w1")]),
    "takeover, fence": lambda s: s.log.takeover([Takeover("s2-job", 3, "w1", create=False)]),
    "takeover, prompt": lambda s: s.log.takeover(
        [Takeover("s2-job", 3, "w1", chat=chat, prompt_tokens=9) for chat in ("", CHAT)]
    ),
    "takeover, messages": lambda s: s.log.takeover([Takeover("s2-job", 3, "w1", chat=CHAT)]),
    "tick": lambda s: s.queue.tick(limit=11),
    "unpull": lambda s: s.lease.unpull("w1", "s1-job", 4, 222),
    "unpull, prefix": lambda s: s.lease.unpull("w1", "s1-job", 4, 222, loses_prefix=True),
    "watch": lambda s: s.control.watch("w1", 9000),
    "webhook_claim": lambda s: s.control.claim_webhooks(12, 5000),
    "webhook_open": lambda s: s.control.open_webhook(
        "batch~1@acme",
        "acme",
        "https://shop.example/",
        event="batch.completed",
        event_of="batch_1",
    ),
    "webhook_try": lambda s: s.control.record_webhook_try(
        HOOK,
        WebhookOutcome.RETRY,
        WebhookTry(500, "bad", 12),
        body=b"\x00\xffbody",
        delay_ms=700,
        max_age_ms=100_000,
    ),
    "webhook_try, kept": lambda s: s.control.record_webhook_try(
        HOOK, WebhookOutcome.POSTPONE, WebhookTry(None), keep_ms=77
    ),
}


class Sent(Exception):
    """Takes the place of the server's answer."""


class Recorder:
    """A client whose calls go no further."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def execute_command(self, *args: Any) -> Any:
        """Note a call."""
        self.calls.append(args)
        raise Sent

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        """Note the calls of a pipeline."""
        assert not transaction
        return _Pipeline(self)

    def written(self) -> list[str]:
        """Return the calls' arguments, a call after the other, each byte as a character."""
        parser = hiredis.Reader()
        for call in self.calls:
            parser.feed(hiredis.pack_command(call))
        names = {script_sha(name): name for name in part_names()}
        words: list[str] = []
        for _ in self.calls:
            command, sha, *args = (arg.decode("latin-1") for arg in parser.gets())
            words += (command, names[sha], *args)
        return words


class _Pipeline:
    def __init__(self, recorder: Recorder) -> None:
        self._calls = recorder.calls

    def execute_command(self, *args: Any) -> None:
        self._calls.append(args)

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        raise Sent


@pytest.mark.parametrize("name", CALLS)
async def test_call_of_a_script_is_what_it_always_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order and bytes of a call's arguments are the contract between releases."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 32)
    recorder: Any = Recorder()
    with pytest.raises(Sent):
        await CALLS[name](Scripts(recorder, "fix"))
    assert recorder.written() == WRITTEN[name]


def test_arguments_of_a_submit_stand_where_its_script_names_them() -> None:
    """The one call that is packed by hand: each value says which one it is, as the script reads."""
    named: dict[str, Any] = {
        "idempotency": "idem",
        "job_id": "job",
        "not_before_ms": "delay_ms",
        "output_tokens": "output",
        "prompt_tokens": "prompt",
    }
    job = NewJob(**{field.name: named.get(field.name, field.name) for field in fields(NewJob)})
    others: dict[str, Any] = {"tenant_tokens": "tenant_tokens", "pool_tokens": "pool_tokens"}
    ticket: Any = "ticket_ms"
    args = _submit_args(job, Bounds(**others, refuse_late=True), ticket, "entry")
    told = ["refuse_late" if arg == 1 else arg for arg in args]
    read = re.search(
        r"function accept\(\.\.\.\)\n(.*?) = \.\.\.", read_part("lib/accepting").body, re.DOTALL
    )
    assert read is not None
    assert told == re.split(r",\s+", read[1].strip())


def test_every_script_is_called() -> None:
    """No script is left out, and no call is written that nobody makes."""
    assert {call[1] for call in WRITTEN.values()} == set(part_names())
    assert WRITTEN.keys() == CALLS.keys()
