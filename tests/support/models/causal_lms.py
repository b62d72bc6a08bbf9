"""Tiny variants of every causal LM of transformers, and of the families that the decoder covers.

Each is a checkpoint of a few thousand drawn weights on disk; `verdict_of` says what becomes of it
here: the greedy tokens of transformers, or a refusal with its reason.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from models.architectures import draw_model
from safetensors.torch import load_file, save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.llm import LLM
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

# Under whatever names configs have them.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "encoder_vocab_size", "vocab_size_per_layer_input"), 199),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "dim_model", "hidden_dim"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size", "lru_width", "projection_dim"), 64),
    **dict.fromkeys(("mamba_d_ssm", "attention_hidden_size", "input_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dim_ff", "ffn_hidden_size"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dff", "d_inner", "d_ff"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("n_layers", "num_layers", "num_key_value_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "encoder_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("head_dim", "dim_head", "d_head", "d_kv", "mamba_d_head", "state_size"), 16),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_state", "ssm_state_size", "mamba_headdim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts",), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "linear_num_key_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "attention_window"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("mamba_n_groups", "moe_layer_start_index"), 1),
    **dict.fromkeys(("initializer_range", "init_std"), 0.35),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "sliding_window": 20,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    "rotary_dim": 8,
    "expand": 2,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "laurel_rank": 8,
    "image_size": 28,
    "patch_size": 14,
    "index_topk": 512,
    "zero_expert_num": 0,
    "axial_pos_shape": (16, 32),
    "axial_pos_embds_dim": (32, 32),
}
# Attention with compressed keys has as many heads of these as of queries.
_MLA = {"num_key_value_heads": 4}
_CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32"), _MLA),
    **dict.fromkeys(("dots3_note_text", "glm_moe_dsa", "glm4_moe_lite", "youtu"), _MLA),
    **dict.fromkeys(("sarvam_mla", "minicpm3"), _MLA),
    **{name: {"mamba_d_head": 32} for name in ("bamba", "granitemoehybrid")},
    "mamba2": {"num_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
# Not drawn, each with the reason; docs/models.md has the same table. What begins so is refused
# before anything is drawn.
BY_CONFIG = "its config alone is refused: "
_NOT_BUILT = "transformers does not build it from the defaults of its config: "
_FIXED = "parts of it keep the size of their own defaults, in all "
NOT_DRAWN: dict[str, str] = {
    "blt": f"{BY_CONFIG}blt does not send its attention through transformers' interface",
    "cohere_compass_text": f"{_NOT_BUILT}KeyError 'full_attention'",
    "dbrx": f"{_NOT_BUILT}AttributeError over its rope_theta",
    "dots3_note": f"{BY_CONFIG}layers of kind indexed_attention",
    "fuyu": f"{_FIXED}9 billion weights",
    "gemma3n": "its towers need pillow and timm; its text model is gemma3n_text",
    "gemma4_assistant": f"{_NOT_BUILT}they contradict each other (hidden_size_per_layer_input)",
    "gemma4_unified_assistant": f"{_FIXED}3 billion weights",
    "inkling2_loop_text": f"{BY_CONFIG}layers of kind hybrid_sliding",
    "inkling2_text": f"{BY_CONFIG}layers of kind hybrid_sliding",
    "lfm2_moe": f"{_NOT_BUILT}TypeError over its layer_types",
    "longcat_flash": "transformers' own code fails on a small one, over the sizes of its halves",
    "moshi": f"{_FIXED}7 billion weights",
    "moss_transcribe_diarize": f"{_FIXED}753 million weights",
    "musicgen": f"{BY_CONFIG}no one text model",
    "musicgen_melody": f"{BY_CONFIG}no one text model",
    "zamba": f"{BY_CONFIG}layers of kind hybrid, linear_attention",
    "zamba2": f"{BY_CONFIG}layers of kind hybrid, linear_attention",
}
# Multimodal wrappers whose text the decoder covers: of each its text model and its other tower.
_WRAPPERS = {
    "gemma3": ("gemma3_text", {"model_type": "siglip_vision_model"}),
    "got_ocr2": ("qwen2", {}),
    "idefics3": ("llama", {}),
    "internvl": ("qwen2", {}),
    "llava": ("llama", {"model_type": "clip_vision_model"}),
    "mistral3": ("mistral", {"model_type": "pixtral"}),
    "aya_vision": ("cohere2", {"model_type": "siglip_vision_model"}),
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 8,
}
_THETA = {"rope_theta": 10000.0}
_FACTORS = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
_ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "short_factor": _FACTORS,
        "long_factor": _FACTORS,
        "factor": 1.0,
        "original_max_position_embeddings": 512,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}


@dataclass(frozen=True)
class Variant:
    """A checkpoint to be: a family, what is changed of its config, and how it is stored.

    told: fields of config.json as they are written, None for one that is left out. prefixes: what
    names of tensors begin with, and with what instead. The answer is
    that of the model as drawn.
    """

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)
    shard_size: str = "1GB"
    dtype: torch.dtype = torch.float32


def _natives() -> dict[str, Variant]:
    """Return variants of the families that the decoder covers."""
    tied = {"tie_word_embeddings": True}
    found = {f"{name}, tied": Variant(name, tied) for name in ("llama", "qwen2", "gemma2", "phi3")}
    found |= {
        f"llama, {kind} rotary": Variant(
            "llama", {"rope_parameters": {"rope_type": kind, **_THETA, **params}}
        )
        for kind, params in _ROPES.items()
    }
    spiral = {"rope_parameters": {"rope_type": "spiral", **_THETA}}
    found["llama, spiral rotary"] = Variant("llama", told=spiral)
    heads = {"MQA": 1, "GQA": 2, "MHA": 4}
    found |= {
        f"{family}, {name}": Variant(family, {"num_key_value_heads": count})
        for name, count in heads.items()
        for family in ("llama", "qwen3", "olmo2")
    }
    bias = {"attention_bias": True}
    found |= {
        f"{family}, biases": Variant(family, bias | ({"mlp_bias": True} if mlp else {}))
        for family, mlp in {"llama": 1, "qwen3": 0, "granite": 1, "olmo2": 0, "smollm3": 1}.items()
    }
    found |= {
        f"{family}, wide heads": Variant(family, {"head_dim": 32})
        for family in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text")
    }
    found |= {
        "mistral, no window": Variant("mistral", {"sliding_window": None}),
        "qwen2, windows above a layer": Variant(
            "qwen2", {"use_sliding_window": True, "max_window_layers": 1}
        ),
        "phi3, no window": Variant("phi3", {"sliding_window": None}),
        "phi3, partial rotary": Variant(
            "phi3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **_THETA}},
        ),
        "lfm2, convolutions": Variant("lfm2", {"layer_types": ["conv", "full_attention"]}),
        "llama, another activation": Variant("llama", {"hidden_act": "relu2"}),
        "llama, in shards": Variant("llama", shard_size="20KB"),
        "llama, stored as float16": Variant("llama", dtype=torch.float16),
        "llama, torch_dtype": Variant("llama", told={"dtype": None, "torch_dtype": "float16"}),
        "llama, no architectures": Variant("llama", told={"architectures": None}),
        "llama, code of its own": Variant(
            "llama", told={"model_type": "quux", "auto_map": {"AutoConfig": "a.B"}}
        ),
        "llama, unknown type": Variant("llama", told={"model_type": "quux"}),
        "llama, no type": Variant("llama", told={"model_type": None}),
        "llama, no causal LM": Variant("llama", told={"model_type": "clip"}),
    }
    texts = {
        "model.language_model.": ("model.", "lm_head."),
        "language_model.model.": ("model.", "language_model.lm_head."),
        "model.text_model.": ("model.", "lm_head."),
    }
    for prefix, (old, head) in texts.items():
        prefixes = {"lm_head.": head, old: prefix}
        found[f"llama, tensors under {prefix}*"] = Variant("llama", prefixes=prefixes)
    return found


def _wrapped(name: str, *, is_tied: bool) -> Variant:
    """Return a wrapper around a text model, which has the head and says whether it is tied."""
    text, tower = _WRAPPERS[name]
    tied = {"tie_word_embeddings": is_tied}
    told = {"model_type": text, **_sizes(CONFIG_MAPPING[text], tied)}
    parts = {"text_config": told, "vision_config": _TOWER | tower}
    return Variant(name, parts | tied | {"image_token_index": 150, "image_token_id": 150})


def variants() -> dict[str, Variant]:
    """Return all variants by name: every causal LM's own first, in alphabetical order."""
    own = {
        name: Variant(name, _CHANGES.get(name, {}))
        if name not in _WRAPPERS
        else _wrapped(name, is_tied=False)
        for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        if name not in NOT_DRAWN
    }
    wrapped = {
        f"{name}, {how}": _wrapped(name, is_tied=how == "tied")
        for name in _WRAPPERS
        for how in ("tied", "with a head")
    }
    return own | _natives() | wrapped


