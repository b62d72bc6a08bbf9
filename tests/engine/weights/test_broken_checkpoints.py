"""Broken checkpoints: whatever cannot be read rightly is refused by name when a model is opened."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.stored_checkpoint import (
    INDEX,
    Q_PROJ,
    UP_PROJ,
    WEIGHTS,
    StoredCheckpoint,
    check_refused,
    open_model,
)
from safetensors.torch import save_file
from transformers import Starcoder2Config

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path


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
def test_a_weight_that_is_no_plain_number_is_refused(
    case: StoredCheckpoint, dtype: torch.dtype
) -> None:
    """A matrix of bytes, float8 or truths is not cast to what the model computes in."""
    case.put(f"{Q_PROJ}.weight", case.tensors[f"{Q_PROJ}.weight"].to(dtype))
    told = str(dtype).removeprefix("torch.")
    check_refused(case.folder, ModelUnsupported, rf"q_proj\.weight is stored as {told}")


def test_a_container_of_4_bits_is_no_matrix(case: StoredCheckpoint) -> None:
    """Two numbers in a byte are neither read as bytes nor as half of a matrix."""
    halves = torch.zeros(64, 64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    case.put(f"{Q_PROJ}.weight", halves)
    check_refused(case.folder, ModelUnsupported, r"q_proj\.weight is stored as float4_e2m1fn_x2")


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head"])
def test_what_is_no_linear_is_not_cast_either(case: StoredCheckpoint, name: str) -> None:
    """Embedding, norms and head are refused in int8 as linears are."""
    stored = case.tensors[f"{name}.weight"].to(torch.int8)
    case.put(f"{name}.weight", stored)
    check_refused(case.folder, ModelUnsupported, f"{name}.weight is stored as int8")


_LEFTOVERS = {
    "scale": (f"{UP_PROJ}.weight_scale", "belongs to quantised weights"),
    "scale-inv": (f"{UP_PROJ}.weight_scale_inv", "belongs to quantised weights"),
    "scb": (f"{UP_PROJ}.SCB", "belongs to quantised weights"),
    "zeros": (f"{UP_PROJ}.qzeros", "belongs to quantised weights"),
    "order": (f"{UP_PROJ}.g_idx", "belongs to quantised weights"),
    "packed": (f"{UP_PROJ}.weight_packed", "belongs to quantised weights"),
    "bias": (f"{UP_PROJ}.bias", "is not zero, and the config gives its linear no bias"),
    "head-bias": ("lm_head.bias", "is not zero, and the config gives its linear no bias"),
    "norm-bias": ("model.norm.bias", "no part of the model takes it"),
    "layer": ("model.layers.1.mlp.up_proj.weight", "the config ends after 1 layers"),
    "sinks": ("model.layers.0.self_attn.sinks", "no part of the model takes it"),
    "head-scale": ("lm_head.weight_scale", "belongs to quantised weights"),
    "embedding-scale": ("model.embed_tokens.weight_scale", "belongs to quantised weights"),
    "outside": ("quantiser.scales", "nothing takes it"),
}


@pytest.mark.parametrize("name", _LEFTOVERS)
def test_a_tensor_that_nothing_takes_is_refused(case: StoredCheckpoint, name: str) -> None:
    """Scales, zero points, orders, biases and layers that the model does not know are named."""
    tensor, reason = _LEFTOVERS[name]
    case.put(tensor, torch.ones(96))
    check_refused(case.folder, ModelUnsupported, f"{tensor}.* {reason}")


def test_what_does_not_matter_is_left_out(
    case: StoredCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
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
    llm = open_model(folder)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    return list(llm.generate([[5, 6, 7]], params, progress=False)[0].token_ids)


def test_a_head_of_its_own_is_used_where_the_config_ties_it(
    case: StoredCheckpoint, caplog: pytest.LogCaptureFixture
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
    "name",
    ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight", f"{UP_PROJ}.weight"],
)
def test_a_missing_tensor_is_named(case: StoredCheckpoint, name: str) -> None:
    """Nothing is left as memory was found."""
    case.put(name, None)
    check_refused(
        case.folder, ModelBroken, rf"1 weights are missing.*{name.removeprefix('model.')}"
    )


@pytest.mark.parametrize(
    "name", [f"{UP_PROJ}.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_a_tensor_of_another_shape_is_named(case: StoredCheckpoint, name: str) -> None:
    """A transposed matrix is not read, nor one row of a larger vocabulary."""
    case.put(name, case.tensors[name].T.contiguous())
    check_refused(case.folder, ModelBroken, rf"{name} is \[.*the config asks for")


def test_a_tensor_that_comes_twice_is_refused(case: StoredCheckpoint) -> None:
    """Neither of two files wins, nor either of two names."""
    again = case.tensors["model.norm.weight"] * 2
    case.tensors["norm.weight"] = again
    case.save()
    check_refused(case.folder, ModelBroken, "norm.weight comes twice")
    del case.tensors["norm.weight"]
    case.save()
    save_file({"model.norm.weight": again}, case.folder / "more.safetensors")
    case.index(more="more.safetensors")
    check_refused(case.folder, ModelBroken, "norm.weight stands in model.safetensors and in more")


def test_an_index_that_is_not_true_is_refused(case: StoredCheckpoint) -> None:
    """A tensor lies where the index says, or nothing is read."""
    save_file({"extra": torch.ones(1)}, case.folder / "more.safetensors")
    case.index(extra="more.safetensors", model__norm__weight="more.safetensors")
    check_refused(case.folder, ModelBroken, "norm.weight is in more.safetensors: it is not")


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 7, None]
)
def test_an_index_names_files_of_its_folder_alone(case: StoredCheckpoint, place: Any) -> None:
    """A path in the index is refused before it is opened."""
    outside = case.folder.parent / WEIGHTS
    outside.write_bytes((case.folder / WEIGHTS).read_bytes())
    try:
        case.index(model__norm__weight=place)
        check_refused(case.folder, ModelBroken, "which is no file name")
    finally:
        outside.unlink()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(case: StoredCheckpoint, text: str) -> None:
    """An index is an object with a map of tensors to files."""
    (case.folder / INDEX).write_text(text)
    check_refused(case.folder, ModelBroken, "is not a safetensors index")


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
def test_a_config_without_sense_is_refused(case: StoredCheckpoint, name: str) -> None:
    """Sizes and settings of the wrong type or range are one clear error."""
    case.tell(**{name: _FIELDS[name]})
    check_refused(case.folder, ModelBroken, r"config\.json")


_SIZES = ["num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"]


@pytest.mark.parametrize("name", _SIZES)
def test_a_size_without_bounds_is_refused_at_once(case: StoredCheckpoint, name: str) -> None:
    """No memory is asked for it, by us or by transformers."""
    changes: dict[str, Any] = {name: 10**9}
    case.tell(**changes)
    check_refused(case.folder, ModelBroken, f"{name} of 1000000000")


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
def test_rotary_settings_that_make_no_table_are_refused(case: StoredCheckpoint, name: str) -> None:
    """Whatever transformers raises over them, or lets pass."""
    case.tell(rope_parameters={"rope_theta": 1e4} | _ROPES[name])
    check_refused(case.folder, ModelBroken, "rotary settings that make no table")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_a_pipe_is_not_waited_for(case: StoredCheckpoint, name: str) -> None:
    """It might never be written to."""
    (case.folder / name).unlink()
    os.mkfifo(case.folder / name)
    check_refused(case.folder, ModelBroken, f"{name} of .* is neither a file nor a folder")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused(
    case: StoredCheckpoint, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Weights, config, tokenizer and template are the folder's own files."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / name
    file = case.folder / name
    elsewhere.write_bytes(file.read_bytes() if file.is_file() else b"")
    file.unlink(missing_ok=True)
    file.symlink_to(elsewhere)
    check_refused(case.folder, ModelBroken, f"{name} of .* is a link to .* outside")


def test_links_of_a_hub_cache_are_its_own(case: StoredCheckpoint, tmp_path_factory: Any) -> None:
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
def test_a_file_that_was_cut_off_is_named(case: StoredCheckpoint, size: int) -> None:
    """Empty, within its header, or within its last tensor."""
    file = case.folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    check_refused(case.folder, ModelBroken, "model.safetensors cannot be read")


def test_checksums_name_files_of_their_folder_alone(case: StoredCheckpoint) -> None:
    """A converted cache is checked file by file, none of them elsewhere."""
    (case.folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n")
    check_refused(case.folder, ModelBroken, r"names '\.\./secret', which is no file name")


def test_code_of_a_checkpoint_is_never_run(case: StoredCheckpoint) -> None:
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
    check_refused(case.folder, ModelUnsupported, r"config\.json of .* such code is never run")
    assert not ran.exists()


def test_code_of_a_tokenizer_is_never_run(case: StoredCheckpoint) -> None:
    """A tokenizer class that only the checkpoint has is refused."""
    ran = case.folder / "ran"
    (case.folder / "tokenization_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    case.tell(
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    check_refused(case.folder, ModelUnsupported, "the tokenizer of .* such code is never run")
    assert not ran.exists()


def test_a_tokenizer_is_of_its_folder_alone(case: StoredCheckpoint) -> None:
    """A file for some version of transformers is a file, not a path."""
    case.tell("tokenizer_config.json", fast_tokenizer_files=["../../tokenizer.4.0.0.json"])
    check_refused(case.folder, ModelBroken, "which is no file name")


def test_transformers_code_gets_plain_numbers_alone(tmp_path: Path) -> None:
    """What the decoder does not cover is not cast either, and no scale is dropped."""
    draw_model(Starcoder2Config(**tiny_sizes(num_hidden_layers=1))).save_pretrained(tmp_path)
    case = StoredCheckpoint(tmp_path).read()
    plain = case.tensors[f"{Q_PROJ}.weight"]
    case.put(f"{Q_PROJ}.weight", plain.to(torch.float8_e4m3fn))
    check_refused(tmp_path, ModelUnsupported, rf"{Q_PROJ}\.weight is stored as F8_E4M3")
    case.put(f"{Q_PROJ}.weight", plain)
    case.put(f"{Q_PROJ}.weight_scale", torch.ones(64, 1))
    check_refused(tmp_path, ModelUnsupported, "q_proj.weight_scale is in the checkpoint")


_DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_brackets_without_end_are_refused(case: StoredCheckpoint, name: str) -> None:
    """JSON that is deeper than any reader goes is a broken file, not a fault of ours."""
    (case.folder / name).write_text(_DEEP)
    check_refused(case.folder, ModelBroken, "recursion")


def test_brackets_without_end_of_an_index_are_refused(case: StoredCheckpoint) -> None:
    """So it is with the index."""
    (case.folder / INDEX).write_text(_DEEP)
    check_refused(case.folder, ModelBroken, "is not a safetensors index")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja"])
def test_text_that_fills_the_memory_is_not_read(case: StoredCheckpoint, name: str) -> None:
    """A file that takes no room on the disk would take all memory when it is parsed."""
    with (case.folder / name).open("ab") as file:
        file.truncate(2**30)
    check_refused(case.folder, ModelBroken, f"{name} of .* has 1073741824 bytes")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_labels": 10**9}, "num_labels of 1000000000"),
        ({"id2label": dict.fromkeys(map(str, range(70_000)), "x")}, "a list of 70000 entries"),
        ({"eos_token_id": [10**6] * 70_000}, "a list of 70000 entries"),
        ({"eos_token_id": [10**6] * 2000}, "config.json lists 2000 tokens"),
    ],
)
def test_lists_without_bounds_are_refused(
    case: StoredCheckpoint, changes: dict[str, Any], told: str
) -> None:
    """Neither names of labels that nobody asks for are made, nor a warning of each token."""
    case.tell(**changes)
    check_refused(case.folder, ModelBroken, told)


@pytest.mark.parametrize("method", ["compressed-tensors", "gptq"])
def test_expressions_that_take_for_ever_are_refused(case: StoredCheckpoint, method: str) -> None:
    """An expression of a checkpoint, which backtracks without end, has a second."""
    endless = "(.|..|...)+[!?]"
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    group = {"targets": [f"re:{endless}"], "weights": weights}
    told: dict[str, dict[str, Any]] = {
        "compressed-tensors": {"format": "float-quantized", "config_groups": {"a": group}},
        "gptq": {"bits": 4, "group_size": 128, "dynamic": {f"-:{endless}": {}}},
    }
    case.tell(quantization_config={"quant_method": method, **told[method]})
    check_refused(case.folder, ModelUnsupported, "an expression that takes more than 1 s")


def test_words_of_a_library_have_an_end(case: StoredCheckpoint) -> None:
    """An error that quotes what it could not read does not fill the log."""
    told = b'{"a":"' + b"x" * 1_000_000 + b'"}'
    (case.folder / WEIGHTS).write_bytes(len(told).to_bytes(8, "little") + told)
    with pytest.raises(ModelBroken, match="cannot be read") as caught:
        open_model(case.folder)
    assert len(str(caught.value)) < 2000


def test_tokenizer_that_panics_fails_its_text_alone(case: StoredCheckpoint) -> None:
    """A panic of the library, which is no Exception, ends one prompt and nothing else."""
    file = case.folder / "tokenizer.json"
    told = json.loads(file.read_text())
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    single = [{"SpecialToken": {"id": "<none>", "type_id": 0}}, pair[0]]
    told["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}
    }  # fmt: skip
    file.write_text(json.dumps(told))
    llm = open_model(case.folder)
    with pytest.raises(EngineError, match="the tokenizer failed"):
        llm.generate(["a text"], SamplingParams(max_tokens=2))
    assert llm.generate([[5, 6]], SamplingParams(max_tokens=2))[0].choices[0].token_ids
