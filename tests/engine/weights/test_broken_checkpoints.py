"""Broken checkpoints: whatever cannot be read rightly is refused by name when a model is opened."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.stored_formats import StoredFormat, awq, fp8_rows, fp8_whole, gptq, packed, save_as
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MixtralConfig

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.llm import LLM
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

_UP = "model.layers.0.mlp.up_proj"
_Q = "model.layers.0.self_attn.q_proj"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        pytest.fail("a question was asked on stdin")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a tiny Llama of one layer."""
    return draw_model(LlamaConfig(**tiny_sizes(vocab_size=512, num_hidden_layers=1)))


@dataclass(slots=True)
class Case:
    """A folder with a sound checkpoint, to be broken."""

    folder: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def read(self) -> Case:
        """Read the tensors that lie in the folder."""
        self.tensors = load_file(self.folder / _WEIGHTS)
        return self

    def save(self, **tensors: Tensor) -> None:
        """Save the tensors, and others by dotted names with `__` for the dots."""
        more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file(self.tensors | more, self.folder / _WEIGHTS)

    def put(self, name: str, tensor: Tensor | None) -> None:
        """Save the tensors with another one in place of that of a name, or without it."""
        self.tensors.pop(name, None)
        if tensor is not None:
            self.tensors[name] = tensor
        self.save()

    def tell(self, name: str = "config.json", **changes: Any) -> None:
        """Change a JSON file."""
        file = self.folder / name
        told = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(told | changes))

    def index(self, **places: str) -> None:
        """Write an index: all tensors in the one file, but for those named."""
        weights = dict.fromkeys(self.tensors, _WEIGHTS)
        weights |= {name.replace("__", "."): place for name, place in places.items()}
        (self.folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


@pytest.fixture
def case(model: Any, tmp_path: Path) -> Case:
    """Return a sound checkpoint with a tokenizer."""
    model.save_pretrained(tmp_path)
    build_null_tokenizer().save_pretrained(tmp_path)
    return Case(tmp_path).read()


def _open(folder: Path, **settings: Any) -> LLM:
    return LLM(folder, device="cpu", dtype="float32", num_pages=20, max_num_seqs=2, **settings)


def _refused(folder: Path, error: type[EngineError], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        _open(folder, **settings)


_DTYPES = [
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_a_weight_that_is_no_plain_number_is_refused(case: Case, dtype: torch.dtype) -> None:
    """A matrix of bytes, float8 or truths is not cast to what the model computes in."""
    case.put(f"{_Q}.weight", case.tensors[f"{_Q}.weight"].to(dtype))
    told = str(dtype).removeprefix("torch.")
    _refused(case.folder, ModelUnsupported, rf"q_proj\.weight is stored as {told}")


def test_a_container_of_4_bits_is_no_matrix(case: Case) -> None:
    """Two numbers in a byte are neither read as bytes nor as half of a matrix."""
    halves = torch.zeros(64, 64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    case.put(f"{_Q}.weight", halves)
    _refused(case.folder, ModelUnsupported, r"q_proj\.weight is stored as float4_e2m1fn_x2")


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head"])
def test_what_is_no_linear_is_not_cast_either(case: Case, name: str) -> None:
    """Embedding, norms and head are refused in int8 as linears are."""
    stored = case.tensors[f"{name}.weight"].to(torch.int8)
    case.put(f"{name}.weight", stored)
    _refused(case.folder, ModelUnsupported, f"{name}.weight is stored as int8")


_LEFTOVERS = {
    "scale": (f"{_UP}.weight_scale", "belongs to quantised weights"),
    "scale-inv": (f"{_UP}.weight_scale_inv", "belongs to quantised weights"),
    "scb": (f"{_UP}.SCB", "belongs to quantised weights"),
    "zeros": (f"{_UP}.qzeros", "belongs to quantised weights"),
    "order": (f"{_UP}.g_idx", "belongs to quantised weights"),
    "packed": (f"{_UP}.weight_packed", "belongs to quantised weights"),
    "bias": (f"{_UP}.bias", "is not zero, and the config gives its linear no bias"),
    "head-bias": ("lm_head.bias", "is not zero, and the config gives its linear no bias"),
    "norm-bias": ("model.norm.bias", "no part of the model takes it"),
    "layer": ("model.layers.1.mlp.up_proj.weight", "the config ends after 1 layers"),
    "sinks": ("model.layers.0.self_attn.sinks", "no part of the model takes it"),
    "head-scale": ("lm_head.weight_scale", "belongs to quantised weights"),
    "embedding-scale": ("model.embed_tokens.weight_scale", "belongs to quantised weights"),
    "outside": ("quantiser.scales", "nothing takes it"),
}


@pytest.mark.parametrize("name", _LEFTOVERS)
def test_a_tensor_that_nothing_takes_is_refused(case: Case, name: str) -> None:
    """Scales, zero points, orders, biases and layers that the model does not know are named."""
    tensor, reason = _LEFTOVERS[name]
    case.put(tensor, torch.ones(96))
    _refused(case.folder, ModelUnsupported, f"{tensor}.* {reason}")


def test_what_does_not_matter_is_left_out(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Computed tables, zero biases, scales of a KV cache and heads for other uses do no harm."""
    before = _answer(case.folder)
    case.save(
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        model__layers__0__mlp__up_proj__bias=torch.zeros(96),
        model__layers__0__self_attn__k_scale=torch.ones(1),
        score__weight=torch.ones(2, 64),
    )
    assert _answer(case.folder) == before
    assert "1 tensors are no part of the model, first of them score.weight" in caplog.text


def _answer(folder: Path) -> list[int]:
    llm = _open(folder)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    return list(llm.generate([[5, 6, 7]], params, progress=False)[0].token_ids)


def test_a_head_of_its_own_is_used_where_the_config_ties_it(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that differs from the embedding is the checkpoint's; one that does not is shared."""
    untied = _answer(case.folder)
    case.tell(tie_word_embeddings=True)
    assert _answer(case.folder) == untied
    assert "weights.untied" in caplog.text
    caplog.clear()
    case.put("lm_head.weight", case.tensors["model.embed_tokens.weight"].clone())
    tied = _answer(case.folder)
    assert tied != untied
    case.put("lm_head.weight", None)
    assert _answer(case.folder) == tied
    # Saved under the name of the head alone.
    case.tensors["lm_head.weight"] = case.tensors.pop("model.embed_tokens.weight")
    case.save()
    assert _answer(case.folder) == tied
    assert "weights.untied" not in caplog.text


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight", f"{_UP}.weight"]
)
def test_a_missing_tensor_is_named(case: Case, name: str) -> None:
    """Nothing is left as memory was found."""
    case.put(name, None)
    _refused(case.folder, ModelBroken, rf"1 weights are missing.*{name.removeprefix('model.')}")


@pytest.mark.parametrize("name", [f"{_UP}.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_a_tensor_of_another_shape_is_named(case: Case, name: str) -> None:
    """A transposed matrix is not read, nor one row of a larger vocabulary."""
    case.put(name, case.tensors[name].T.contiguous())
    _refused(case.folder, ModelBroken, rf"{name} is \[.*the config asks for")


def test_a_tensor_that_comes_twice_is_refused(case: Case) -> None:
    """Neither of two files wins, nor either of two names."""
    again = case.tensors["model.norm.weight"] * 2
    case.tensors["norm.weight"] = again
    case.save()
    _refused(case.folder, ModelBroken, "norm.weight comes twice")
    del case.tensors["norm.weight"]
    case.save()
    save_file({"model.norm.weight": again}, case.folder / "more.safetensors")
    case.index(more="more.safetensors")
    _refused(case.folder, ModelBroken, "norm.weight stands in model.safetensors and in more")


def test_an_index_that_is_not_true_is_refused(case: Case) -> None:
    """A tensor lies where the index says, or nothing is read."""
    save_file({"extra": torch.ones(1)}, case.folder / "more.safetensors")
    case.index(extra="more.safetensors", model__norm__weight="more.safetensors")
    _refused(case.folder, ModelBroken, "norm.weight is in more.safetensors: it is not")


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 7, None]
)
def test_an_index_names_files_of_its_folder_alone(case: Case, place: Any) -> None:
    """A path in the index is refused before it is opened."""
    outside = case.folder.parent / _WEIGHTS
    outside.write_bytes((case.folder / _WEIGHTS).read_bytes())
    try:
        case.index(model__norm__weight=place)
        _refused(case.folder, ModelBroken, "which is no file name")
    finally:
        outside.unlink()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(case: Case, text: str) -> None:
    """An index is an object with a map of tensors to files."""
    (case.folder / _INDEX).write_text(text)
    _refused(case.folder, ModelBroken, "is not a safetensors index")


_FIELDS: dict[str, Any] = {
    "hidden_size": "64",
    "num_hidden_layers": 0,
    "num_attention_heads": 0,
    "num_key_value_heads": 3,
    "vocab_size": -1,
    "intermediate_size": None,
    "max_position_embeddings": -1,
    "rms_norm_eps": 1e30,
    "tie_word_embeddings": "no",
    "dtype": [1],
    "rope_parameters": 7,
}


@pytest.mark.parametrize("name", _FIELDS)
def test_a_config_without_sense_is_refused(case: Case, name: str) -> None:
    """Sizes and settings of the wrong type or range are one clear error."""
    case.tell(**{name: _FIELDS[name]})
    _refused(case.folder, ModelBroken, r"config\.json")


_SIZES = ["num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"]


@pytest.mark.parametrize("name", _SIZES)
def test_a_size_without_bounds_is_refused_at_once(case: Case, name: str) -> None:
    """No memory is asked for it, by us or by transformers."""
    changes: dict[str, Any] = {name: 10**9}
    case.tell(**changes)
    _refused(case.folder, ModelBroken, f"{name} of 1000000000")


_ROPES: dict[str, dict[str, Any]] = {
    "unknown": {"rope_type": "nonsense"},
    "no base": {"rope_type": "default", "rope_theta": None},
    "too many factors": {
        "rope_type": "longrope",
        "short_factor": [1] * 99,
        "long_factor": [1] * 99,
    },
    "one factor": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
}


@pytest.mark.parametrize("name", _ROPES)
def test_rotary_settings_that_make_no_table_are_refused(case: Case, name: str) -> None:
    """Whatever transformers raises over them, or lets pass."""
    case.tell(rope_parameters={"rope_theta": 1e4} | _ROPES[name])
    _refused(case.folder, ModelBroken, "rotary settings that make no table")


@pytest.mark.parametrize("name", [_WEIGHTS, "tokenizer.json"])
def test_a_pipe_is_not_waited_for(case: Case, name: str) -> None:
    """It might never be written to."""
    (case.folder / name).unlink()
    os.mkfifo(case.folder / name)
    _refused(case.folder, ModelBroken, f"{name} of .* is neither a file nor a folder")


@pytest.mark.parametrize("name", [_WEIGHTS, "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused(
    case: Case, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Weights, config, tokenizer and template are the folder's own files."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / name
    file = case.folder / name
    elsewhere.write_bytes(file.read_bytes() if file.is_file() else b"")
    file.unlink(missing_ok=True)
    file.symlink_to(elsewhere)
    _refused(case.folder, ModelBroken, f"{name} of .* is a link to .* outside")


def test_links_of_a_hub_cache_are_its_own(case: Case, tmp_path_factory: Any) -> None:
    """A snapshot of a hub is made of links into the blobs beside it."""
    root = tmp_path_factory.mktemp("hub") / "models--a--b"
    snapshot, blobs = root / "snapshots" / "0123", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(case.folder.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert _answer(snapshot) == _answer(case.folder)


@pytest.mark.parametrize("size", [0, 4, 200, -1000])
def test_a_file_that_was_cut_off_is_named(case: Case, size: int) -> None:
    """Empty, within its header, or within its last tensor."""
    file = case.folder / _WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    _refused(case.folder, ModelBroken, "model.safetensors cannot be read")


def test_checksums_name_files_of_their_folder_alone(case: Case) -> None:
    """A converted cache is checked file by file, none of them elsewhere."""
    (case.folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n")
    _refused(case.folder, ModelBroken, r"names '\.\./secret', which is no file name")


def test_code_of_a_checkpoint_is_never_run(case: Case) -> None:
    """A model that needs its own code is refused; one that only brings some is read without it."""
    ran = case.folder / "ran"
    for module in ("configuration_own", "modeling_own", "tokenization_own"):
        (case.folder / f"{module}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    before = _answer(case.folder)
    case.tell(
        auto_map={
            "AutoConfig": "configuration_own.Own",
            "AutoModelForCausalLM": "modeling_own.Own",
        }
    )
    assert _answer(case.folder) == before
    case.tell(model_type="own")
    _refused(case.folder, ModelUnsupported, r"config\.json of .* such code is never run")
    assert not ran.exists()


def test_code_of_a_tokenizer_is_never_run(case: Case) -> None:
    """A tokenizer class that only the checkpoint has is refused."""
    ran = case.folder / "ran"
    (case.folder / "tokenization_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    case.tell(
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    _refused(case.folder, ModelUnsupported, "the tokenizer of .* such code is never run")
    assert not ran.exists()


def test_a_tokenizer_is_of_its_folder_alone(case: Case) -> None:
    """A file for some version of transformers is a file, not a path."""
    case.tell("tokenizer_config.json", fast_tokenizer_files=["../../tokenizer.4.0.0.json"])
    _refused(case.folder, ModelBroken, "which is no file name")


def test_transformers_code_gets_plain_numbers_alone(tmp_path: Path) -> None:
    """What the decoder does not cover is not cast either, and no scale is dropped."""
    mixture = MixtralConfig(**tiny_sizes(num_local_experts=2, num_hidden_layers=1))
    draw_model(mixture).save_pretrained(tmp_path)
    case = Case(tmp_path).read()
    plain = case.tensors[f"{_Q}.weight"]
    case.put(f"{_Q}.weight", plain.to(torch.float8_e4m3fn))
    _refused(tmp_path, ModelUnsupported, rf"{_Q}\.weight is stored as F8_E4M3")
    case.put(f"{_Q}.weight", plain)
    case.put(f"{_Q}.weight_scale", torch.ones(64, 1))
    _refused(tmp_path, ModelUnsupported, "q_proj.weight_scale is in the checkpoint")


def _fp8_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"} | more


def _compressed(**weights: Any) -> dict[str, Any]:
    told = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": told}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }


def _awq_config(**more: Any) -> dict[str, Any]:
    told = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return told | {"zero_point": True} | more


def _gptq_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True} | more


_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes"),
    "mxfp4": ({"quant_method": "mxfp4"}, "quantised by mxfp4"),
    "nameless": ({"bits": 4}, "quantised by no method that it names"),
    "awq-gemv": (_awq_config(version="gemv"), "version gemv"),
    "awq-8": (_awq_config(bits=8), "4 bits alone"),
    "awq-symmetric": (_awq_config(zero_point=False), "zero_point False"),
    "awq-no-group": ({"quant_method": "awq", "bits": 4}, "quantization_config of awq"),
    "gptq-3": (_gptq_config(bits=3), "gptq weights of 3 bits"),
    "gptq-marlin": (_gptq_config(checkpoint_format="marlin"), "laid out for marlin"),
    "gptq-bitblas": (_gptq_config(format="bitblas"), "laid out for bitblas"),
    "gptq-dynamic": (_gptq_config(dynamic={"-:.*": {}}), "settings per module"),
    "fp8-e5m2": (_fp8_config(fmt="e5m2"), "fmt e5m2"),
    "modelopt-nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "algorithm NVFP4"),
    "ct-fp4": (_compressed(num_bits=4, group_size=16, strategy="tensor_group"), "of 4 bits"),
    "ct-groups": (_compressed(strategy="group", group_size=32), "strategy group"),
    "ct-marlin": (_compressed() | {"format": "marlin-24"}, "marlin-24 weights"),
    "ct-sparse": (_compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity"),
    "ct-rotated": (
        _compressed() | {"transform_config": {"config_groups": {"u": {}}}},
        "transforms",
    ),
    "ct-pattern": (_compressed() | {"ignore": ["re:("]}, r"the entry re:\("),
    "ct-number": (_compressed() | {"config_groups": {"g": 3}}, "quantization_config of compressed"),
    "ct-preset": (_compressed() | {"config_groups": {"NVFP4": ["Linear"]}}, "scheme NVFP4"),
}


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_quantisation_that_cannot_be_read_is_named(case: Case, name: str) -> None:
    """Methods, versions and options without a reader are refused before any tensor is read."""
    config, reason = _CONFIGS[name]
    case.tell(quantization_config=config)
    _refused(case.folder, ModelUnsupported, reason)


_SCALE, _ZERO = f"{_UP}.weight_scale", f"{_UP}.weight_zero_point"
_ROWS = StoredFormat(_compressed(), fp8_rows)
_WHOLE = StoredFormat(_fp8_config(), fp8_whole)
_PACKED = StoredFormat(
    _compressed(num_bits=4, type="int", strategy="group", group_size=32)
    | {"format": "pack-quantized"},
    packed,
)
_AWQ, _GPTQ = StoredFormat(_awq_config(), awq), StoredFormat(_gptq_config(), gptq)

# The sound checkpoint, what is changed of one tensor (None: it is lost), and what is said.
_CHANGES: dict[str, tuple[StoredFormat, str, Callable[[Tensor], Tensor | None], str]] = {
    "lost-scale": (_ROWS, _SCALE, lambda _: None, "up_proj.weight_scale"),
    "lost-whole-scale": (_WHOLE, _SCALE, lambda _: None, "0 tensors for the scale"),
    "infinite-scale": (_ROWS, _SCALE, lambda scale: scale / 0, "not finite"),
    "short-scale": (_ROWS, _SCALE, lambda scale: scale[1:], r"is \[95, 1\] in the checkpoint"),
    "scale-in-bytes": (_ROWS, _SCALE, lambda scale: scale.to(torch.int8), "stored as int8"),
    "float8-as-bytes": (
        _ROWS,
        f"{_UP}.weight",
        lambda values: values.view(torch.uint8),
        "stored as uint8 where float8_e4m3fn",
    ),
    "other-float8": (
        _ROWS,
        f"{_UP}.weight",
        lambda values: values.to(torch.float8_e5m2),
        "stored as float8_e5m2 where float8_e4m3fn",
    ),
    "plain-among-float8": (
        _ROWS,
        f"{_UP}.weight",
        lambda values: values.float(),
        "stored as float32 where float8_e4m3fn",
    ),
    "wrong-shape-told": (
        _PACKED,
        f"{_UP}.weight_shape",
        lambda shape: shape.flip(0).contiguous(),
        "says",
    ),
    "half-packed": (
        _PACKED,
        f"{_UP}.weight_packed",
        lambda words: words[:, 1:].contiguous(),
        "weight_packed is",
    ),
    "fewer-groups": (
        _PACKED,
        _SCALE,
        lambda scales: scales[:, :1].contiguous(),
        r"is \[96, 1\] in the checkpoint, the config asks for \[96, 2\]",
    ),
    "awq-transposed": (_AWQ, f"{_UP}.qweight", lambda w: w.T.contiguous(), "qweight is"),
    "awq-wide": (_AWQ, f"{_UP}.qweight", lambda w: w.long(), "stored as int64"),
    "awq-lost-zeros": (_AWQ, f"{_UP}.qzeros", lambda _: None, "up_proj.qzeros"),
    "gptq-uneven-groups": (
        _GPTQ,
        f"{_UP}.g_idx",
        torch.zeros_like,
        "does not give each group 32 inputs",
    ),
    "gptq-bias": (_GPTQ, f"{_UP}.bias", torch.ones_like, "is not zero"),
    "gptq-lost-order": (_GPTQ, f"{_UP}.g_idx", lambda _: None, "up_proj.g_idx"),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_a_quantised_checkpoint_is_whole_or_refused(name: str, model: Any, tmp_path: Path) -> None:
    """No part of a format is left out, made up or read as another one."""
    stored, tensor, change, reason = _CHANGES[name]
    save_as(model, tmp_path, stored)
    case = Case(tmp_path).read()
    case.put(tensor, change(case.tensors[tensor]))
    _refused(tmp_path, EngineError, reason)


def test_a_zero_point_of_symmetric_weights_is_zero(model: Any, tmp_path: Path) -> None:
    """A zero point beside weights that the config calls symmetric may come, but has to be zero."""
    save_as(model, tmp_path, _ROWS)
    case = Case(tmp_path).read()
    case.put(_ZERO, torch.zeros(96, 1, dtype=torch.int8))
    _open(tmp_path)
    case.put(_ZERO, torch.ones(96, 1, dtype=torch.int8))
    _refused(tmp_path, ModelBroken, "weight_zero_point is not zero")


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_a_quantised_checkpoint_is_not_rounded_again(
    model: Any, tmp_path: Path, quantization: str
) -> None:
    """The setting is for plain weights."""
    save_as(model, tmp_path, _ROWS)
    _refused(tmp_path, ModelUnsupported, "quantised already", quantization=quantization)


def test_plain_weights_are_rounded_to_float8_by_the_setting(case: Case) -> None:
    """The head keeps its numbers, everything else becomes float8 as it is read."""
    llm = _open(case.folder, quantization="fp8")
    answer = llm.generate(
        [[5, 6, 7]], SamplingParams(max_tokens=4, temperature=0.0), progress=False
    )
    assert len(answer[0].token_ids) == 4
