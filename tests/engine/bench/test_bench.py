"""The bench: equal work or no figure, and one command that prints and writes it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from house.help_faults import faults_of
from transformers import LlamaConfig

from tokenbus.engine.bench import command, cpu_command
from tokenbus.engine.bench.heartbeat import Heartbeat
from tokenbus.engine.bench.measure import first_token_ms, run_workload
from tokenbus.engine.bench.workloads import (
    ENGINE_WORKLOADS,
    OfflineWorkload,
    mixed,
    shared_prefix,
    uniform,
)
from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import EngineError
from tokenbus.engine.types import SamplingParams
from tokenbus.producer.commands.cli import main

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tokenbus.engine.types import Request


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder that holds the config of a tiny model."""
    LlamaConfig(
        vocab_size=10_016,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)
    return tmp_path


def test_workloads_are_the_published_ones() -> None:
    """256 mixed sequences make 133,966 output tokens; a shared prefix is shared by its group."""
    nano = mixed()
    assert len(nano.prompts) == 256
    assert nano.num_output_tokens == 133_966
    assert nano.num_prompt_tokens == 142_827
    shared = shared_prefix(8, num_seqs=16)
    assert shared.prompts[0][:2048] == shared.prompts[8][:2048]
    assert shared.prompts[0][:2048] != shared.prompts[1][:2048]


def test_every_workload_is_the_agreed_one() -> None:
    """Sequences, tokens in and out, and the rules of the draw: what other engines are given."""
    made = {name: build() for name, build in ENGINE_WORKLOADS.items()}
    sizes = {
        name: (len(item.prompts), item.num_prompt_tokens, item.num_output_tokens)
        for name, item in made.items()
    }
    assert sizes["single"] == (1, 100, 512)
    assert sizes["batch64"] == (64, 12_800, 16_384)
    assert sizes["prefill2k"] == (64, 128_000, 64)
    assert sizes["prefill8k"] == (16, 128_000, 16)
    assert sizes["nano1024"][0] == 1024
    assert sizes["moon"] == (96, 802_008, 32_303)
    assert made["nano_pen"].prompts == made["nano_topp"].prompts == mixed().prompts
    assert (made["nano_topp"].params.top_p, made["nano_topp"].params.top_k) == (0.9, 50)
    assert made["nano_pen"].params.repetition_penalty == 1.1
    assert made["nano_pen"].params.presence_penalty == 0.2
    assert {item.params.temperature for item in made.values()} == {0.6}
    # The first ids tell the seeds apart.
    assert made["prefill2k"].prompts[0][:8] != made["prefill8k"].prompts[0][:8]


def test_run_counts_every_token_and_leaves_no_page(model: Path) -> None:
    """A run delivers exactly the lengths of the workload."""
    engine = build_engine(EngineConfig(str(model), random_weights=True, num_pages=100))
    figures = run_workload(engine, uniform("few", 3, 40, 9))
    assert figures.output_tokens == 27
    assert figures.steps >= 9
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == 99


def test_a_workload_s_rules_reach_the_engine(model: Path) -> None:
    """What a workload says of the draw is in every request, beside its length and its seed."""
    engine = build_engine(EngineConfig(str(model), random_weights=True, num_pages=100))
    seen: list[SamplingParams] = []
    add = engine.add

    def note(request: Request) -> None:
        seen.append(request.params)
        add(request)

    engine.add = note  # type: ignore[method-assign]
    params = SamplingParams(temperature=0.6, ignore_eos=True, top_k=3, repetition_penalty=1.1)
    run_workload(engine, OfflineWorkload("drawn", ((1, 2, 3), (4, 5)), (4, 5), params))
    assert [(item.max_tokens, item.seed) for item in seen] == [(4, 0), (5, 1)]
    assert {(item.top_k, item.repetition_penalty, item.ignore_eos) for item in seen} == {
        (3, 1.1, True)
    }


def test_first_tokens_are_timed_by_length_with_nothing_cached(model: Path) -> None:
    """Eight times of every length come back, though all prompts of a length are full pages."""
    engine = build_engine(EngineConfig(str(model), random_weights=True, num_pages=100))
    times = first_token_ms(engine, (16, 64))
    assert {length: len(found) for length, found in times.items()} == {16: 8, 64: 8}
    assert engine.stats().cached_tokens_total == 0


def test_unequal_work_is_an_error(model: Path) -> None:
    """A sequence that delivers another number of tokens than asked makes the run void."""
    engine = build_engine(EngineConfig(str(model), random_weights=True, num_pages=100))
    wrong = OfflineWorkload("wrong", ((1, 2, 3),), (4,))
    add = engine.add

    def add_and_abort(request: object) -> None:
        add(request)  # type: ignore[arg-type]
        engine.abort(0)

    engine.add = add_and_abort  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="0 tokens instead of 4"):
        run_workload(engine, wrong)


def test_command_prints_a_rate_and_writes_the_report(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`tokenbus bench engine` runs a workload by name and writes all its figures."""
    monkeypatch.setitem(ENGINE_WORKLOADS, "single", lambda: uniform("single", 1, 100, 40))
    out = tmp_path / "reports"
    arguments = ["--model", str(model), "--random-weights", "--workload", "single"]
    arguments += ["--repeats", "1", "--max-num-seqs", "2", "--max-model-len", "1024"]
    assert main(["bench", "engine", *arguments, "--json", str(out)]) == 0
    assert "tok/s" in capsys.readouterr().out
    report = json.loads(next(out.iterdir()).read_text())
    assert report["best"]["output_tokens"] == 40
    assert report["machine"]["torch"]


def test_uniform_routing_without_routers_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dense model has nothing that could be told to choose."""
    arguments = ["--model", str(model), "--max-model-len", "1024", "--random-weights"]
    assert main(["bench", "engine", *arguments, "--uniform-routing"]) == 1
    assert "has no routers" in capsys.readouterr().err


def test_unknown_model_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong model name ends with the message, not with a trace."""
    assert main(["bench", "engine", "--model", "/nowhere/at/all"]) == 2
    assert "no folder" in capsys.readouterr().err


def test_heartbeat_tells_each_thing_at_once_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a bench is at goes to standard error, again while it goes on; its table stays alone."""
    with Heartbeat("bench", interval_s=0.01) as beat:
        beat.note("reading weights", 0.5)
        beat.note("nano256, run 1 of 3")
        told = ""
        while "nano256, run 1 of 3, for 0 s" not in told:
            printed = capsys.readouterr()
            assert not printed.out
            told += printed.err
    assert told.startswith("bench: reading weights 50%\nbench: nano256, run 1 of 3\n")


@pytest.mark.parametrize("parser", [command.build_parser(), cpu_command.build_parser()])
def test_help_of_the_benches_is_enough_for_a_newcomer(parser: argparse.ArgumentParser) -> None:
    """It says what the bench is for, with an example that parses, and units with numbers."""
    assert faults_of(parser) == []
    words = shlex.split(str(parser.epilog).partition(f"{parser.prog} ")[2])
    parser.parse_args(words)
