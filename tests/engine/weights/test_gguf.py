"""GGUF files as models: blocks, rotary positions, tokenizers, and what is refused of them."""

from __future__ import annotations

import copy
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import stepwise_backend
from models.gguf_files import write_gguf
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.weights import gguf_import, model_store
from tokenbus.engine.weights.loader import load_model
from tokenbus.engine.weights.model_place import find_folder

if TYPE_CHECKING:
    from pathlib import Path

_SIZES = tiny_sizes(
    vocab_size=288,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    initializer_range=0.2,
)
_TYPES = {
    "token_embd": "Q8_0",
    "attn_q": "Q4_K",
    "attn_k": "Q5_K",
    "attn_v": "Q6_K",
    "attn_output": "Q4_0",
    "ffn_gate": "Q4_1",
    "ffn_up": "Q8_0",
    "ffn_down": "Q6_K",
    "output": "Q6_K",
}
_CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**_SIZES),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama() -> Any:
    """Return a tiny Llama whose rows fill blocks of 256."""
    return draw_model(copy.deepcopy(_CONFIGS["llama"]))


def _check(model: Any, numbers: dict[str, torch.Tensor], source: Path) -> Any:
    """Load a file and compare its tokens with those of the numbers; return what was loaded."""
    loaded = load_model(source, stepwise_backend(), dtype="float32")
    reference = copy.deepcopy(model)
    reference.load_state_dict(numbers)
    texts = draw_prompts(199, [3, 20])
    expected = Reference(reference).generate(texts, 6)
    assert GreedyDriver(loaded.model).generate(texts, 6) == expected
    return loaded


