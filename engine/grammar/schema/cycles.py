"""Schemas that refer to themselves without a value between: no value would ever be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.grammar.schema.document import Document
    from tokenbus.engine.grammar.schema.node import Node

_ONE, _LISTS = ("not", "if", "then", "else"), ("allOf", "anyOf", "oneOf")


def check_cycles(document: Document) -> None:
    """Raise for a schema that refers back to itself without passing a value.

    Raises: GrammarRejected.
    """
    finished: set[Node] = set()
    for start in document:
        is_open: set[Node] = set()
        stack = [(start, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                is_open.discard(node)
                finished.add(node)
                continue
            if node in is_open:
                raise refusal("$ref", node.path, "refers to itself without end")
            if node in finished:
                continue
            is_open.add(node)
            stack.append((node, True))
            stack.extend((inner, False) for inner in _in_place(node, document))


def _in_place(node: Node, document: Document) -> Iterator[Node]:
    """Yield the schemas that apply to the same value as this one."""
    for word in _LISTS:
        yield from node.words.get(word, ())
    for word in _ONE:
        if word in node.words:
            yield node.words[word]
    yield from node.words.get("dependentSchemas", {}).values()
    if "$ref" in node.words:
        yield document.target(node)
