"""Questions: what the tokenizer of this worker makes of texts and ids, for doors without one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import answer_of
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.exceptions import RedisError
    from transformers import PreTrainedTokenizerFast

    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.prompt import PromptPreparer

# What a question waits at most for an idle worker; an empty look costs the server about 5 us.
POLL_INTERVAL_S = 0.1
REFUSED_PAUSE_S = 1.0
MAX_IDS = 1_000_000


class Questions:
    """Answers the questions of a pool, one after the other, in a thread beside the loop."""

    def __init__(
        self,
        member: PoolMember,
        preparer: PromptPreparer,
        tokenizer: PreTrainedTokenizerFast,
        max_model_len: int,
    ) -> None:
        self._session = member.session
        self._questions = member.scripts.questions
        self._preparer = preparer
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._log = get_logger()

    async def run(self) -> None:
        """Answer for ever."""
        await self._session.every(
            POLL_INTERVAL_S,
            self.answer_all,
            refused=self._note_refused,
            refused_pause_s=REFUSED_PAUSE_S,
        )

    async def answer_all(self) -> None:
        """Answer what is asked now. Raises: SessionLost."""
        while (question := await self._session.call(self._questions.take)) is not None:
            answer = await asyncio.to_thread(self.answer, question)
            asked = question
            await self._session.call(lambda: self._questions.answer(asked, answer))  # noqa: B023 - called at once

    def _note_refused(self, error: RedisError) -> None:
        self._log.warning("questions.refused", reason=answer_of(error).told)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one question, an `error` where it has none."""
        try:
            match question.get("kind"):
                case "tokenize":
                    return self._tokenized(question)
                case "detokenize":
                    return {"text": self._text(self._ids(question))}
                case "texts":
                    return {"texts": [self._text([each]) for each in self._ids(question)]}
                case _:
                    raise JobRefused("invalid_request", "kind", "is no kind of question")
        except JobRefused as error:
            return {"error": {"code": error.code, "field": error.field, "message": str(error)}}
        except RequestInvalid as error:
            told = {"code": "invalid_request", "field": error.field, "message": error.message}
            return {"error": told}
        except Exception as error:
            # The boundary of a question: it costs who asked an answer, and nobody else anything.
            self._log.warning("question.failed", error=type(error).__name__)
            return {"error": {"code": "internal", "field": None, "message": "cannot be answered"}}

    def _tokenized(self, question: dict[str, Any]) -> dict[str, Any]:
        request = JobRequest.of_fields({**question["request"], "max_tokens": 0})
        ids = list(self._preparer.tokenise(request).prompt_ids)
        told: dict[str, Any] = {"ids": ids, "max_model_len": self._max_model_len}
        if question.get("with_texts"):
            told["texts"] = [self._text([each]) for each in ids]
        return told

    def _ids(self, question: dict[str, Any]) -> Sequence[int]:
        ids = question.get("ids")
        if not isinstance(ids, list) or len(ids) > MAX_IDS:
            raise JobRefused("invalid_request", "tokens", "must be a list of token ids")
        size = len(self._tokenizer)
        for each in ids:
            if type(each) is not int or not 0 <= each < size:
                told = f"{each!a:.40} is no token id of a vocabulary of {size}"
                raise JobRefused("invalid_request", "tokens", told)
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        assert isinstance(text, str)
        return text
