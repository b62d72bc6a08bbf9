"""Loading: names, files, dtypes, and one clear error for whatever is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import GENERIC, draw_model, tiny_sizes
from models.backends import cpu_backend, stepwise_backend
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Starcoder2Config,
)

from tokenbus.engine.build import load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelBroken, ModelNotFound, ModelUnsupported, RequestRejected
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.weights.checkpoint import write_checksums
from tokenbus.engine.weights.loader import LoadedModel, build_model, load_model
from tokenbus.engine.weights.readers import LinearShape, RoundingReader

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.engine.models.linear_weight import LinearWeight


def _load(name: str | Path, dtype: str = "float32", **options: Any) -> LoadedModel:
    return load_model(name, cpu_backend(dtype), dtype=dtype, **options)


def _save_tokenizer(folder: Path, end: str, template: str | None = None) -> None:
    """Save a tokenizer of 150 words, behind them the special tokens end, turn and other."""
    words = Tokenizer(WordLevel({"a": 0} | {f"w{idx}": idx for idx in range(1, 150)}, "a"))
    words.add_special_tokens(["<end>", "<turn>", "<other>"])
    build: Any = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=words, chat_template=template)
    if end:
        tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """Return a tiny Llama and the folder it was saved to."""
    model = draw_model(LlamaConfig(**tiny_sizes(eos_token_id=7)))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_folder_and_shards_give_the_saved_model(saved: Any, tmp_path: Path) -> None:
    """One file or many shards with an index load to the same model."""
    model, folder = saved
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    texts = draw_prompts(199, [3, 40])
    expected = Reference(model).generate(texts, 12)
    for path in (folder, sharded):
        loaded = _load(path)
        assert GreedyDriver(loaded.model).generate(texts, 12) == expected
        assert loaded.max_model_len == 1024
        assert loaded.tokenizer is None
        assert loaded.name == str(path)


def test_generic_model_loads_from_a_folder(tmp_path: Path) -> None:
    """What the decoder does not cover loads through transformers, experts and all."""
    config_class, changes = GENERIC["deepseek_v3-mla"]
    model = draw_model(config_class(**tiny_sizes(**changes)))
    model.save_pretrained(tmp_path)
    texts = draw_prompts(199, [3, 40])
    loaded = _load(tmp_path)
    assert GreedyDriver(loaded.model).generate(texts, 12) == Reference(model).generate(texts, 12)


_ENDS = {
    "generation config and config": ([4, 5], 7, "", (4, 5, 7)),
    "all three": (4, [7, 4], "<end>", (4, 7, 150)),
    "config.json names none": (4, ..., "", (4,)),
    "the config class has a default": (..., ..., "", (2,)),
    "the default gives way to the tokenizer": (..., ..., "<end>", (150,)),
}


@pytest.mark.parametrize("case", _ENDS)
def test_ends_are_those_of_all_files_together(saved: Any, case: str) -> None:
    """Generation config, config and tokenizer each name ends, and all of them count."""
    _, folder = saved
    generation, config, token, ids = _ENDS[case]
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not ...:
        _edit(folder / "generation_config.json", eos_token_id=generation)
    told = json.loads((folder / "config.json").read_text())
    del told["eos_token_id"]
    told |= {} if config is ... else {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(told))
    _save_tokenizer(folder, token)
    assert _load(folder).eos_token_ids == ids


_TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_OTHER_ENDS = {
    "named by the tokenizer": ({"eot_token": "<turn>"}, None, (7, 150, 151)),
    "of the template alone": ({}, _TURNS, (7, 150, 151)),
    "the template ends with a known one": ({}, _TURNS.replace("<turn>", "<end>"), (7, 150)),
    "it ends with no special token": ({}, _TURNS.replace("<turn>", "a"), (7, 150)),
    "it ends differently in the middle": (
        {},
        _TURNS.replace("<turn>", "{% if loop.last %}<turn>{% else %}<other>{% endif %}"),
        (7, 150),
    ),
    "it fails": ({}, "{{ raise_exception('no') }}", (7, 150)),
}


@pytest.mark.parametrize("case", _OTHER_ENDS)
def test_end_of_a_turn_is_an_end(saved: Any, case: str) -> None:
    """What the tokenizer names the end of a turn counts, and what a template writes there."""
    _, folder = saved
    named, template, ids = _OTHER_ENDS[case]
    _save_tokenizer(folder, "<end>", template)
    _edit(folder / "tokenizer_config.json", **named)
    assert _load(folder).eos_token_ids == ids


def test_end_of_a_turn_is_that_of_a_given_template_too(saved: Any, tmp_path: Path) -> None:
    """A template named by the settings ends texts as it ends its turns, beside the model's own."""
    _, folder = saved
    _save_tokenizer(folder, "<end>", _TURNS)
    given = tmp_path / "other.jinja"
    for end, ids in (("<other>", (7, 150, 151, 152)), ("<end>", (7, 150, 151))):
        given.write_text(_TURNS.replace("<turn>", end))
        config = EngineConfig(model=str(folder), device="cpu", chat_template=str(given))
        assert load_for(config).eos_token_ids == ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_one_asked_for(saved: Any, dtype: str) -> None:
    """Weights and logits come in the dtype that was asked for, and float32."""
    loaded = _load(saved[1], dtype)
    assert loaded.dtype is getattr(torch, dtype)
    assert isinstance(loaded.model, Decoder)
    assert loaded.model.tensors.embedding.dtype is loaded.dtype


