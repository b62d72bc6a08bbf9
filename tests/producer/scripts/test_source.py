"""How scripts are put together: headers, libraries, arguments by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lua.parts import part_names

from tokenbus.producer.scripts import source
from tokenbus.producer.scripts.source import (
    Part,
    libraries,
    parse_part,
    read_part,
    script_source,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = list(part_names())


@pytest.fixture
def make_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Give a maker of parts that stand in for the files."""

    def make(texts: dict[str, str]) -> None:
        def read(name: str) -> Part:
            return parse_part(name, texts[name])

        monkeypatch.setattr(source, "read_part", read)

    return make


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_holds_each_library_once_behind_what_it_uses(name: str) -> None:
    """Lua knows a local name only behind its declaration."""
    seen: set[str] = set()
    for part in libraries(name):
        assert part.name not in seen
        assert seen >= set(part.uses)
        seen.add(part.name)
    assert seen >= set(read_part(name).uses)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_header_is_left_in_a_script(name: str) -> None:
    """The server gets flags and Lua only."""
    text = script_source(name)
    assert text.startswith("#!lua")
    assert "--@" not in text


def test_arguments_are_named_and_read_as_their_kind() -> None:
    """The header is where the order of a call is written, for both sides."""
    signature = parse_part(
        "made_up", "#!lua\n--@args job pages:number now:flag\n--@args _:unused more:rest\n"
    ).signature
    assert signature.lua() == (
        "local job, pages, now, more = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', 5"
    )
    given = {"job": "j", "pages": 3, "now": True, "_": 0, "more": ["a", 2]}
    assert signature.pack(given) == ["j", 3, 1, 0, "a", 2]


@pytest.mark.parametrize(
    "given",
    [{}, {"job": "j"}, {"job": "j", "epoch": 1, "more": 1}, {"epoch": 1, "job": "j"}],
)
def test_call_with_other_arguments_is_refused(given: dict[str, str | int]) -> None:
    """An argument that is missing, unknown or elsewhere never reaches the server."""
    with pytest.raises(TypeError, match=r"raise_epoch\.lua takes job, epoch"):
        read_part("raise_epoch").signature.pack(given)


@pytest.mark.parametrize(
    "text",
    [
        "--@args job\n",
        "#!lua\n--@offers ring\n",
        "#!lua\n--@use base ring\n",
        "#!lua\n--@use base:\n",
        "#!lua\n--@uses base: ring\n",
        "#!lua\n--@args job:word\n",
    ],
)
def test_header_that_says_something_else_is_refused(text: str) -> None:
    """A misspelt header is an error, never a comment."""
    with pytest.raises(ValueError, match=r"made_up\.lua"):
        parse_part("made_up", text)


def test_name_that_a_library_does_not_offer_is_refused(
    make_parts: Callable[[dict[str, str]], None],
) -> None:
    """A script gets from a library what that offers, not what it keeps for itself."""
    make_parts({"one": "#!lua\n--@use a: x y\n", "lib/a": "--@offers x\nlocal x, y = 1, 2"})
    with pytest.raises(ValueError, match=r"one\.lua: lib/a offers no y"):
        libraries("one")


def test_libraries_that_use_each_other_are_refused(
    make_parts: Callable[[dict[str, str]], None],
) -> None:
    """There is no order for them."""
    make_parts(
        {
            "one": "#!lua\n--@use a: x\n",
            "lib/a": "--@offers x\n--@use b: y\nlocal x = y",
            "lib/b": "--@offers y\n--@use a: x\nlocal y = x",
        }
    )
    with pytest.raises(ValueError, match=r"lib/a\.lua uses itself by way of lib/b\.lua"):
        libraries("one")
