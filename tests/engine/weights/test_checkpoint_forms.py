"""Forms in which checkpoints come: opened as they are, or refused in one sentence."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from models.backends import cpu_backend
from models.causal_lms import Variant, save, variants, verdict_of
from models.greedy_driver import GreedyDriver, Reference, draw_prompts

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.text import tokenizer_folder
from tokenbus.engine.text.tokenizer_folder import holds_tokenizer, open_tokenizer
from tokenbus.engine.weights.loader import load_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VARIANTS = variants()
_THETA = {"rope_theta": 1e4}
# Of each kind one: through the decoder and through transformers' code, and what was wrong once.
_ANSWERED = [
    "llama, linear rotary",
    "llama, tensors under model.text_model.*",
    "phimoe",
    "afmoe",
]
_REFUSED = {
    "llama, spiral rotary": "the type 'spiral' is not known",
    "llama, unknown type": "no model of the type 'quux'",
    "llama, code of its own": "never run",
    "llama, no causal LM": "clip is no causal LM",
    "llama, no type": "no model_type",
    "bloom": "ALiBi",
    "mamba": "recurrent|linear_attention",
    "xlnet": "attention through transformers",
}


@pytest.mark.parametrize("name", _ANSWERED)
def test_form_is_answered_as_transformers_does(name: str, tmp_path: Path) -> None:
    """Greedy tokens are those of transformers, whatever code runs the form."""
    assert verdict_of(VARIANTS[name], tmp_path).startswith("answers")


@pytest.mark.parametrize("name", _REFUSED)
def test_form_that_cannot_run_is_refused_by_reason(name: str, tmp_path: Path) -> None:
    """The reason stands in one sentence, and nothing else is raised."""
    verdict = verdict_of(VARIANTS[name], tmp_path)
    assert verdict.startswith("refused")
    assert re.search(_REFUSED[name], verdict)


@pytest.mark.parametrize(
    ("family", "told", "reason"),
    [
        ("llama", {"rope_parameters": {"rope_type": [], "rope_theta": 1e4}}, "the type \\[\\]"),
        ("smollm3", {"num_attention_heads": 2**31}, "make no layers"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "make no layers"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "a scale of"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "capped logits a scale of -1.0"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "finite number"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.5} | _THETA},
            "pairs are more than a head",
        ),
        ("mistral", {"sliding_window": 0}, "a sliding_window of 0"),
        ("llama", {"quantization_config": [1]}, "quantization_config"),
        ("gpt2", {"activation_function": "none such"}, "none such"),
        ("gpt_neox", {"hidden_act": "none such"}, "none such"),
        ("starcoder2", {"num_key_value_heads": 3}, "starcoder2"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 of 4 experts"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "make no layers"),
        ("qwen2_moe", {"moe_intermediate_size": 0}, "of an expert of 0"),
    ],
)
def test_numbers_of_a_config_that_make_no_model_are_refused(
    family: str, told: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """No error of another kind leaves the loader, whichever code would run the model."""
    save(Variant(family, told=told), tmp_path)
    with pytest.raises((ModelBroken, ModelUnsupported), match=reason):
        load_model(tmp_path, cpu_backend(), dtype="float32")


def test_head_that_a_wrapper_ties_is_the_embedding(tmp_path: Path) -> None:
    """A multimodal wrapper says at its top that there is no head beside the embedding."""
    tied = Variant(
        "llama", {"tie_word_embeddings": True}, prefixes={"model.": "language_model.model."}
    )
    model = save(tied, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    wrapper = {"model_type": "llava", "tie_word_embeddings": True, "text_config": text}
    told = wrapper | {"vision_config": {"model_type": "clip_vision_model", **vision}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    loaded = load_model(tmp_path, cpu_backend(), dtype="float32")
    texts = draw_prompts(199, [3, 20])
    assert GreedyDriver(loaded.model).generate(texts, 8) == Reference(model).generate(texts, 8)


def _tekken() -> str:
    letters = [
        {"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode()} for n in range(256)
    ]
    config = {"pattern": r"\\p{L}+|\\s+|.", "num_vocab_tokens": 256, "default_vocab_size": 258}
    special = [{"rank": n, "token_str": f"<{n}>", "is_control": True} for n in range(2)]
    config |= {"default_num_special_tokens": 2, "version": "v3"}
    return json.dumps({"config": config, "vocab": letters, "special_tokens": special})


def _vocab(folder: Path) -> None:
    whole = json.loads(build_null_tokenizer().backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")


_TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer.json alone": lambda folder: build_null_tokenizer().backend_tokenizer.save(
        str(folder / "tokenizer.json")
    ),
    "vocabulary and merges": _vocab,
    "tekken.json": lambda folder: (folder / "tekken.json").write_text(_tekken()),
}


@pytest.mark.parametrize("form", _TOKENIZERS)
def test_form_of_a_tokenizer_is_opened(form: str, tmp_path: Path) -> None:
    """What transformers reads without another library is a tokenizer here."""
    save_config(tmp_path)
    _TOKENIZERS[form](tmp_path)
    assert holds_tokenizer(tmp_path)
    assert open_tokenizer(tmp_path).encode("ab", add_special_tokens=False)


def save_config(folder: Path) -> None:
    """Write a config of GPT-2, whose tokenizer is read in every form."""
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "tokenizer.model",
            b"\n\x0e\n\x05<unk>",
            "SentencePiece model.* sentencepiece and protobuf",
        ),
        ("spiece.model", b"\n\x0e\n\x05<unk>", "spiece.model .* sentencepiece"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken vocabulary.* tiktoken must be"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", "qwen.tiktoken .* tiktoken must be"),
    ],
)
def test_library_that_a_tokenizer_lacks_is_named(
    name: str, content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that the file's own form needs, not another that was tried last."""
    monkeypatch.setattr(tokenizer_folder, "find_spec", lambda _: None)
    save_config(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert holds_tokenizer(tmp_path)
    with pytest.raises(ModelUnsupported, match=reason):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("part", ["model", "pre_tokenizer", "decoder", "added_tokens"])
def test_tokenizer_with_a_part_of_another_kind_is_refused(part: str, tmp_path: Path) -> None:
    """What the tokenizers library cannot read is a broken model, whatever it raises."""
    save_config(tmp_path)
    whole = json.loads(build_null_tokenizer().backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {part: [{"type": "none such"}]}))
    with pytest.raises(ModelBroken, match="the tokenizer of"):
        open_tokenizer(tmp_path)


