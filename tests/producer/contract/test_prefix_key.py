"""What names the beginning of a prompt, and what is too short to be worth a name."""

from __future__ import annotations

from typing import Any

from tokenbus.producer.contract.prefix_key import prefix_key
from tokenbus.producer.contract.schema import JobRequest

POLICY = "Be kind to customers. " * 60


def key(**fields: Any) -> str:
    """Name the prefix of a request."""
    return prefix_key(JobRequest.build(**fields))


def chat(system: str, question: str) -> list[dict[str, str]]:
    """Make a conversation."""
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def test_same_system_message_has_one_key_per_tenant() -> None:
    """Questions under one policy share it; another tenant's or policy's do not, nor their pages."""
    one = key(messages=chat(POLICY, "a"), tenant="a")
    assert one == key(messages=chat(POLICY, "quite another"), tenant="a")
    assert one != key(messages=chat(POLICY, "a"), tenant="b")
    assert one != key(messages=chat(POLICY + "!", "a"), tenant="a")
    assert 0 < len(one) <= 64


def test_key_of_a_cache_group_is_the_group_and_how_the_prompt_begins() -> None:
    """Tenants that share a group on purpose share the keys, one for each of its beginnings."""
    promo = {"cache_group": "promo", "cache_secret": "known to both of them"}
    one = key(prompt=POLICY, tenant="a", **promo)
    assert one == key(prompt=POLICY + "?", tenant="b", **promo)
    assert one != key(prompt="Not so. " + POLICY, tenant="a", **promo)
    assert one != key(prompt=POLICY, tenant="a", **promo | {"cache_group": "other"})
    assert key(prompt="x", tenant="a", **promo) == key(prompt="y", tenant="b", **promo) != ""


def test_key_of_a_cache_group_is_its_tenants_without_the_secret() -> None:
    """Who guesses a group, or its secret wrongly, finds nobody's prefix."""
    group = {"prompt": POLICY, "cache_group": "promo"}
    right = group | {"cache_secret": "known to both of them"}
    wrong = group | {"cache_secret": "guessed by the third"}
    keys = [key(tenant=tenant, **fields) for tenant in "ab" for fields in (group, wrong)]
    assert len({*keys, key(tenant="a", **right)}) == 4


def test_key_of_a_listed_cache_group_is_shared_by_those_listed() -> None:
    """The owner of the pool may name the tenants of a group; a job of version 1 stays apart."""
    groups = {"promo": ["a", "b"]}

    def listed(**fields: Any) -> str:
        request = JobRequest.build(prompt=POLICY, cache_group="promo", **fields)
        return prefix_key(request, groups)

    assert listed(tenant="a") == listed(tenant="b")
    assert len({listed(tenant="a"), listed(tenant="c"), listed(tenant="a", v=1)}) == 3


def test_key_of_a_cache_group_looks_no_further_than_what_is_worth_sharing() -> None:
    """Names and dates that stand later in a system message leave the group together."""
    one = key(messages=chat(POLICY + "Today is Monday.", "a"), cache_group="promo")
    assert one == key(messages=chat(POLICY + "Today is Tuesday.", "b"), cache_group="promo")


def test_prompts_and_token_ids_are_named_by_their_beginning() -> None:
    """Without messages the first 1,024 characters or 256 ids decide."""
    assert key(prompt=POLICY + "a") == key(prompt=POLICY + "b") != ""
    ids = list(range(256))
    assert key(token_ids=[*ids, 1]) == key(token_ids=[*ids, 2]) != ""


def test_short_beginnings_have_no_key() -> None:
    """What is computed again sooner than it is waited for is not worth a name."""
    assert key(prompt="hello") == ""
    assert key(token_ids=[1, 2, 3]) == ""
    assert key(messages=chat("Be kind.", POLICY)) == ""
