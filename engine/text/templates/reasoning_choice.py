"""The reasoning formats of a template: told by what it writes, or by the marks that it names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reasoning_format import REASONING_FORMATS, ReasoningFormat
from tokenbus.engine.text.templates.template_traits import (
    ANSWER,
    THOUGHT,
    USER,
    TemplateTraits,
    probe_calls,
    rendered,
    result_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.engine.text.templates.chat_template import ChatTemplate

# Settings by which templates are asked to let the model think.
_THINKING = {"enable_thinking": True, "thinking": True}
# How marks begin that only close: `</…>`, `[/…]`, `[BEGIN …]`, and `<…|>` of Gemma 4.
_CLOSING = re.compile(r"[<\[]/|\[B|<\w+\|>")


def reasonings_of(template: ChatTemplate, traits: TemplateTraits) -> list[str]:
    """Return the reasoning formats whose marks the template writes, or else names."""
    prompts = [rendered(template, [USER])]
    prompts += [rendered(template, [USER], names=_THINKING)]
    written = list(_written_thoughts(template, traits))
    texts = (*prompts, template.source)
    signs: tuple[Callable[[ReasoningFormat], bool], ...] = (
        lambda each: each.opens_in_prompt and any(map(each.is_open_after, prompts)),
        lambda each: any(_is_thought(each, text) for text in written),
        lambda each: any(_has_both_marks(each, text) for text in texts),
        lambda each: any(_has_closing_mark(each, text) for text in texts),
    )
    found = [
        each
        for sign in signs
        for each in REASONING_FORMATS.values()
        if sign(each) and (not each.frame or _is_framed(each, template, prompts[0]))
    ]
    # Of two with the same marks, that whose frame is there says more.
    found.sort(key=lambda each: not each.frame)
    return list(dict.fromkeys(each.name for each in found))


def _is_framed(each: ReasoningFormat, template: ChatTemplate, prompt: str) -> bool:
    """Tell whether answers stand in the frame of a format.

    The template writes them so, takes them out of it, or tells the model to write them so.
    """
    plain = {"role": "assistant", "content": ANSWER}
    before = rendered(template, [USER, plain]).partition(ANSWER)[0].rstrip()
    taken_out = (f"split({quote}{mark}" for mark in each.frame for quote in "'\"")
    return (
        before.endswith(each.frame[0])
        or any(text in template.source for text in taken_out)
        or all(mark in prompt for mark in (each.closes[0], *each.frame))
    )


def _written_thoughts(template: ChatTemplate, traits: TemplateTraits) -> Iterator[str]:
    """Yield prompts with an answer that has reasoning."""
    thought = {"reasoning_content": THOUGHT, "thinking": THOUGHT}
    plain = {"role": "assistant", "content": ANSWER, **thought}
    yield rendered(template, [USER, plain], add_generation_prompt=False)
    calls = probe_calls(1, short=traits.has_short_ids)
    for shape in traits.shapes[:1]:
        turns = [USER, shape.turn(calls, **thought), *map(result_of, calls)]
        yield rendered(template, turns, traits.tools_name)


def _is_thought(each: ReasoningFormat, text: str) -> bool:
    """Tell whether the made-up thought stands between the marks of a format, or behind one."""
    before, found, after = text.partition(THOUGHT)
    return bool(found) and (
        before.rstrip().endswith(each.opens) and after.lstrip().startswith(each.closes)
    )


def _has_both_marks(each: ReasoningFormat, text: str) -> bool:
    return any(mark in text for mark in each.opens) and any(mark in text for mark in each.closes)


def _has_closing_mark(each: ReasoningFormat, text: str) -> bool:
    """Tell whether a text names the mark that ends the block, as templates do that cut it off."""
    return any(mark in text for mark in each.closes if _CLOSING.match(mark))
