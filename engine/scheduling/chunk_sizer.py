"""The chunk size: how many prompt tokens a step may take while others are streaming."""

from __future__ import annotations

# Smallest chunk: prefill always makes progress, however tight the target is.
MIN_CHUNK_TOKENS = 16
# Weight of a new sample; a bucket follows a longer context within a few steps.
_DECAY = 0.25
# Tokens of the first chunk, before anything was measured.
_FIRST_CHUNK_TOKENS = 64
# How much longer a step may take, in decode steps, because of jobs that another worker lost: who
# streams here sees a gap of two steps instead of one, however many jobs come at once.
_REFILL_STEPS = 1.0


class ChunkSizer:
    """Learns the time of a step per power-of-two bucket of prefill tokens.

    The scheduler asks for a budget, the core reports how long each step took; the clock is read
    there, so that policy stays a function of what it was told.
    """

    def __init__(self, max_tokens: int, target_s: float | None) -> None:
        """Bound steps by `max_tokens` always and by `target_s` seconds while someone streams."""
        self.max_tokens = max_tokens
        self.target_s = target_s
        self._decode_s = 0.0
        self._chunk_s: dict[int, float] = {}

    def observe(self, num_prefill_tokens: int, num_decode: int, duration_s: float) -> None:
        """Learn from one finished step."""
        if num_prefill_tokens == 0:
            if num_decode:
                self._decode_s = _blend(self._decode_s or None, duration_s)
            return
        bucket = _bucket(num_prefill_tokens)
        extra_s = max(1e-6, duration_s - (self._decode_s if num_decode else 0.0))
        # Normalised to the full bucket, so that a short rest chunk teaches the right slope.
        scaled_s = extra_s * bucket / num_prefill_tokens
        self._chunk_s[bucket] = _blend(self._chunk_s.get(bucket), scaled_s)

    def budget(self, *, streaming: bool) -> int:
        """Return the prompt tokens that the next step may compute."""
        if self.target_s is None or not streaming:
            return self.max_tokens
        return self._fitting(self.target_s - self._decode_s)

    def refill_budget(self, *, streaming: bool) -> int:
        """Return how many of them may be tokens whose readers have seen some of the answer."""
        budget = self.budget(streaming=streaming)
        if not streaming:
            return budget
        if not self._decode_s:
            return min(budget, _FIRST_CHUNK_TOKENS)
        return min(budget, self._fitting(_REFILL_STEPS * self._decode_s))

    def _fitting(self, room_s: float) -> int:
        """Return the largest chunk that is expected to take `room_s` at most."""
        if not self._chunk_s:
            return min(self.max_tokens, _FIRST_CHUNK_TOKENS)
        best = min(self.max_tokens, MIN_CHUNK_TOKENS)
        size = MIN_CHUNK_TOKENS
        while size <= self.max_tokens:
            predicted_s = self._predict(size)
            if predicted_s > room_s:
                return max(best, min(size, int(size * room_s / predicted_s)))
            best = size
            # An untried size is taken at most at twice the largest known one.
            if size > max(self._chunk_s):
                break
            size *= 2
        return min(best, self.max_tokens)

    def _predict(self, num_tokens: int) -> float:
        known = self._chunk_s.get(num_tokens)
        if known is not None:
            return known
        nearest = min(self._chunk_s, key=lambda bucket: abs(bucket - num_tokens))
        return self._chunk_s[nearest] * num_tokens / nearest


def _bucket(num_tokens: int) -> int:
    return max(MIN_CHUNK_TOKENS, 1 << (num_tokens - 1).bit_length())


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - _DECAY) * old + _DECAY * new
