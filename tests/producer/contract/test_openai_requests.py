"""What the official client of OpenAI sends goes through both doors as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clients.openai_requests import recorded

from tokenbus.engine.offline.offline_request import OfflineRequest, conversation_of
from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest, StoredRequest

BODIES: dict[str, Any] = json.loads((Path(__file__).parent / "openai_requests.json").read_text())
# The fields of a request that the release before read; any other makes its workers refuse a job.
EARLIER = frozenset(
    {
        "v", "id", "prompt", "messages", "token_ids", "tenant", "priority", "deadline_s",
        "not_before_s", "idempotency_key", "cache_group", "cache_key", "metadata", "traceparent",
        "callback_url", "n", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words",
        "seed", "stop", "include_stop", "stop_token_ids", "ignore_eos", "logprobs",
        "prompt_logprobs", "grammar", "tools", "tool_choice", "parallel_tool_calls",
    }
)  # fmt: skip
# Instructions to the template, which the release before could not give.
NEWER = {"books": {"chat_template_kwargs"}}


@pytest.mark.parametrize("name", BODIES)
def test_body_is_a_request_at_both_doors(name: str) -> None:
    """As keywords, as JSON and offline it is taken; it is stored as the release before reads it."""
    body = BODIES[name]
    request = JobRequest.build(**body)
    assert JobRequest.parse(json.dumps(body)) == request
    made = new_job(request)
    wire = json.loads(made.request)
    assert set(wire) - EARLIER == NEWER.get(name, set())
    assert StoredRequest.parse(made.request).messages == request.messages
    assert made.model == body["model"]
    own = {field: value for field, value in body.items() if field != "messages"}
    asked = OfflineRequest.of(own, (body["model"],), is_chat=True)
    messages, _ = conversation_of(body["messages"])
    dumped = [message.model_dump(exclude_none=True) for message in request.messages or ()]
    assert dumped == [{k: v for k, v in m.items() if v is not None} for m in messages]
    assert len(asked.tools) == len(request.tools or ())


def test_models_differ_in_the_digest() -> None:
    """The same request for two models is not one job under one idempotency key."""
    digests = {
        new_job(JobRequest.build(prompt="a", model=model)).digest for model in ("a", "b", None)
    }
    assert len(digests) == 3


@pytest.mark.slow
def test_bodies_are_those_of_the_client() -> None:
    """What is recorded is what the installed client writes."""
    pytest.importorskip("openai", reason="the official client of OpenAI is in the extra `dev`")
    assert recorded() == BODIES
