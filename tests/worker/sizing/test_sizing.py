"""Sizes of a pool are those that the engine allocates, and those that the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import DECODER, GENERIC, tiny_sizes
from models.tiny_model import TinyModel
from transformers import AutoModelForCausalLM
from workers.parts import page_budget_of

from tokenbus.engine.backends import NativeBackend, TritonBackend
from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.kv_cache import FP8_PAGES, AttentionSpec, KVCache
from tokenbus.producer.commands.cli import build_parser, main
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.sizing.command import run_size
from tokenbus.worker.sizing.model_size import ModelSize, read_model_size
from tokenbus.worker.sizing.pool_size import (
    CPU_PAGE_TOKENS,
    GIB,
    GPU_PAGE_TOKENS,
    Load,
    Machine,
    pool_sizes,
)

if TYPE_CHECKING:
    from tokenbus.worker.sizing.pool_size import Size

PAGE = (Path(__file__).parents[3] / "docs" / "sizing.md").read_text()
# A command and what it prints, as the page shows them.
EXAMPLES = re.findall(r"^\$ (tokenbus size .*)\n((?:.+\n)+?)```", PAGE, re.MULTILINE)
LOAD = Load(100, 60, shared_tokens=0, gap_ms=50, think_s=0, wait_s=0)


def _machine(**changes: Any) -> Machine:
    settings: dict[str, Any] = {
        "gpu_gib": None,
        "other_gib": 1.0,
        "memory_fraction": 0.9,
        "kv_cache_gib": 2.0,
        "page_size": None,
        "max_num_seqs": 256,
        "reserve_fraction": 0.02,
    }
    return Machine(**(settings | changes))


def _sizes(model: ModelSize, machine: Machine, load: Load = LOAD) -> dict[str, Size]:
    return {size.name: size for size in pool_sizes(model, machine, load)}


def _written(folder: Path, kind: str) -> Any:
    """Write the config of a tiny model and return it."""
    make, changes = (DECODER | GENERIC)[kind]
    config = make(**tiny_sizes(**changes))
    if kind == "qwen3_moe":
        # A stray field of the drawn config: this family has no shared expert.
        del config.shared_expert_intermediate_size
    config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("kind", DECODER)
def test_parameters_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    """Of every family that the decoder covers all matrices are counted, and nothing twice."""
    config = _written(tmp_path, kind)
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    size = read_model_size(str(tmp_path))
    assert size.layer_parameters + size.other_parameters == matrices
    tied = 1 if config.tie_word_embeddings else 2
    assert size.other_parameters == tied * config.vocab_size * config.hidden_size


def test_model_that_is_not_counted_is_refused(tmp_path: Path) -> None:
    """Another form, or weights that are stored rounded, ask for the numbers themselves."""
    _written(tmp_path, "gpt2")
    with pytest.raises(ModelUnsupported, match="--weights-gib"):
        read_model_size(str(tmp_path))
    config = _written(tmp_path, "qwen3")
    config.quantization_config = {"quant_method": "awq"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="quantised"):
        read_model_size(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "dtype": "float8_e4m3fn"}')
    with pytest.raises(ModelUnsupported, match="float8"):
        read_model_size(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelBroken, match="lacks hidden_size"):
        read_model_size(str(tmp_path))


@pytest.mark.parametrize(
    ("gpu_gib", "bytes_each"), [(80.0, 1.5234), (30.0, 0.5234), (None, 0.5234)]
)
def test_weights_of_four_bits_are_kept_in_fp8_where_there_is_room(
    gpu_gib: float | None, bytes_each: float
) -> None:
    """A byte a weight of the layers more, up to an eighth of the GPU's memory."""
    model = ModelSize(1, 1, 128, layer_parameters=4 * GIB, other_parameters=0)
    machine = _machine(gpu_gib=gpu_gib, quantization="int4")
    assert _sizes(model, machine)["weights"].value == pytest.approx(4 * GIB * bytes_each, rel=1e-4)


@pytest.mark.parametrize("pages", ["bfloat16", "fp8"])
def test_page_is_as_large_as_the_engines(pages: str) -> None:
    """A page takes the bytes that the KV cache asks for."""
    model = ModelSize(5, 3, 24, weight_bytes=GIB)
    specs = [AttentionSpec(idx, 6, 3, 24, 1.0) for idx in range(5)]
    machine = _machine(gpu_gib=80.0, kv_cache_dtype="fp8" if pages == "fp8" else "auto")
    dtype = FP8_PAGES if pages == "fp8" else torch.bfloat16
    wanted = KVCache.page_bytes(specs, GPU_PAGE_TOKENS, dtype)
    assert _sizes(model, machine)["page"].value == wanted


def test_page_sizes_are_those_of_the_backends() -> None:
    """Tokens per page are what a backend takes unless it is told."""
    defaults = [
        backend.__dataclass_fields__["page_size"].default
        for backend in (NativeBackend, TritonBackend)
    ]
    assert defaults == [CPU_PAGE_TOKENS, GPU_PAGE_TOKENS]