def test_blocks_stand_for_the_numbers_of_their_types(llama: Any, tmp_path: Path) -> None:
    """Six types of blocks in one file, each number rounded to bfloat16 once."""
    source = tmp_path / "mixed.gguf"
    numbers = write_gguf(llama, source, types=_TYPES)
    numbers = {
        name: value.bfloat16().float() if value.ndim == 2 else value
        for name, value in numbers.items()
    }
    loaded = _check(llama, numbers, source)
    layer = loaded.model.tensors.layers[0]
    parts = [numbers[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert layer.qkv.weight.dequantised().equal(torch.cat(parts))
    assert layer.mlp.down.weight.dequantised().equal(numbers["model.layers.0.mlp.down_proj.weight"])
    assert loaded.tokenizer.apply_chat_template([{"content": "x"}], tokenize=False) == "x"


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_other_architectures_are_read(name: str, tmp_path: Path) -> None:
    """Biases of q, k and v, norms of q and k, and rows that are in transformers' order already."""
    model = draw_model(copy.deepcopy(_CONFIGS[name]))
    source = tmp_path / "model.gguf"
    fields = {"attention.key_length": 16, "attention.value_length": 16} if name == "qwen3" else {}
    numbers = write_gguf(model, source, fields=fields, rule="qwen2")
    loaded = _check(model, numbers, source)
    text = "It's 2026, isn't it?\n\n  Yes"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_a_rotary_table_is_a_rule_of_llama_3(tmp_path: Path) -> None:
    """The divisors of a file become the rule that gives them; other tables are refused."""
    rule = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = draw_model(LlamaConfig(**_SIZES | {"rope_parameters": rule}))
    table = []
    for pair in range(16):
        length = 2 * math.pi * 10000.0 ** (pair / 16)
        smooth = min(max((8192 / length - 1) / 3, 0), 1)
        table.append(1 / (smooth + (1 - smooth) / 8))
    source = tmp_path / "model.gguf"
    extra = {"rope_freqs.weight": np.array(table, dtype=np.float32)}
    numbers = write_gguf(model, source, extra=extra, rule="llama-bpe")
    loaded = _check(model, numbers, source)
    assert loaded.config.rope_parameters == rule
    assert loaded.tokenizer("ab")["input_ids"][0] == 1
    extra["rope_freqs.weight"][3] = 1.5
    write_gguf(model, source, extra=extra)
    with pytest.raises(ModelUnsupported, match="rope_freqs of a rule that is not known"):
        find_folder(source)


def test_a_file_is_converted_once(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start finds the folder; a changed file gets another; large ones are in shards."""
    monkeypatch.setattr(gguf_import, "_MAX_FILE_BYTES", 400_000)
    source = tmp_path / "model.gguf"
    numbers = write_gguf(llama, source)
    folder = find_folder(source)
    assert len(list(folder.glob("*.safetensors"))) > 1
    converted: list[Path] = []
    monkeypatch.setattr(model_store, "_convert", lambda source, *_: converted.append(source))
    _check(llama, numbers, source)
    assert find_folder(str(source)) == folder
    assert not converted
    monkeypatch.undo()
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path / "cache"))
    write_gguf(llama, source, types={"ffn_up": "Q8_0"})
    assert find_folder(source) != folder


_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"fields": {"logit_scale": 0.5}}, "llama.logit_scale, which is not known"),
    "experts": ({"fields": {"expert_count": 4}}, "with experts"),
    "rotary": ({"fields": {"rope.dimension_count": 16}}, "rope.dimension_count is 16"),
    "scaling": ({"fields": {"rope.scaling.type": "longrope"}}, "rotary scaling longrope"),
    "tensor": ({"extra": {"blk.0.attn_sinks.weight": np.ones(8, np.float32)}}, "attn_sinks.weight"),
    "bias": ({"extra": {"blk.0.attn_q.bias": np.ones(256, np.float32)}}, "attn_q.bias"),
    "tokenizer": ({"rule": "tekken"}, "pre-tokenizer tekken is not known"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_is_not_known_of_a_file_is_refused(name: str, llama: Any, tmp_path: Path) -> None:
    """A field or a tensor that would change the numbers is named, and nothing is left behind."""
    written, reason = _REFUSED[name]
    source = tmp_path / "model.gguf"
    write_gguf(llama, source, **written)
    with pytest.raises(ModelUnsupported, match=reason):
        find_folder(source)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize("size", [0, 3, 100, -5000])
def test_a_file_that_was_cut_off_is_broken(size: int, llama: Any, tmp_path: Path) -> None:
    """Within its header, its fields or its last tensor."""
    source = tmp_path / "model.gguf"
    write_gguf(llama, source)
    source.write_bytes(source.read_bytes()[:size])
    with pytest.raises(EngineError) as caught:
        find_folder(source)
    assert isinstance(caught.value, ModelBroken)


def _field(name: str, kind: int, raw: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + raw


_ARRAY, _BYTE = 9, 0
_HOSTILE = {
    "array": _field("general.x", _ARRAY, struct.pack("<IQ", _BYTE, 2**60)),
    "text": _field("general.x", 8, struct.pack("<Q", 2**60)),
    "key": struct.pack("<Q", 2**60),
    "nested": _field("general.x", _ARRAY, struct.pack("<IQ", _ARRAY, 1) * 20_000),
    "kind": _field("general.x", 99, b""),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_counts_of_a_file_are_held_against_its_end(name: str, llama: Any, tmp_path: Path) -> None:
    """Arrays and texts of any length, or that nest for ever, are refused at once."""
    source = tmp_path / "model.gguf"
    write_gguf(llama, source)
    told = source.read_bytes()
    head, (num_fields,) = told[:16], struct.unpack("<Q", told[16:24])
    # Where the file ends behind it, nothing is left that could be taken for the array.
    for rest in (told[24:], b""):
        source.write_bytes(head + struct.pack("<Q", num_fields + 1) + _HOSTILE[name] + rest)
        with pytest.raises(ModelBroken, match="no GGUF file that can be read"):
            find_folder(source)


def test_merge_of_no_tokens_is_a_broken_file(llama: Any, tmp_path: Path) -> None:
    """The library that makes tokenizers knows no class of its own for it."""
    source = tmp_path / "model.gguf"
    write_gguf(llama, source)
    source.write_bytes(source.read_bytes().replace(b"\3\0\0\0\0\0\0\0a b", b"\3\0\0\0\0\0\0\0~ ~"))
    with pytest.raises(ModelBroken, match="out of vocabulary"):
        find_folder(source)


def test_items_of_a_file_are_bounded(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of a gigabyte of bytes would take a hundred as objects."""
    monkeypatch.setattr(gguf_import, "_MAX_ITEMS", 500)
    source = tmp_path / "model.gguf"
    write_gguf(llama, source)
    with pytest.raises(ModelBroken, match="more than 500 items"):
        find_folder(source)
