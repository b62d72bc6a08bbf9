"""Prompts may come as any sequence; an id outside the vocabulary is refused by its number."""

from __future__ import annotations

from array import array
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.text.prompt_ids import all_within, id_range, packed
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@pytest.mark.parametrize("ids", [(3, 1), [3, 1], array("i", [3, 1]), array("q", [3, 1])])
def test_any_sequence_is_packed(ids: Sequence[int]) -> None:
    """What comes packed stays the same object."""
    found = packed(ids)
    assert found == array("i", [3, 1])
    assert (found is ids) == (isinstance(ids, array) and ids.typecode == "i")
    assert id_range(found) == (1, 3)


@pytest.mark.parametrize("pack", [packed, list, tuple])
@pytest.mark.parametrize("edge", [0, 511])
def test_every_id_of_the_vocabulary_is_within(
    pack: Callable[[list[int]], Sequence[int]], edge: int
) -> None:
    """The first and the last id are, their neighbours outside are not, wherever they stand."""
    for place in range(3):
        ids = [7, 7, 7]
        ids[place] = edge
        assert all_within(pack(ids), 512)
        for bad in (-1, 512, 2**31 - 1, -(2**31)):
            ids[place] = bad
            assert not all_within(pack(ids), 512)


def test_request_with_another_prompt_is_else_the_same() -> None:
    """No field gets lost on the way to the engine."""
    params = SamplingParams(n=2, seed=5)
    given = Request(3, (1,), params, 2, "salt", "lane", "tenant", ((4,), (5, 6)), (1,))
    plain = Request(3, (1,), SamplingParams())
    for field in fields(Request)[2:]:
        assert getattr(given, field.name) != getattr(plain, field.name)
    assert given.with_prompt((8, 9)) == replace(given, prompt_ids=(8, 9))


@pytest.mark.parametrize("bad", [-1, 512, 1 << 40, -(1 << 40)])
def test_id_outside_the_vocabulary_is_named(tiny: Any, bad: int) -> None:
    """Also one that no C int holds."""
    engine = tiny.engine()
    with pytest.raises(RequestRejected, match=rf"token id {bad} is not in the vocabulary"):
        engine.add(Request(0, (1, bad, 2), SamplingParams()))


@pytest.mark.parametrize("bad", ["1", 1.0, None])
def test_id_that_is_no_integer_is_refused(tiny: Any, bad: Any) -> None:
    """Nothing of it is in the batch."""
    engine = tiny.engine()
    with pytest.raises(RequestRejected, match="cannot be set up"):
        engine.add(Request(0, (1, bad, 2), SamplingParams()))
    assert not engine.has_work
