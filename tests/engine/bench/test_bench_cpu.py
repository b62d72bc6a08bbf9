"""`tokenbus bench cpu`: equal work in processes of their own, ratios of one call."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.bench.cpu_command import contestants
from tokenbus.engine.bench.cpu_report import CpuReport, Run
from tokenbus.engine.bench.llama_cpp_contestant import LlamaCpp
from tokenbus.engine.bench.order import Case, ContestOrder
from tokenbus.engine.errors import EngineError
from tokenbus.producer.commands.cli import main

_STAND_INS = Path(__file__).parents[2] / "support" / "models" / "stand_ins"


def test_order_survives_the_way_to_its_process() -> None:
    """What the child reads is what the parent ordered, and all children draw the same prompts."""
    order = ContestOrder("tokenbus", "folder", "float32", 2, (Case("few", 2, 5, 3),), 7)
    there = ContestOrder.from_json(order.to_json())
    assert there == order
    assert there.cases[0].prompts(7) == order.cases[0].prompts(7)
    assert there.cases[0].prompts(7) != order.cases[0].prompts(8)


def test_ratio_is_best_over_best_and_agreement_stops_at_the_first_difference() -> None:
    """One slow repeat changes no ratio; tokens after a difference do not count as equal."""
    report = CpuReport([], {})
    for name, rate, ids in (
        ("transformers", 10.0, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("tokenbus", 45.0, [[1, 2, 9, 4], [5, 6, 7, 8]]),
        ("transformers", 15.0, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("tokenbus", 3.0, [[1, 2, 9, 4], [5, 6, 7, 8]]),
    ):
        report.runs.append(Run(name, "few", 1.0, rate, ids))
    assert report.ratio("tokenbus", "few") == 3.0
    assert report.equal_tokens("tokenbus", "few") == 0.75


def test_an_engine_that_is_not_installed_is_named() -> None:
    """Asking for an engine that is not there is an error, not a table without it."""
    with pytest.raises(EngineError, match="llamafile cannot take part"):
        contestants(["llamafile"])


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install modules with the calls of llama-cpp-python and vLLM, here and in child processes."""
    for name in ("llama_cpp_python", "vllm"):
        package = tmp_path / "site" / f"{name}-9.8.7.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.8.7\n")
    for folder in (_STAND_INS, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(_STAND_INS), str(tmp_path / "site"))))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    return gguf


def _sums(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Return what the stand-ins' model says."""
    next_token = import_module("llama_cpp").next_token
    texts = [list(prompt) for prompt in prompts]
    for text in texts:
        for _ in range(num_tokens):
            text.append(next_token(text))
    return [text[-num_tokens:] for text in texts]


def test_llama_cpp_continues_all_sequences_of_a_batch(stand_ins: Path) -> None:
    """Prompts longer than a batch, one sequence and many: each gets its own greedy tokens."""
    cases = (Case("one", 1, 5, 6), Case("many", 7, 400, 3), Case("short", 3, 1, 9))
    contestant = LlamaCpp(ContestOrder("llama.cpp", "", "bfloat16", 2, cases, 3, str(stand_ins)))
    for case in (*cases, *cases):
        prompts = case.prompts(3)
        assert contestant.generate(prompts, case.output_len) == _sums(prompts, case.output_len)
        contestant.reset()
    assert "stand-in 1B Q4_1" in contestant.remark()


def test_llama_cpp_without_its_file_is_refused(stand_ins: Path) -> None:
    """No file, one that is not there and sequences beyond the order end with a reason."""
    order = ContestOrder("llama.cpp", "", "bfloat16", 2, (Case("one", 1, 5, 6),), 3)
    with pytest.raises(EngineError, match="--gguf"):
        LlamaCpp(order)
    with pytest.raises(EngineError, match="cannot load nowhere"):
        LlamaCpp(replace(order, gguf="nowhere"))
    with pytest.raises(EngineError, match="refused a batch of 20 tokens: 1"):
        LlamaCpp(replace(order, gguf=str(stand_ins))).generate([[1] * 20], 2)


def test_installed_engines_take_part(
    stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VLLM and llama.cpp run in processes of their own, with versions and what differs."""
    LlamaConfig().save_pretrained(tmp_path / "model")
    only = ["--only", "vllm", "--only", "llama.cpp", "--threads", "2"]
    options = ["--quick", "--model", str(tmp_path / "model"), *only]
    out = tmp_path / "figures.json"
    assert main(["bench", "cpu", *options, "--gguf", str(stand_ins), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp: runs a file of its own, stand-in 1B Q4_1" in printed
    report = json.loads(out.read_text())
    assert {report["versions"][name] for name in ("vllm", "llama-cpp-python")} == {"9.8.7"}
    assert [run["contestant"] for run in report["runs"]] == ["vllm"] * 2 + ["llama.cpp"] * 2
    assert main(["bench", "cpu", *options]) != 0
    assert "llama.cpp needs a GGUF file" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_command_compares_engines_on_equal_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32 every token equals the unit's, and the file holds all runs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10_000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    out = tmp_path / "figures.json"
    arguments = ["--model", str(tmp_path), "--dtype", "float32", "--quick", "--json", str(out)]
    engines = ["--only", "transformers", "--only", "tokenbus"]
    assert main(["bench", "cpu", *arguments, *engines]) == 0
    printed = capsys.readouterr().out
    assert "tokens before the first that differs from transformers: 100%, 100%" in printed
    runs = json.loads(out.read_text())["runs"]
    assert [run["contestant"] for run in runs] == ["transformers"] * 2 + ["tokenbus"] * 2
    assert all(run["tokens_per_s"] > 0 for run in runs)
