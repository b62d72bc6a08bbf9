"""llama.cpp as a contestant of `tokenbus bench cpu`, through llama-cpp-python (0.3.10 or newer)."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenbus.engine.bench.order import Contestant
from tokenbus.engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.bench.order import ContestOrder

# Prompt tokens handed over at once; llama.cpp cuts them into pieces of 512 by itself.
_BATCH_TOKENS = 2048
_DESCRIPTION_BYTES = 256

# A token of a batch: id, position, sequence, whether its logits are wanted.
_Entry = tuple[int, int, int, bool]


class LlamaCpp(Contestant):
    """All sequences in one batch by the low-level calls: the `Llama` class knows one sequence.

    It takes the largest logit, which costs less than llama.cpp's own samplers.
    """

    def __init__(self, order: ContestOrder) -> None:
        """Load the order's GGUF file.

        Raises: EngineError if there is none or llama.cpp does not load it.
        """
        if order.gguf is None:
            raise EngineError("llama.cpp needs a GGUF file: --gguf FILE")
        self._api: Any = import_module("llama_cpp")
        self._order = order
        self._api.llama_backend_init()
        path = order.gguf.encode()
        self._model = self._api.llama_model_load_from_file(
            path, self._api.llama_model_default_params()
        )
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {order.gguf}")
        vocab = self._api.llama_model_get_vocab(self._model)
        self._vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        self._batch = self._api.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._context: Any = None
        self._num_seqs = 0

    def remark(self) -> str:
        """Return what kind of weights the file holds."""
        text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        self._api.llama_model_desc(self._model, text, _DESCRIPTION_BYTES)
        return f"runs a file of its own, {text.value.decode()}, whatever --dtype says"

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Continue all prompts at once, greedily, by exactly `num_tokens` each."""
        self._prepare(len(prompts))
        made: list[list[int]] = [[] for _ in prompts]
        entries: list[_Entry] = [
            (token, position, seq, position == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for step in range(num_tokens):
            for first in range(0, len(entries), _BATCH_TOKENS):
                for seq, token in self._decode(entries[first : first + _BATCH_TOKENS]):
                    made[seq].append(token)
            entries = [
                (made[seq][-1], len(prompt) + step, seq, True) for seq, prompt in enumerate(prompts)
            ]
        return made

    def _prepare(self, num_seqs: int) -> None:
        """Empty the cache, in a context for so many sequences."""
        api = self._api
        if num_seqs != self._num_seqs:
            if self._context is not None:
                api.llama_free(self._context)
            params = api.llama_context_default_params()
            params.n_ctx = num_seqs * (self._order.longest + 1)
            params.n_seq_max = num_seqs
            params.n_batch = _BATCH_TOKENS
            params.n_threads = params.n_threads_batch = self._order.num_threads
            self._context = api.llama_init_from_model(self._model, params)
            if not self._context:
                raise EngineError(f"llama.cpp makes no context for {num_seqs} sequences")
            self._num_seqs = num_seqs
        api.llama_memory_clear(api.llama_get_memory(self._context), True)

    def _decode(self, entries: Sequence[_Entry]) -> list[tuple[int, int]]:
        """Run a batch; return (sequence, most likely token) where logits were wanted."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for idx, (token, position, seq, wanted) in enumerate(entries):
            batch.token[idx], batch.pos[idx] = token, position
            batch.n_seq_id[idx], batch.seq_id[idx][0] = 1, seq
            batch.logits[idx] = wanted
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise EngineError(f"llama.cpp refused a batch of {len(entries)} tokens: {status}")
        return [
            (seq, self._choose(idx)) for idx, (_, _, seq, wanted) in enumerate(entries) if wanted
        ]

    def _choose(self, idx: int) -> int:
        import numpy as np

        logits = self._api.llama_get_logits_ith(self._context, idx)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())