def test_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    """A tokenizer's config alone is no tokenizer that knows a single token."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelBroken, match="without a vocabulary"):
        open_tokenizer(tmp_path)


_NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
_TEMPLATES: dict[str, tuple[str, Any, Any]] = {
    "in the tokenizer's config": ("tokenizer_config.json", {"chat_template": "C"}, "C"),
    "a list of named ones": (
        "tokenizer_config.json",
        {"chat_template": _NAMED},
        {"default": "D", "tool_use": "T"},
    ),
    "a file of its own": ("chat_template.jinja", "J", "J"),
    "a processor's file": ("chat_template.json", {"chat_template": "P"}, "P"),
    "a processor's named ones": (
        "chat_template.json",
        {"chat_template": _NAMED},
        {"default": "D", "tool_use": "T"},
    ),
}


@pytest.mark.parametrize("form", _TEMPLATES)
def test_chat_template_is_found_in_every_place(form: str, tmp_path: Path) -> None:
    """Templates lie in the tokenizer's config, beside it, or in a processor's file."""
    save_config(tmp_path)
    _TOKENIZERS["tokenizer.json alone"](tmp_path)
    name, content, expected = _TEMPLATES[form]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    assert open_tokenizer(tmp_path).chat_template == expected


def test_processors_file_without_a_template_is_refused(tmp_path: Path) -> None:
    """A file that should hold a template and holds none is named."""
    save_config(tmp_path)
    _TOKENIZERS["tokenizer.json alone"](tmp_path)
    (tmp_path / "chat_template.json").write_text("[]")
    with pytest.raises(ModelBroken, match=r"chat_template\.json .* holds no template"):
        open_tokenizer(tmp_path)