def test_random_weights_need_only_a_config(tmp_path: Path) -> None:
    """A folder with nothing but a config gives a model of its shape with finite weights."""
    LlamaConfig(**tiny_sizes()).save_pretrained(tmp_path)
    model = load_model(tmp_path, stepwise_backend(), dtype="float32", random_weights=True).model
    assert isinstance(model, Decoder)
    weights: list[Any] = [linear.weight for linear in model.tensors.linears()]
    assert all(weight.values.isfinite().all() for weight in weights)
    assert float(weights[3].values.std()) == pytest.approx(0.35, rel=0.1)


def test_longrope_model_ends_at_its_original_length(tmp_path: Path) -> None:
    """Where longer texts would change the meaning of cached pages, the shorter limit holds."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    config = Phi3Config(
        **tiny_sizes(
            rope_parameters=rope,
            original_max_position_embeddings=64,
            max_position_embeddings=256,
        )
    )
    config.save_pretrained(tmp_path)
    assert _load(tmp_path, random_weights=True).max_model_len == 64
    assert _load(tmp_path, random_weights=True, max_model_len=40).max_model_len == 40
    with pytest.raises(RequestRejected, match=r"max_model_len: 65 is above 64: longrope"):
        _load(tmp_path, random_weights=True, max_model_len=65)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 256),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 1024),
        ({**YARN, "original_max_position_embeddings": 256}, 1024),
        ({**YARN, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 256),
        (LLAMA3, 256),
    ],
    ids=["default", "linear", "yarn", "yarn-extended", "dynamic", "llama3"],
)
def test_longest_text_is_held_against_the_positions(
    tmp_path: Path, rope: dict[str, Any], most: int
) -> None:
    """Up to where a scaling is sound a longer limit may be asked for; past it, it is refused."""
    config = LlamaConfig(**tiny_sizes(rope_parameters=rope, max_position_embeddings=256))
    config.save_pretrained(tmp_path)
    assert _load(tmp_path, random_weights=True).max_model_len == 256
    assert _load(tmp_path, random_weights=True, max_model_len=most).max_model_len == most
    with pytest.raises(RequestRejected, match=rf"max_model_len: {most + 1} is above {most}: "):
        _load(tmp_path, random_weights=True, max_model_len=most + 1)


def test_answers_do_not_depend_on_a_longer_limit(tmp_path: Path) -> None:
    """Every length that is not refused answers the same."""
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    config = LlamaConfig(**tiny_sizes(rope_parameters=rope, max_position_embeddings=256))
    draw_model(config).save_pretrained(tmp_path)
    texts = draw_prompts(199, [3, 40])
    answers = [
        GreedyDriver(_load(tmp_path, max_model_len=length).model).generate(texts, 12)
        for length in (128, 256, 1024)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_learned_positions_end_where_their_table_ends(tmp_path: Path) -> None:
    """A position past the table would be read from outside; it is refused at load."""
    config = GPT2Config(vocab_size=199, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    draw_model(config).save_pretrained(tmp_path)
    assert _load(tmp_path).max_model_len == 64
    with pytest.raises(RequestRejected, match="max_model_len: 65 is above 64: the model has 64"):
        _load(tmp_path, max_model_len=65)


@pytest.mark.parametrize("value", [-3, 0, None, "512", 1.5, True])
def test_number_of_positions_that_is_none_is_refused_by_name(saved: Any, value: Any) -> None:
    """A config without a whole number of positions cannot be used, and says by which field."""
    _edit(saved[1] / "config.json", max_position_embeddings=value)
    with pytest.raises(ModelBroken, match="max_position_embeddings"):
        _load(saved[1])


def _edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("file", "given", "kept"),
    [
        ("generation_config.json", 199, (7,)),
        ("generation_config.json", -1, (7,)),
        ("generation_config.json", [4, 10**12, -7, 5, 4], (4, 5, 7)),
        ("generation_config.json", [[4]], (7,)),
        ("generation_config.json", [4, "5", None, 2.5, True], (4, 7)),
        ("generation_config.json", "7", (7,)),
        ("config.json", 199, ()),
        ("config.json", [3, 199, -1], (3,)),
    ],
)
def test_end_that_is_no_token_is_left_out_with_a_word(
    saved: Any, caplog: pytest.LogCaptureFixture, file: str, given: Any, kept: tuple[int, ...]
) -> None:
    """Ids outside the vocabulary or of another type are no ends; the file and field are named."""
    folder = saved[1]
    (folder / "generation_config.json").unlink(missing_ok=True)
    _edit(folder / file, eos_token_id=given)
    assert _load(folder).eos_token_ids == kept
    assert any(f"eos_token_id of {file}" in text for text in caplog.messages)


@pytest.mark.parametrize("given", ["7", [[7]], {"a": 1}, 7.5])
def test_end_of_another_type_in_the_config_is_refused_by_name(saved: Any, given: Any) -> None:
    """What transformers cannot read of a config is one clear error."""
    _edit(saved[1] / "config.json", eos_token_id=given)
    with pytest.raises(ModelBroken, match="eos_token_id"):
        _load(saved[1])


@pytest.mark.parametrize("config_class", [LlamaConfig, Starcoder2Config])
def test_padding_and_start_that_are_no_tokens_do_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config_class: Any
) -> None:
    """Padding outside the vocabulary is no row of the embedding; both are named."""
    draw_model(config_class(**tiny_sizes())).save_pretrained(tmp_path)
    _edit(tmp_path / "config.json", pad_token_id=5000, bos_token_id=-9)
    _load(tmp_path)
    for name in ("pad_token_id", "bos_token_id"):
        assert any(f"{name} of config.json" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./neither", "no-such-alias/with/slashes", "smollm2-9000b"]
)
def test_unknown_model_is_not_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is neither folder, alias nor hub id is one clear error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match=name.strip("./")):
        _load(name)


def test_alias_that_was_not_pulled_says_how_to_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known alias without a copy in the cache names the command that fetches it."""
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="tokenbus model pull smollm2-135m"):
        _load("smollm2-135m")


