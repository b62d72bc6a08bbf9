"""A model of sums behind the calls of vLLM's offline interface."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

next_token = import_module("llama_cpp").next_token


@dataclass
class SamplingParams:
    """The fields that a benchmark sets."""

    max_tokens: int | None = 16
    temperature: float = 1.0
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class CompletionOutput:
    """One answer."""

    token_ids: list[int]


@dataclass
class RequestOutput:
    """All answers of one prompt."""

    outputs: list[CompletionOutput]


class LLM:
    """An engine; its options are given by name."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        enable_prefix_caching: bool | None = None,
    ) -> None:
        assert model
        assert dtype in ("float32", "bfloat16")
        assert enable_prefix_caching is False
        self._max_model_len = max_model_len or 2048

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue every prompt."""
        assert not use_tqdm
        assert sampling_params.temperature == 0.0
        assert sampling_params.ignore_eos
        outputs = []
        for prompt in prompts:
            tokens = list(prompt["prompt_token_ids"])
            for _ in range(sampling_params.max_tokens or 16):
                tokens.append(next_token(tokens))
            assert len(tokens) <= self._max_model_len
            made = tokens[len(prompt["prompt_token_ids"]) :]
            outputs.append(RequestOutput([CompletionOutput(made)]))
        return outputs
