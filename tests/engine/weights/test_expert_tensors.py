"""Experts of a checkpoint: in whichever form they come, each goes to its place in one stack."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import MIXTURES, draw_model, tiny_sizes
from models.backends import cpu_backend, stepwise_backend
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from models.stored_checkpoint import StoredCheckpoint
from models.stored_formats import fp8_blocks, fp8_rows

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.models.layers import Mixture
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, Fp8Weight
from tokenbus.engine.weights.loader import build_model, load_model
from tokenbus.engine.weights.readers import choose_reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UP = "model.layers.0.mlp.experts.3.up_proj.weight"
# As they are published: what config.json says, how a matrix is stored, and what it becomes.
_FP8: dict[str, Any] = {
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head", "re:.*mlp.gate$"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
                }
            },
        },
        fp8_rows,
        Fp8Weight,
    ),
    "fp8 blocks": (
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [24, 40],
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
        },
        partial(fp8_blocks, rows=24, columns=40),
        Fp8BlockWeight,
    ),
}


def _drawn(name: str) -> Any:
    config_class, changes = MIXTURES[name]
    return draw_model(config_class(**tiny_sizes(**changes | {"num_hidden_layers": 2})))


def _build(model: Any, tensors: Any, backend: Any, **options: Any) -> Any:
    return build_model(
        model.config, tensors, backend, dtype=torch.float32, max_model_len=700, **options
    )


def _stored(name: str, folder: Path) -> StoredCheckpoint:
    _drawn(name).save_pretrained(folder)
    return StoredCheckpoint(folder).read()


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        *(pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES if name != "mixtral"),
    ],
)
def test_published_and_stacked_experts_give_the_same_model(name: str, tmp_path: Path) -> None:
    """A folder as models are published, and tensors as transformers holds them."""
    model = _drawn(name)
    model.save_pretrained(tmp_path)
    published = StoredCheckpoint(tmp_path).read().tensors
    assert any("experts.gate_up_proj" in part for part in model.state_dict())
    assert not any("experts.gate_up_proj" in part for part in published)
    texts = draw_prompts(199, [3, 20])
    expected = Reference(model).generate(texts, 8)
    for ours in (
        load_model(tmp_path, cpu_backend(), dtype="float32").model,
        _build(model, model.state_dict(), cpu_backend()),
    ):
        assert GreedyDriver(ours).generate(texts, 8) == expected


class _OneAtATime(dict[str, torch.Tensor]):
    """Tensors by name, given out as copies; only the last one may be held when the next comes."""

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override] # a stream
        last = before = None
        for name in self:
            assert before is None or before() is None, f"too much is held before {name}"
            copy = self[name].clone()
            before, last = last, weakref.ref(copy)
            yield name, copy
            del copy


def test_experts_are_copied_to_their_place_one_by_one(tmp_path: Path) -> None:
    """No tensor is kept beside the stack that it goes into."""
    model = _drawn("qwen3_moe")
    tensors = _OneAtATime(_stored("qwen3_moe", tmp_path).tensors)
    mixture = _build(model, tensors, stepwise_backend()).tensors.layers[0].mlp
    assert isinstance(mixture, Mixture)
    assert mixture.gate_up.weight.shape == (12 * 2 * 32, 64)
    assert mixture.down.weight.shape == (12 * 64, 32)
    third = mixture.gate_up.weight.dequantised().view(12, 2, 32, 64)[3, 1]
    assert torch.equal(third, tensors[_UP])


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    """Of all the experts' matrices, the one that did not come."""
    case = _stored("qwen3_moe", tmp_path)
    case.put(_UP, None)
    with pytest.raises(ModelBroken, match=r"first of them layers\.0\.mlp\.experts\.3\.up_proj"):
        load_model(tmp_path, cpu_backend(), dtype="float32")


