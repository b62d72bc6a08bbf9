"""The token with which a chat template ends an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_QUESTION, _ANSWER, _NEXT = "one question", "one answer", "next question"


def turn_end(tokenizer: Any, known_ids: Collection[int], template: str | None = None) -> int | None:
    """Return the special token that ends an answer in a chat template, the tokenizer's own if None.

    Asked is by rendering an answer, last and in the middle: it has to end alike in both. None where
    one of `known_ids` ends it, no special token does, or there is no template.
    """
    if template is None and not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    last = _behind_answer(tokenizer, turns, template)
    middle = _behind_answer(tokenizer, [*turns, {"role": "user", "content": _NEXT}], template)
    if not last or not middle or not {*last, *middle}.isdisjoint(known_ids):
        return None
    return last[0] if last[0] == middle[0] else None


def _behind_answer(
    tokenizer: Any, messages: list[dict[str, str]], template: str | None
) -> list[int]:
    """Return the special tokens between the answer and what follows; none if it cannot be told."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
        _, found, rest = text.rpartition(_ANSWER)
        behind = rest.partition(_NEXT)[0]
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if found and behind else []
    # Templates are programs that come with the model and raise whatever they like.
    except Exception:
        return []
    special = {idx for idx, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [token_id for token_id in ids if token_id in special]
