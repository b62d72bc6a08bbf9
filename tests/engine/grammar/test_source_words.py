"""The words of a grammar's source: which tokens begin keys and values, and in which order."""

from __future__ import annotations

import json

from tokenbus.engine.grammar.schema.source_words import first_tokens


def letters(word: str) -> list[int]:
    """Tokenise a word to its letters."""
    return [ord(letter) for letter in word]


def test_words_have_the_order_of_the_source_and_each_token_its_first_place() -> None:
    """Keys and values alike; a word that begins as an earlier one does adds nothing."""
    source = json.dumps({"size": {"enum": ["medium", "small"]}, "note": 1})
    assert first_tokens(source, letters) == {ord("s"): 0, ord("e"): 1, ord("m"): 2, ord("n"): 4}


def test_words_of_a_source_inside_a_text_are_found() -> None:
    """Tool calls come as a schema in a text of JSON, with their quotes escaped."""
    inner = json.dumps({"order_id": {"enum": ["late"]}})
    assert first_tokens(json.dumps(f"start: %json {inner}"), letters) == {
        ord("o"): 0, ord("e"): 1, ord("l"): 2,
    }  # fmt: skip


def test_words_of_a_huge_source_are_bounded() -> None:
    """A source of thousands of words is read as far as it is of use."""
    words = [chr(0x4E00 + number) for number in range(5000)]
    source = json.dumps(words, ensure_ascii=False)
    assert len(first_tokens(source, letters)) == 512