@pytest.mark.parametrize(
    ("name", "stack", "shape"),
    [
        ("granitemoe", "block_sparse_moe.input_linear.weight", r"\[5, 192, 64\]"),
        ("granitemoe", "block_sparse_moe.output_linear.weight", r"\[5, 64, 96\]"),
    ],
)
def test_a_stack_of_other_experts_is_refused(
    name: str, stack: str, shape: str, tmp_path: Path
) -> None:
    """One expert too few is an error that names the tensor and both shapes."""
    case = _stored(name, tmp_path)
    whole = f"model.layers.1.{stack}"
    case.put(whole, case.tensors[whole][:4].clone())
    with pytest.raises(ModelBroken, match=rf"{stack} is \[4, .* asks for {shape}"):
        load_model(tmp_path, cpu_backend(), dtype="float32")


def test_experts_are_rounded_with_the_other_linears(caplog: pytest.LogCaptureFixture) -> None:
    """Each output of each expert gets its own scale, and the router keeps its bits."""
    model = _drawn("qwen3_moe")
    reader = choose_reader("fp8")
    mixture = (
        _build(model, model.state_dict(), stepwise_backend(), reader=reader).tensors.layers[0].mlp
    )
    weight = mixture.gate_up.weight
    assert isinstance(weight, Fp8Weight)
    assert weight.scales.shape == (12 * 2 * 32,)
    plain = model.state_dict()["model.layers.0.mlp.experts.gate_up_proj"].flatten(0, 1)
    assert (weight.dequantised() - plain).abs().max() <= plain.abs().max() / 16
    assert torch.equal(mixture.router, model.state_dict()["model.layers.0.mlp.gate.weight"])
    assert any("Fp8Weight weights are kept" in text for text in caplog.messages)


@pytest.mark.parametrize("form", _FP8)
def test_experts_of_published_fp8_checkpoints_keep_their_numbers(form: str, tmp_path: Path) -> None:
    """Stacks hold each expert's numbers with its own scales, bit for bit; the router is plain."""
    config, make, kind = _FP8[form]
    case = _stored("qwen3_moe", tmp_path)
    numbers: dict[str, torch.Tensor] = {}
    for name in [name for name in case.tensors if "_proj." in name]:
        made, numbers[name] = make(name.removesuffix(".weight"), case.tensors.pop(name))
        case.tensors |= made
    case.save()
    case.tell(quantization_config=config)
    model: Any = load_model(tmp_path, stepwise_backend(), dtype="float32").model
    mixture = model.tensors.layers[0].mlp
    assert isinstance(mixture.gate_up.weight, kind)
    assert isinstance(mixture.down.weight, kind)
    gate_ups = mixture.gate_up.weight.dequantised().view(12, 2, 32, 64)
    downs = mixture.down.weight.dequantised().view(12, 64, 32)
    prefix = "model.layers.0.mlp.experts"
    for expert in range(12):
        for matrix, name in zip(
            (*gate_ups[expert], downs[expert]), ("gate", "up", "down"), strict=True
        ):
            assert torch.equal(matrix, numbers[f"{prefix}.{expert}.{name}_proj.weight"])
    assert torch.equal(mixture.router, case.tensors["model.layers.0.mlp.gate.weight"])


@pytest.mark.parametrize("form", _FP8)
def test_an_fp8_expert_without_its_scale_is_named(form: str, tmp_path: Path) -> None:
    """Nothing is cast that a scale belongs to."""
    config, make, _ = _FP8[form]
    case = _stored("qwen3_moe", tmp_path)
    for name in [name for name in case.tensors if "_proj." in name]:
        made, _ = make(name.removesuffix(".weight"), case.tensors.pop(name))
        case.tensors |= made
    case.tell(quantization_config=config)
    missing = next(name for name in case.tensors if "experts.3.up_proj.weight_scale" in name)
    case.put(missing, None)
    with pytest.raises(ModelBroken, match=r"layers\.0\.mlp\.experts\.3\.up_proj\.weight_scale"):
        load_model(tmp_path, cpu_backend(), dtype="float32")
