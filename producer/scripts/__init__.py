"""The whole contract with the server in one object: `Scripts(redis, pool)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.scripts.completing import CompletionScripts
from tokenbus.producer.scripts.control import ControlScripts
from tokenbus.producer.scripts.corpus import CorpusCalls
from tokenbus.producer.scripts.lease import Budget, LeaseScripts
from tokenbus.producer.scripts.log import Append, Begin, End, LogScripts, Takeover
from tokenbus.producer.scripts.questions import QuestionScripts
from tokenbus.producer.scripts.queue import STALE_ANSWER_S, Bounds, QueueScripts
from tokenbus.producer.scripts.runner import ScriptRunner, database_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

__all__ = [
    "STALE_ANSWER_S",
    "Append",
    "Begin",
    "Bounds",
    "Budget",
    "End",
    "Scripts",
    "Takeover",
]


class Scripts:
    """Typed access to every script of a pool.

    `queue` is for what enters and ends without an owner, `lease` for workers, `log` for tokens,
    `completion` for what has ended, `control` for the control service, `questions` for who asks a
    worker's tokenizer, `corpus` for the answers that drafts come from.
    The client must not decode replies, and must not retry a command by itself: what a lost call
    did is settled by the rules of reconciling, never by sending it again. Single scripts go
    through `execute` where it is given.
    """

    def __init__(
        self,
        redis: Redis,
        pool: str = "default",
        *,
        timeout_s: float = 10.0,
        publish: Literal["PUBLISH", "SPUBLISH"] = "PUBLISH",
        execute: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        self.redis = redis
        self.timeout_s = timeout_s
        self.publish = publish
        self.keys = Keys(pool, database_of(redis))
        runner = ScriptRunner(redis, timeout_s, execute)
        self.queue = QueueScripts(runner, self.keys)
        self.lease = LeaseScripts(runner, self.keys)
        self.log = LogScripts(runner, self.keys, publish)
        self.completion = CompletionScripts(runner, self.keys, redis)
        self.control = ControlScripts(runner, self.keys)
        self.questions = QuestionScripts(runner, self.keys, redis)
        self.corpus = CorpusCalls(self.keys, redis)
