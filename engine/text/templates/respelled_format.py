"""The call format of one template: the white space and the order that it writes.

Formats are read with any white space, so one of them stands for models that were trained on
several spellings. What is written in a model's name is that of its own template.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tokenbus.engine.text.templates.read_back import written_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat

# What is no text of the format: names, arguments, ids.
_VALUE = ""
_OF_TAGS = "tags."


def respelled(
    written: CallFormat, rendered: Iterable[tuple[Sequence[Mapping[str, object]], str]]
) -> CallFormat:
    """Return a format with the white space of rendered answers, or as it is.

    The name of a call stands behind its arguments where answers have it so. A format stays as it is
    where they differ from it in more than that and white space around its texts, or from one
    another.

    Args:
        rendered: calls, and the answer in which a template has them.
    """
    listed = [([written_call(call) for call in calls], answer) for calls, answer in rendered]
    turned = replace(written, name_is_last=True)
    if all(
        _texts_in(answer, turned.pieces(calls)) and not _texts_in(answer, written.pieces(calls))
        for calls, answer in listed
    ):
        written = turned if listed else written
    found: dict[str, str] = {}
    for calls, answer in listed:
        texts = _texts_in(answer, written.pieces(calls))
        if texts is None or any(found.setdefault(key, text) != text for key, text in texts):
            return written
    own: dict[str, Any] = {key: text for key, text in found.items() if not key.startswith(_OF_TAGS)}
    tags = {key.removeprefix(_OF_TAGS): text for key, text in found.items() if key not in own}
    if written.parameters is not None:
        own["parameters"] = replace(written.parameters, **tags)
    changed = replace(written, **own)
    is_same = all(changed.write(calls).strip() in answer for calls, answer in listed)
    return changed if is_same else written


def _texts_in(answer: str, pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Return the texts of a format as an answer has them; None if they differ in more.

    White space between two of them belongs to the first, or to one between them that is nothing
    else; beside a value it belongs to the text.
    """
    solid = "".join("".join(text.split()) for _, text in pieces)
    places = [at for at, char in enumerate(answer) if not char.isspace()]
    begin = "".join(answer[at] for at in places).find(solid)
    if begin < 0:
        return None
    places = places[begin : begin + len(solid)]
    texts: list[str] = []
    taken = 0
    for _, text in pieces:
        size = len("".join(text.split()))
        own = places[taken : taken + size]
        texts.append(answer[own[0] : own[-1] + 1] if own else "")
        taken += size
    filled = [idx for idx, text in enumerate(texts) if text]
    taken = 0
    for before, behind in pairwise(filled):
        taken += len("".join(texts[before].split()))
        gap = answer[places[taken - 1] + 1 : places[taken]]
        blank = [idx for idx in range(before + 1, behind) if pieces[idx][0] != _VALUE]
        if blank:
            texts[blank[0]] = gap
        elif pieces[before][0] == _VALUE:
            texts[behind] = gap + texts[behind]
        else:
            texts[before] += gap
    return [(key, text) for (key, _), text in zip(pieces, texts, strict=True) if key != _VALUE]
