"""Prompts may come as any sequence; an id outside the vocabulary is refused by its number."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.text.prompt_ids import id_range, packed
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize("ids", [(3, 1), [3, 1], array("i", [3, 1]), array("q", [3, 1])])
def test_any_sequence_is_packed(ids: Sequence[int]) -> None:
    """What comes packed stays the same object."""
    found = packed(ids)
    assert found == array("i", [3, 1])
    assert (found is ids) == (isinstance(ids, array) and ids.typecode == "i")
    assert id_range(found) == (1, 3)


@pytest.mark.parametrize("bad", [-1, 512, 1 << 40, -(1 << 40)])
def test_id_outside_the_vocabulary_is_named(tiny: Any, bad: int) -> None:
    """Also one that no C int holds."""
    engine = tiny.engine()
    with pytest.raises(RequestRejected, match=rf"token id {bad} is not in the vocabulary"):
        engine.add(Request(0, (1, bad, 2), SamplingParams()))
