"""Templates that nobody here knows: read back and written alike, or refused with tools."""

from __future__ import annotations

import pytest
from models.made_chats import ASKED, WEATHER, tokenizer_of, two_turns
from models.made_templates import KNOWN, UNKNOWN

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.chat_prompt import ChatRenderer


@pytest.mark.parametrize("name", UNKNOWN)
def test_calls_that_no_format_reads_refuse_tools_and_nothing_else(name: str) -> None:
    """A template is never taken for another family's; conversations without tools go on."""
    chat = ChatRenderer(tokenizer_of(UNKNOWN[name]))
    assert "--tool-format names a format" in chat.refusal
    with pytest.raises(RequestRejected, match="this model cannot be given tools") as refused:
        chat.calling(tools_of([WEATHER]))
    assert refused.value.field == "tools"
    assert str(ASKED["content"]) in chat.render([ASKED]).text
    text = chat.render(two_turns()).text
    places = [text.index(words) for words in ("Oslo", "It snows", "I look again.", "Sunny in Rome")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", KNOWN)
def test_calls_that_a_format_reads_and_writes_choose_it(name: str) -> None:
    """White space, ids, ends and blocks of thoughts that vary keep no template from its format."""
    template, expected = KNOWN[name]
    chat = ChatRenderer(tokenizer_of(template))
    assert not chat.refusal
    assert chat.format.name == expected
