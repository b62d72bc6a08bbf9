"""What a request may say, and how a wrong one is answered."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid, SchemaMismatch


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("not json", "job"),
        ("[]", "job"),
        ("{}", "prompt"),
        ('{"prompt":"a","token_ids":[1]}', "prompt"),
        ('{"prompt":5}', "prompt"),
        ('{"prompt":"a","max_tokens":-1}', "max_tokens"),
        ('{"prompt":"a","max_tokens":"12"}', "max_tokens"),
        ('{"prompt":"a","max_tokens":12.5}', "max_tokens"),
        ('{"prompt":"a","n":0}', "n"),
        ('{"prompt":"a","temperature":NaN}', "temperature"),
        ('{"prompt":"a","temperature":-1}', "temperature"),
        ('{"prompt":"a","top_p":0}', "top_p"),
        ('{"prompt":"a","stop":7}', "stop"),
        ('{"prompt":"a","stop":[""]}', "stop.0"),
        ('{"prompt":"a","tenant":"a b"}', "tenant"),
        ('{"prompt":"a","tenant":"{x}"}', "tenant"),
        ('{"prompt":"a","id":"{x}"}', "id"),
        ('{"prompt":"a","priority":3}', "priority"),
        ('{"prompt":"a","min_tokens":500}', "min_tokens"),
        ('{"prompt":"a","tools":[{"type":"function","function":{"name":"f"}}]}', "tools"),
        ('{"prompt":"a","deadline_s":0}', "deadline_s"),
        ('{"prompt":"a","colour":"red"}', "colour"),
        ('{"messages":[{"role":"user","content":7}]}', "messages.0.content"),
        ('{"token_ids":[1,-2]}', "token_ids.1"),
        ('{"token_ids":[1,true]}', "token_ids.1"),
        ('{"token_ids":[1.5]}', "token_ids.0"),
        ('{"token_ids":[2147483648]}', "token_ids.0"),
        ('{"token_ids":[]}', "token_ids"),
        ('{"token_ids":""}', "token_ids"),
        ('{"token_ids":"AAAA"}', "token_ids"),
        ('{"token_ids":"/////w=="}', "token_ids"),
        ('{"token_ids":"AQAAAA"}', "token_ids"),
        ('{"token_ids":"\u00fc"}', "token_ids"),
        ('{"prompt":"a","grammar":{"kind":"poem","source":"x"}}', "grammar.kind"),
    ],
)
def test_wrong_request_is_answered_with_its_field(body: str, field: str) -> None:
    """A request that breaks the schema raises an error that names the offending field."""
    with pytest.raises(RequestInvalid) as caught:
        JobRequest.parse(body)
    assert caught.value.field == field


@pytest.mark.parametrize("version", ["0", "3", '"1"', "null", "true"])
def test_unknown_wire_version_is_refused(version: str) -> None:
    """A request of another wire version is told so by both, whatever else it says."""
    with pytest.raises(SchemaMismatch, match="this release speaks 1 and 2"):
        JobRequest.parse(f'{{"v":{version},"prompt":"a","news":1}}')


def test_dump_keeps_every_value() -> None:
    """What is stored reads back as the same request, defaults included."""
    request = JobRequest.build(
        messages=[{"role": "user", "content": "héllo"}], temperature=0, logit_bias={5: -1.5}, n=2
    )
    assert JobRequest.parse(request.dump()) == request
    assert json.loads(request.dump())["v"] == 2


def test_token_ids_may_be_packed_and_are_stored_so() -> None:
    """A list of ids and the base64 of little-endian int32 are one request with one digest."""
    ids = [0, 1, 258, 151_935, 2**31 - 1]
    packed = base64.b64encode(struct.pack("<5i", *ids)).decode()
    as_list = JobRequest.parse(json.dumps({"token_ids": ids, "seed": 1}))
    as_text = JobRequest.build(token_ids=packed, seed=1)
    assert as_list == as_text == JobRequest.build(**as_text.model_dump())
    assert list(as_text.token_ids or ()) == ids
    assert json.loads(as_list.dump())["token_ids"] == packed
    assert new_job(as_list).digest == new_job(as_text).digest


def test_draws_are_stored_with_the_job_but_not_in_its_digest() -> None:
    """Two submits of one request differ in drawn id and seed, not in the digest that compares."""
    request = JobRequest.build(prompt="a", temperature=1.0)
    first, second = new_job(request), new_job(request)
    assert first.job_id != second.job_id
    assert JobRequest.parse(first.request).seed != JobRequest.parse(second.request).seed
    assert first.digest == second.digest
    assert first.digest != new_job(JobRequest.build(prompt="b")).digest


def test_given_seed_and_id_are_kept() -> None:
    """A caller's own job id and seed are stored as given."""
    made = new_job(JobRequest.build(prompt="a", id="mine", seed=7))
    assert made.job_id == "mine"
    assert JobRequest.parse(made.request).seed == 7


def test_estimate_is_exact_for_token_ids() -> None:
    """A prompt of token ids is weighed by their number; text by its bytes, never zero."""
    assert JobRequest.build(token_ids=[1, 2, 3]).estimate_prompt_tokens() == 3
    assert JobRequest.build(prompt="").estimate_prompt_tokens() == 1
    assert JobRequest.build(prompt="ü" * 300).estimate_prompt_tokens() > 100
