"""Any other causal LM of transformers runs on pages, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.architectures import GENERIC, MOE
from models.backends import cpu_backend
from transformers import (
    BertConfig,
    BloomConfig,
    FalconConfig,
    GptOssConfig,
    JambaConfig,
    Llama4TextConfig,
    MambaConfig,
    PhiConfig,
    Qwen3NextConfig,
    Starcoder2Config,
    T5Config,
)

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.weights.loader import build_model

_REFUSED: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "mamba": (MambaConfig, {}, "linear_attention"),
    "jamba": (JambaConfig, {"num_experts": 2}, "mamba"),
    "qwen3_next": (Qwen3NextConfig, MOE | {"head_dim": 16}, "linear_attention"),
    "llama4": (Llama4TextConfig, {"head_dim": 16, "num_local_experts": 2}, "chunked_attention"),
    "t5": (T5Config, {}, "encoder-decoder"),
    "bloom": (BloomConfig, {}, "ALiBi"),
    "gpt_oss": (GptOssConfig, {"head_dim": 16, "num_local_experts": 4}, "sinks"),
    "bert": (BertConfig, {}, "both directions"),
    "falcon": (FalconConfig, {}, "attention through transformers"),
}


def _build(config: Any, weights: Any) -> Any:
    return build_model(config, weights, cpu_backend(), dtype=torch.float32, max_model_len=1024)


# The others run through the whole engine in tests/engine/core/test_matrix.py.
_QUICK = {"gpt_neox", "deepseek_v3-mla"}


@pytest.mark.parametrize(
    "name",
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GENERIC],
)
def test_greedy_tokens_equal_transformers(
    name: str, sizes: Any, draw_model: Any, prompts: Any, driver: Any, reference: Any
) -> None:
    """Batched with strangers, chunked and paged, each prompt yields transformers' own tokens."""
    config_class, changes = GENERIC[name]
    config = config_class(**sizes(**changes))
    theirs = draw_model(config)
    ours = _build(config, theirs.state_dict())
    assert isinstance(ours, GenericModel)
    texts = prompts(199, [1, 15, 17, 130, 600])
    answers = driver(ours, page_size=64, chunk=64, seed=2).generate(texts, 48)
    reference(theirs).check(texts, answers)
    assert max(len(set(answer)) for answer in answers) >= 10, "the reference itself is too dull"
    assert driver(ours, page_size=16, chunk=7, seed=1).generate(texts[:4], 48) == answers[:4]


@pytest.mark.parametrize("name", _REFUSED)
def test_model_that_cannot_work_is_refused_with_the_reason(name: str, sizes: Any) -> None:
    """What keeps state outside of pages or biases attention is refused at load."""
    config_class, changes, reason = _REFUSED[name]
    with pytest.raises(ModelUnsupported, match=reason):
        _build(config_class(**sizes(**changes)), None)


def test_config_of_the_caller_is_left_alone(sizes: Any, draw_model: Any) -> None:
    """Building on a config does not redirect the attention of other models that share it."""
    config = PhiConfig(**sizes())
    theirs = draw_model(config)
    _build(config, theirs.state_dict())
    assert theirs(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_leaking_model_is_refused(sizes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that mixes neighbouring tokens outside of attention does not pass the probe."""
    from transformers.models.starcoder2 import modeling_starcoder2 as code

    plain: Any = code.Starcoder2MLP.forward

    def leaky(self: Any, hidden: torch.Tensor) -> Any:
        return plain(self, hidden + torch.roll(hidden, 1, dims=-2))

    monkeypatch.setattr(code.Starcoder2MLP, "forward", leaky)
    with pytest.raises(ModelUnsupported, match="mixes tokens"):
        _build(Starcoder2Config(**sizes()), None)
