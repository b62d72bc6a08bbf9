"""Key names have one owner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lua.parts import part_names

import tokenbus.producer.scripts.source as source_module
from tokenbus.producer.contract import keys as keys_module
from tokenbus.producer.contract.keys import (
    CHANNELS,
    LOG_KEYS,
    POOL_KEYS,
    Keys,
    address_of,
    shard_of,
)
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.scripts.source import script_source

LUA = Path(source_module.__file__).parent / "lua"
SCRIPTS = list(part_names())
PARTS = [*SCRIPTS, *part_names("lib/")]


@pytest.mark.parametrize("name", PARTS)
def test_scripts_name_keys_only_through_the_table(name: str) -> None:
    """No script or library spells a key name itself, and every name it uses is a key's."""
    used = set(re.findall(r"\b[KL]\.(\w+)", (LUA / f"{name}.lua").read_text()))
    assert used <= set(POOL_KEYS) | set(LOG_KEYS)
    spelled = "|".join(POOL_KEYS | LOG_KEYS)
    assert not re.search(rf"['\"]:({spelled})", (LUA / f"{name}.lua").read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_keys_of_a_script_are_filled_in(name: str) -> None:
    """The server gets whole key names."""
    assert not re.search(r"\b[KL]\.\w+", script_source(name))


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"submit", "submit_many"}))
def test_only_submit_is_refused_when_memory_is_full(name: str) -> None:
    """Jobs that are in can always end: every other script is allowed to run out of memory."""
    assert script_source(name).splitlines()[0] == "#!lua flags=allow-oom"


def test_every_key_is_in_the_table_of_the_module() -> None:
    """The docstring lists type and life of each key and channel."""
    for name in POOL_KEYS | LOG_KEYS:
        assert re.search(rf"^\| {name} +\|", keys_module.__doc__ or "", re.MULTILINE)


def test_a_pool_stays_in_one_slot_and_a_log_in_its_shards() -> None:
    """Every pool key begins with the pool's tag, log, result and channel with the shard's."""
    keys = Keys("shop")
    assert all(keys.of(name).startswith("{tb:shop}:") for name in POOL_KEYS)
    for key in (keys.log("s3-x"), keys.result("s3-x"), keys.channel("s3-x")):
        assert key.startswith("{tb:shop:3}:")
    assert [shard_of(job) for job in ("s0-a", "s12-a", "raw-1-2", "mine", "s-1")] == [
        0,
        12,
        0,
        0,
        0,
    ]


def test_channels_alone_tell_the_database() -> None:
    """Keys are named alike in every database, as those lie apart; channels do not, but in 0."""
    first, third = Keys("shop"), Keys("shop", 3)
    assert first.channel("mine@firm") == "{tb:shop:0}:tok:mine@firm"
    assert third.channel("mine@firm") == "{tb:shop:0}:db3:tok:mine@firm"
    assert third.of("ctl", "w") == "{tb:shop}:db3:ctl:w"
    for name in POOL_KEYS:
        assert (first.of(name) == third.of(name)) is (name not in CHANNELS), name
    assert (first.log("a"), first.result("a")) == (third.log("a"), third.result("a"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_publish_on_the_channels_of_their_database(name: str) -> None:
    """The text for a database differs from that of 0 in its channels, and in nothing else."""
    plain, third = script_source(name), script_source(name, 3)
    assert third.replace(":db3:", ":") == plain
    channels = [(POOL_KEYS | LOG_KEYS)[channel] for channel in CHANNELS]
    for line in third.splitlines():
        assert not any(f'"{channel}"' in line for channel in channels)
    assert (third != plain) is any(f'"{channel}"' in plain for channel in channels)


@pytest.mark.parametrize("pool", ["tok", "db3", "shop", "a.tok-b_"])
@pytest.mark.parametrize("database", [0, 3])
@pytest.mark.parametrize("job", ["mine", "s3-x", "a:tok:b", ":tok:", "db3:tok:x@a/b:c@d"])
def test_channel_tells_its_job(pool: str, database: int, job: str) -> None:
    """The job is read from its channel whatever pool, id and tenant are called."""
    assert address_of(Keys(pool, database).channel(job).encode()).text == job


@pytest.mark.parametrize("pool", ["", "a b", "a}", "{", "x" * 65, "a:b"])
def test_pool_names_that_break_the_tag_are_refused(pool: str) -> None:
    """A pool cannot leave its hash slot by its name."""
    with pytest.raises(ValueError, match="pool"):
        Keys(pool)


@pytest.mark.parametrize("pool", ["p\n", "", "a b", "a/b", "\ud800", "x" * 65, 7, None])
def test_pool_of_another_form_is_refused_by_its_name(pool: Any) -> None:
    """Also one with a line break behind it, which the dollar of a pattern lets through."""
    with pytest.raises(RequestInvalid, match=r"^pool: ") as refused:
        Keys(pool)
    assert str(refused.value).encode()