def config_of(variant: Variant) -> Any:
    """Return the transformers config of a variant."""
    config_class = CONFIG_MAPPING[variant.family]
    return config_class(**_sizes(config_class, variant.changes))


def write_any_config(name: str, folder: Path) -> None:
    """Write a config of a family: a small one, or one that leaves all to its class.

    The second is for classes that contradict themselves.
    """
    try:
        config_of(Variant(name)).save_pretrained(folder)
    except StrictDataclassError:
        (folder / "config.json").write_text(json.dumps({"model_type": name}))


def save(variant: Variant, folder: Path) -> Any:
    """Draw a variant and save its checkpoint; return the model of transformers."""
    model = _drawn(config_of(variant)).to(variant.dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=variant.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | variant.told
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    if variant.prefixes:
        tensors = load_file(folder / "model.safetensors")
        renamed = {_renamed(name, variant.prefixes): part for name, part in tensors.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return model.float()


def _drawn(config: Any) -> Any:
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return draw_model(config)
    torch.manual_seed(0)
    factory: Any = AutoModelForImageTextToText
    return factory.from_config(config, attn_implementation="eager").eval()


def verdict_of(variant: Variant, folder: Path) -> str:
    """Return what becomes of a variant: which code answers as transformers does, or a refusal."""
    model = save(variant, folder)
    prompts = [[5, 17, 33, 90, 4, 77, 120], list(range(20, 50))]
    try:
        llm = LLM(folder, dtype="float32", num_pages=40, page_size=16, max_num_seqs=4, device="cpu")
    except (ModelBroken, ModelUnsupported) as error:
        told = str(error).replace(str(folder), "it")
        told = told.replace(f"transformers {transformers.__version__}", "transformers")
        return f"refused: {' '.join(told.split())}"
    except EngineError as error:
        return f"raised {type(error).__name__}"
    asked = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(prompts, asked, progress=False)
    llm.close()
    if [output.token_ids for output in outputs] != [_greedy(model, ids, 10) for ids in prompts]:
        return "other tokens than transformers"
    is_native = decoder_config(model.config.get_text_config()) is not None
    return "answers: the decoder" if is_native else "answers: transformers' code on pages"


def _greedy(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), eos_token_id=None, pad_token_id=0, **options)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _sizes(config_class: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return sizes under the names that a config has, those of its parts in them."""
    names = {*getattr(config_class, "attribute_map", {})}
    names |= set(inspect.signature(config_class.__init__).parameters)
    if dataclasses.is_dataclass(config_class):
        names |= {item.name for item in dataclasses.fields(config_class)}
    sizes = {name: value for name, value in _SIZES.items() if name in names}
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if isinstance(part, type) and part.__name__ != "AutoConfig":
            sizes[name] = _sizes(part, {})
    return sizes | changes