@pytest.mark.processes
def test_pages_on_a_cpu_are_those_that_an_engine_gets(tmp_path: Path) -> None:
    """What is computed of a folder is what an engine allocates that opens it."""
    TinyModel(tmp_path)
    config = EngineConfig(str(tmp_path), dtype="float32", device="cpu", kv_cache_gib=0.004)
    limits = build_engine(config).limits
    machine = _machine(dtype="float32", kv_cache_gib=0.004, max_num_seqs=4096)
    sizes = _sizes(read_model_size(str(tmp_path)), machine)
    assert sizes["pages"].value == limits.num_pages
    usable = page_budget_of(HeldJobs(), limits.num_pages - 1, reserve_fraction=0.02).budget()
    assert sizes["jobs at once"].value == usable // (160 // limits.page_size)


def test_pages_on_a_gpu_are_those_that_its_backend_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the whole, less the weights and what CUDA took, is divided by a page."""
    total = 80 * GIB
    free = total - 15 * GIB - 1 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, total))
    attention: Any = None
    backend = TritonBackend(device=torch.device("cuda"), attention=attention)
    found = backend.page_memory_bytes(EngineConfig("any", memory_fraction=0.85))
    model = ModelSize(32, 8, 128, weight_bytes=15 * GIB)
    sizes = _sizes(model, _machine(gpu_gib=80.0, memory_fraction=0.85))
    assert sizes["pages"].value == found // sizes["page"].value


def test_common_beginning_is_there_once() -> None:
    """Jobs that share 96 of 100 prompt tokens need a page less each, of 64 tokens."""
    model = ModelSize(32, 8, 128, weight_bytes=GIB)
    machine = _machine(gpu_gib=8.0, max_num_seqs=4096, reserve_fraction=0)
    pages = _sizes(model, machine)["pages"].value - 1
    alone = _sizes(model, machine)["jobs at once"].value
    shared = Load(100, 60, shared_tokens=96, gap_ms=50, think_s=0, wait_s=0)
    assert alone == pages // 3
    assert _sizes(model, machine, shared)["jobs at once"].value == (pages - 1) // 2


def test_gpu_of_a_group_has_its_part() -> None:
    """Layers and heads are divided by the ranks; with fewer heads than ranks each has one."""
    model = ModelSize(4, 2, 64, layer_parameters=8000, other_parameters=100)
    sizes = [_sizes(model, _machine(gpu_gib=8.0, tensor_parallel=ranks)) for ranks in (1, 2, 4)]
    assert [each["weights"].value for each in sizes] == [16_200, 8200, 4200]
    assert [each["token"].value for each in sizes] == [2048, 1024, 1024]


def test_workers_do_a_burst_in_its_time_and_the_wait() -> None:
    """Speed or pages bound a worker, whichever is less; a wait spreads what a burst brings."""
    model = ModelSize(32, 8, 128, weight_bytes=GIB)
    load = Load(100, 60, 0, 50, 27, wait_s=60, rate=90, tokens_per_s=600, burst_s=30)
    sizes = _sizes(model, _machine(gpu_gib=80.0), load)
    assert sizes["jobs of a worker"].value == 600 / 60
    assert sizes["users of a worker"].value == 10 * (3 + 27)
    assert sizes["workers"].value == 90 * 30 / (30 + 60) / 10
    slow = _sizes(model, _machine(gpu_gib=80.0, max_num_seqs=15), load)
    assert slow["jobs of a worker"].value == 15 / 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--gpu-gib 8 --weights-gib 15", "are left for pages"),
        ("--prompt-tokens 10 --shared-tokens 11", "--shared-tokens"),
        ("--layers 0", "--layers"),
        ("--rate nan --tokens-per-s 9", "--rate"),
        ("--gap-ms inf", "--gap-ms"),
        ("--quantization fp8", "--gpu-gib"),
        ("--tensor-parallel 2", "--gpu-gib"),
        ("--quantization int8 --gpu-gib 80", "int8"),
        ("--memory-fraction 2", "memory_fraction"),
        ("/nowhere", "nowhere"),
        ("--kv-cache-gib 0.01", "one job needs"),
    ],
)
def test_what_cannot_be_sized_is_told_in_a_sentence(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2, and the option that has to change."""
    numbers = "" if "nowhere" in words else "--layers 32 --kv-heads 8 --head-dim 128"
    weights = "" if "weights" in words or "nowhere" in words else "--weights-gib 15"
    assert main(["size", *f"{numbers} {weights} {words}".split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said


def test_page_has_examples() -> None:
    """The page shows a model, a burst and a CPU."""
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(("typed", "shown"), EXAMPLES)
def test_example_of_the_page_is_what_the_command_prints(
    typed: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worked example was computed, by this code."""
    monkeypatch.chdir(Path(__file__).parent)
    words = shlex.split(typed)
    assert run_size(build_parser().parse_args(words[1:])) == 0
    assert capsys.readouterr().out == shown