def test_folder_without_config_is_not_found(tmp_path: Path) -> None:
    """A folder that holds no model says so."""
    with pytest.raises(ModelNotFound, match=r"without config\.json"):
        _load(tmp_path)


def test_folder_without_weights_is_broken(saved: Any) -> None:
    """A config alone is no model unless random weights were asked for."""
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(ModelBroken, match=r"no \*\.safetensors"):
        _load(saved[1])


def test_truncated_shard_is_broken(saved: Any) -> None:
    """A file that was cut off is named."""
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelBroken, match=r"model\.safetensors cannot be read"):
        _load(saved[1])


def test_missing_and_misshapen_weights_are_broken(saved: Any) -> None:
    """A missing or misshapen tensor is named, not papered over."""
    file = saved[1] / "model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("model.layers.2.mlp.up_proj.weight")
    save_file(tensors, file)
    with pytest.raises(ModelBroken, match=r"layers\.2\.mlp\.up_proj\.weight"):
        _load(saved[1])
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": lost[:-1].contiguous()}, file)
    with pytest.raises(ModelBroken, match=r"\[95, 64\] in the checkpoint"):
        _load(saved[1])


def test_shard_missing_from_the_index_is_broken(saved: Any) -> None:
    """A shard that the index names and the folder lacks is named."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (saved[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelBroken, match=r"lacks model-2\.safetensors"):
        _load(saved[1])


def test_weights_are_rounded_as_they_are_read(saved: Any) -> None:
    """Of plain matrices no more are in memory than one layer's while float8 is made of them."""
    model, _ = saved
    made: list[int] = []

    class Counting(RoundingReader):
        def kind_of(self, values: torch.Tensor, shape: LinearShape) -> LinearWeight:
            made.append(shape.num_outputs)
            return super().kind_of(values, shape)

    class Tensors(dict[str, torch.Tensor]):
        def items(self) -> Any:
            for name in sorted(super().keys()):
                _, _, layer, *_ = f"{name}..".split(".")
                if layer.isdecimal():
                    assert len(made) >= 4 * int(layer)
                yield name, self[name]

    build_model(
        model.config,
        Tensors(model.state_dict()),
        stepwise_backend(),
        dtype=torch.float32,
        max_model_len=64,
        reader=Counting("fp8"),
    )
    assert len(made) == 4 * 4 + 1


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-model"}'])
def test_unreadable_config_is_broken(saved: Any, text: str) -> None:
    """A config that is no config is one clear error."""
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(ModelBroken, match=r"config\.json"):
        _load(saved[1])


def test_file_that_differs_from_its_checksum_is_broken(saved: Any) -> None:
    """One flipped bit in a file with a checksum is found before the model runs."""
    file = saved[1] / "model.safetensors"
    write_checksums(saved[1])
    _load(saved[1])
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelBroken, match="does not match its sha256"):
        _load(saved[1])


def test_quantised_checkpoint_is_refused(saved: Any) -> None:
    """Weights that need unpacking by a quantiser are refused by name."""
    config = json.loads((saved[1] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm"}
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported, match="quantised by aqlm, which cannot be read"):
        _load(saved[1])
