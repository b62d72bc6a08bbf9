"""The vocabulary of a tokenizer in the form that the grammar library takes, in any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Spells the end of sequence of tokenizers that have none.
_END = "<|tokenbus end|>"


@dataclass(frozen=True, slots=True)
class GrammarVocabulary:
    """A tokenizer as plain values, so that another process can build the same.

    tokenizer: in the JSON form of the tokenizers library.
    """

    tokenizer: str
    num_ids: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> GrammarVocabulary:
        """Read a tokenizer; a model may pad its vocabulary to `vocab_size`.

        The library wants an end of sequence. A model without one gets an id behind its own: its
        output ends where the grammar leaves nothing else, or by length.
        Raises: GrammarRejected if the tokenizer is not one of the tokenizers library.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            name = type(tokenizer).__name__
            raise GrammarRejected("grammar", f"not possible with the slow tokenizer {name}")
        num_ids = max(vocab_size, len(tokenizer))
        if backend.padding or backend.truncation or not eos_token_ids:
            # A copy takes as long as four readings, and is made where it has to differ alone.
            backend = Tokenizer.from_str(backend.to_str())
            backend.no_padding()
            backend.no_truncation()
        if not eos_token_ids:
            backend.add_special_tokens([_END])
            end_id = backend.token_to_id(_END)
            assert end_id is not None
            num_ids, eos_token_ids = max(num_ids, end_id + 1), (end_id,)
        return cls(backend.to_str(), num_ids, eos_token_ids)

    def build(self) -> LLTokenizer:
        """Build what matchers are made with; takes about a second for 150k tokens."""
        return LLTokenizer(self.tokenizer, n_vocab=self.num_ids, eos_token=list(self.eos_token_ids))
