"""Ranks of quantised checkpoints: each has its part of numbers and scales, experts among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.engine_of_ranks import answers, asked, engine, saved
from models.rank_threads import follow_in_threads
from models.stored_checkpoint import StoredCheckpoint
from models.stored_formats import awq, fp8_rows, int8_rows

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = ["lm_head", "re:.*mlp.gate$"]
_BITS = {
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "int-quantized": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
}


def _compressed(layout: str) -> dict[str, Any]:
    inputs = {"num_bits": 8, "type": _BITS[layout]["type"], "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": _BITS[layout], "input_activations": inputs}
    told = {"quant_method": "compressed-tensors", "format": layout, "ignore": _KEPT}
    return told | {"config_groups": {"group_0": group}}


# What config.json says, and how a matrix is stored.
_FORMATS: dict[str, tuple[dict[str, Any], Any]] = {
    "fp8": (_compressed("float-quantized"), fp8_rows),
    "int8": (_compressed("int-quantized"), int8_rows),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}, awq),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "size"),
    [
        ("qwen3", "fp8", 2),
        ("qwen3", "int8", 4),
        ("qwen3", "awq", 2),
        ("qwen3_moe", "fp8", 2),
        ("qwen3_moe", "fp8", 4),
    ],
)
def test_quantised_ranks_answer_like_one(
    name: str, form: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy tokens are those of one rank, and logits the same bits on all ranks."""
    logits = follow_in_threads(monkeypatch)
    model = saved(tmp_path, name, intermediate_size=128, moe_intermediate_size=64)
    stored, (config, make) = StoredCheckpoint(tmp_path).read(), _FORMATS[form]
    for tensor in [tensor for tensor in stored.tensors if "_proj." in tensor]:
        made, _ = make(tensor.removesuffix(".weight"), stored.tensors.pop(tensor))
        stored.tensors |= {part: value.contiguous() for part, value in made.items()}
    stored.save()
    stored.tell(quantization_config=config)
    expected = answers(engine(model), asked())
    logits.clear()
    assert answers(engine(model, size), asked()) == expected
    assert sorted(logits) == list(range(size))
    for rank in range(1, size):
        pairs = zip(logits[rank], logits[0], strict=True)
        assert all(own.equal(first) for own, first in pairs)
