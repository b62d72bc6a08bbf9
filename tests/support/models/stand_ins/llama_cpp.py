"""A model of sums behind the calls of llama-cpp-python's low-level interface."""

from __future__ import annotations

import ctypes
from typing import Any

_VOCAB_SIZE = 11_000
_DESCRIPTION = b"stand-in 1B Q4_1"


def next_token(sequence: list[int]) -> int:
    """Return what the model says after a sequence."""
    return (31 * sum(sequence) + len(sequence)) % _VOCAB_SIZE


class _ModelParams:
    n_gpu_layers = 0


class _ContextParams:
    def __init__(self) -> None:
        self.n_ctx = 512
        self.n_batch = 2048
        self.n_ubatch = 512
        self.n_seq_max = 1
        self.n_threads = 4
        self.n_threads_batch = 4


class _Batch:
    def __init__(self, n_tokens: int, n_seq_max: int) -> None:
        self.n_tokens = 0
        self.token = (ctypes.c_int32 * n_tokens)()
        self.pos = (ctypes.c_int32 * n_tokens)()
        self.n_seq_id = (ctypes.c_int32 * n_tokens)()
        self.seq_id = [(ctypes.c_int32 * n_seq_max)() for _ in range(n_tokens)]
        self.logits = (ctypes.c_int8 * n_tokens)()


class _Context:
    def __init__(self, params: _ContextParams) -> None:
        self.params = params
        self.sequences: dict[int, list[int]] = {}
        self.logits: dict[int, Any] = {}
        self.is_free = False


def llama_backend_init() -> None:
    """Do nothing."""


def llama_model_default_params() -> _ModelParams:
    """Return parameters."""
    return _ModelParams()


def llama_context_default_params() -> _ContextParams:
    """Return parameters, for one sequence as llama.cpp does."""
    return _ContextParams()


def llama_model_load_from_file(path_model: bytes, params: _ModelParams, /) -> str | None:
    """Return a model, or null if the file is not there."""
    assert isinstance(params, _ModelParams)
    try:
        with open(path_model, "rb"):
            return "model"
    except OSError:
        return None


def llama_model_get_vocab(model: str, /) -> str:
    """Return the model's vocabulary."""
    assert model == "model"
    return "vocab"


def llama_vocab_n_tokens(vocab: str, /) -> int:
    """Return its size."""
    assert vocab == "vocab"
    return _VOCAB_SIZE


def llama_model_desc(model: str, buf: Any, buf_size: int, /) -> int:
    """Write a description."""
    assert model == "model"
    buf.value = _DESCRIPTION[: buf_size - 1]
    return len(_DESCRIPTION)


def llama_batch_init(n_tokens: int, embd: int, n_seq_max: int, /) -> _Batch:
    """Return an empty batch of tokens."""
    assert embd == 0
    return _Batch(n_tokens, n_seq_max)


def llama_init_from_model(model: str, params: _ContextParams, /) -> _Context:
    """Return a context."""
    assert model == "model"
    return _Context(params)


def llama_free(ctx: _Context, /) -> None:
    """Free a context."""
    assert not ctx.is_free
    ctx.is_free = True


def llama_get_memory(ctx: _Context, /) -> _Context:
    """Return what holds keys and values."""
    assert not ctx.is_free
    return ctx


def llama_memory_clear(mem: _Context, data: bool, /) -> None:
    """Forget all sequences."""
    assert data
    mem.sequences.clear()


def llama_decode(ctx: _Context, batch: _Batch, /) -> int:
    """Append a batch to its sequences; 1 if there is no room, -1 if it is malformed."""
    assert not ctx.is_free
    if batch.n_tokens > ctx.params.n_batch:
        return -1
    ctx.logits.clear()
    for idx in range(batch.n_tokens):
        seq = batch.seq_id[idx][0]
        tokens = ctx.sequences.setdefault(seq, [])
        if batch.n_seq_id[idx] != 1 or seq >= ctx.params.n_seq_max or batch.pos[idx] != len(tokens):
            return -1
        tokens.append(batch.token[idx])
        if len(tokens) > ctx.params.n_ctx // ctx.params.n_seq_max:
            return 1
        if batch.logits[idx]:
            logits = (ctypes.c_float * _VOCAB_SIZE)()
            logits[next_token(tokens)] = 1.0
            ctx.logits[idx] = logits
    return 0


def llama_get_logits_ith(ctx: _Context, i: int, /) -> Any:
    """Return the logits after a token of the last batch; a null pointer if none were wanted."""
    pointer = ctypes.POINTER(ctypes.c_float)
    return ctypes.cast(ctx.logits[i], pointer) if i in ctx.logits else pointer()
