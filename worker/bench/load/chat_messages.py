"""Prompts of ids as chat messages: the texts of the ids, for the worker to render and tokenise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from tokenbus.worker.bench.load.prompts import Prompts
    from tokenbus.worker.bench.options import BenchOptions

# The null engine's tokenizer has an id a byte; these bytes are characters by themselves.
_FIRST_PRINTABLE, _NUM_PRINTABLE = 32, 95


class ChatMessages:
    """The prompts of another source, what a group shares as the system message.

    A text has as many tokens as the null engine's prompt had ids; a model's tokenizer may join
    some that were drawn side by side, and the template adds its own.
    """

    def __init__(self, options: BenchOptions, prompts: Prompts) -> None:
        self._prompts = prompts
        # Prompts of a trace or of a fixed workload are their users' own.
        is_drawn = options.workload == "synthetic" and options.trace is None
        self._num_shared = options.shared_tokens if is_drawn else 0
        self._text = _text_of(options)

    @property
    def num_jobs(self) -> int | None:
        """Number of jobs there are, None for as many as one likes."""
        return self._prompts.num_jobs

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Return a prompt's fields with messages in place of ids, and the tokens to generate."""
        fields, num_output = self._prompts.prompt(number, source)
        ids = fields.pop("token_ids")
        shared, own = ids[: self._num_shared], ids[self._num_shared :]
        messages = [{"role": "system", "content": self._text(shared)}] if shared else []
        messages.append({"role": "user", "content": self._text(own)})
        return fields | {"messages": messages}, num_output


def _text_of(options: BenchOptions) -> Callable[[Sequence[int]], str]:
    """Return what turns ids into text. Raises: EngineStartFailed if a model has no tokenizer."""
    if options.model_folder is None:
        return lambda ids: "".join(chr(_FIRST_PRINTABLE + each % _NUM_PRINTABLE) for each in ids)
    tokenizer = load_tokenizer(options.model_folder, options.vocab_size)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    return decode
