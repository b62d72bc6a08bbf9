"""Outputs that are drawn token by token from what a grammar allows, without a model."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.sampling.bitmask import unpack, unpack_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarMatcher


def drawn_output(
    matcher: GrammarMatcher, tokenizer: PreTrainedTokenizerFast, seed: int, most: int
) -> str:
    """Draw up to `most` tokens, the end (id 0) as likely as any other that is allowed."""
    draw, ids, table = random.Random(seed), list[int](), unpack_table(torch.device("cpu"))
    while len(ids) < most and not matcher.is_finished:
        allowed = unpack(matcher.mask()[None], len(tokenizer), table)[0].nonzero().flatten()
        ids.append(draw.choice(allowed.tolist()))
        if ids[-1] == 0:
            break
        matcher.accept(ids[-1])
    return str(tokenizer.decode(ids, skip_special_tokens=True))
