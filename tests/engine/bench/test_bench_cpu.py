"""`tokenbus bench cpu`: equal work in processes of their own, ratios of one call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.bench_contestants import Case, Order
from tokenbus.engine.bench_cpu import CpuReport, Run, contestants
from tokenbus.engine.errors import EngineError
from tokenbus.producer.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def test_order_survives_the_way_to_its_process() -> None:
    """What the child reads is what the parent ordered, and all children draw the same prompts."""
    order = Order("tokenbus", "folder", "float32", 2, (Case("few", 2, 5, 3),), 7)
    there = Order.from_json(order.to_json())
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
