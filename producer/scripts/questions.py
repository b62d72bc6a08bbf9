"""Questions that any worker of a pool answers at once: what its tokenizer makes of a text.

They lie in a list for the worker that takes them first, and are gone when nobody does. The answer
waits under the secret of who asks, as that of a raw entry does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts.runner import ScriptRunner

# A question that no worker takes goes so long after it was asked.
_TTL_MS = 10_000
_FIRST_LOOK_S, _LATER_LOOK_S = 0.005, 0.05
# An answer waits so long for who asked.
_ANSWER_TTL_MS = 30_000


class QuestionScripts:
    """Typed calls about questions. Every method raises what `ScriptRunner.command` raises."""

    def __init__(self, runner: ScriptRunner, keys: Keys, redis: Redis) -> None:
        self._runner = runner
        self._keys = keys
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis

    async def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Ask, and return the answer of the worker that took it; None if none has in time."""
        secret = secrets.token_urlsafe(24)
        until_ms = int((time.time() + timeout_s) * 1000)
        body = json.dumps({**question, "reply": secret, "until_ms": until_ms})
        name, reply = self._keys.of("questions"), self._keys.of("replies", secret)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(name, body)
            pipe.pexpire(name, _TTL_MS)
            async with asyncio.timeout(timeout_s + _TTL_MS / 1000):
                await pipe.execute()
        look_s, deadline = _FIRST_LOOK_S, time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = await self._runner.command("LPOP", reply)
            if answer is not None:
                told: dict[str, Any] = json.loads(answer)
                return told
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, _LATER_LOOK_S)
        # Who finds the question now drops it.
        return None

    async def take(self) -> dict[str, Any] | None:
        """Take the oldest question; None where there is none.

        One in no known form, or that nobody waits for any more, is dropped.
        """
        while (body := await self._runner.command("LPOP", self._keys.of("questions"))) is not None:
            try:
                question: dict[str, Any] = json.loads(body)
                if int(question["until_ms"]) >= time.time() * 1000 and str(question["reply"]):
                    return question
            except (ValueError, TypeError, KeyError):
                continue
        return None

    async def answer(self, question: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Leave an answer where it is waited for."""
        name = self._keys.of("replies", str(question["reply"])[:64])
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(name, json.dumps(answer))
            pipe.pexpire(name, _ANSWER_TTL_MS)
            await pipe.execute()
