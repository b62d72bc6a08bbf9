"""Sizes, pace and planted faults of the engine without a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NullConfig:
    """Sizes, pace and planted faults.

    `tokens_per_s` is per sequence, `total_tokens_per_s` of all together; 0 = as fast as the CPU
    goes. Emitted ids lie in [first_id, vocab_size). A prompt that contains `crash_id` kills the
    process at its first step: with `crash_at_index` only when its first choice has so many tokens,
    with `crash_after_tokens` so many after each start of it, with `crash_with_id` only while a
    prompt that contains that id runs too. `hang_id` stops the steps for ever, `fail_id` fails that
    request alone.
    """

    num_pages: int = 4097
    page_size: int = 16
    max_model_len: int = 8192
    max_num_seqs: int = 256
    vocab_size: int = 512
    first_id: int = 256
    eos_token_id: int = 0
    tokens_per_s: float = 0.0
    total_tokens_per_s: float = 0.0
    prefill_tokens_per_step: int = 8192
    crash_id: int | None = None
    crash_at_index: int = 0
    crash_after_tokens: int = 0
    crash_with_id: int | None = None
    hang_id: int | None = None
    fail_id: int | None = None
