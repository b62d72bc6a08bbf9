"""Arrivals and prompts: what every process of a run derives from the options alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.model_folder import refuse_outside
from tokenbus.engine.text.generated_tokenizer import build_generated_tokenizer, clothe
from tokenbus.worker.bench.arguments import build_parser, options_of
from tokenbus.worker.bench.capacity import scaled
from tokenbus.worker.bench.load.arrivals import arrivals, read_trace
from tokenbus.worker.bench.load.workload import Workload
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path


def _options(*argv: str) -> BenchOptions:
    return options_of(build_parser().parse_args(argv))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Write a trace of ten jobs a second for ten seconds."""
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp_ms": 100 * n, "input_length": 80 * n, "output_length": 16})
            + "\n"
            for n in range(100)
        )
    )
    return str(path)


def test_poisson_arrivals_keep_their_rate_and_repeat() -> None:
    """The number is that of the rate within four deviations; a seed repeats every time."""
    options = BenchOptions(arrival="poisson", rate=50, duration_s=40)
    found = arrivals(options)
    assert abs(len(found) - 2000) < 4 * 2000**0.5
    assert found == arrivals(options)
    assert found != arrivals(options.replace(seed=1))
    assert [a.at_s for a in found] == sorted(a.at_s for a in found)


def test_burst_multiplies_the_rate_in_its_phase() -> None:
    """Calm and burst take turns; the burst has ten times the arrivals a second."""
    options = BenchOptions(arrival="burst", rate=10, calm_s=20, burst_s=20, duration_s=60)
    phases = [a.phase for a in arrivals(options)]
    assert phases == sorted(phases[: phases.index("burst")]) + ["burst"] * phases.count("burst") + [
        "calm"
    ] * (phases.count("calm") - phases.index("burst"))
    assert phases.count("burst") / phases.count("calm") == pytest.approx(5, rel=0.35)


def test_trace_is_scaled_capped_and_has_its_peak(trace: str) -> None:
    """Twice as fast, and four times that in the peak; lengths are divided, then capped."""
    options = _options(
        "--trace", trace, "--time-scale", "2", "--length-scale", "8", "--cap", "100",
        "--peak-factor", "4", "--peak-at-s", "1", "--peak-s", "0.5",
    )  # fmt: skip
    found = arrivals(options)
    assert len(found) == 100
    assert [a.at_s for a in found] == sorted(a.at_s for a in found)
    inside = [a for a in found if a.phase == "peak"]
    assert len(inside) == 40
    assert (inside[0].at_s, found[-1].at_s) == pytest.approx((1.0, 9.9 / 2 - 1.5))
    rows = read_trace(options)
    assert (rows[3].input_tokens, rows[50].input_tokens, rows[99].input_tokens) == (30, 100, 100)
    job = Workload(options).job(3)
    assert (len(job.token_ids or ()), job.max_tokens) == (30, 2)


def test_load_scales_arrivals_to_the_capacity(trace: str) -> None:
    """Half the capacity of 30 jobs/s is 15 jobs/s, for a rate and for a trace."""
    assert scaled(BenchOptions(load=0.5), 30).rate == 15
    options = scaled(_options("--trace", trace, "--load", "0.5"), 30)
    assert len(arrivals(options)) / arrivals(options)[-1].at_s == pytest.approx(15, rel=0.02)


def test_broken_trace_names_the_line(tmp_path: Path) -> None:
    """What cannot be read is named before anything starts."""
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp_ms": 1, "input_length": 1, "output_length": 1}\n{"nothing": 1}\n')
    with pytest.raises(SettingsInvalid, match="--trace: line 2"):
        arrivals(_options("--trace", str(path)))


def test_prompts_have_exact_lengths_and_share_what_they_should() -> None:
    """Jobs of a group begin alike, others do not; own tokens differ; every process agrees."""
    options = _options(
        "--shared-tokens", "100", "--groups", "2", "--prompt-tokens", "7-9",
        "--output-tokens", "3-5", "--tenants", "3", "--priorities", "1,0,1",
    )  # fmt: skip
    workload = Workload(options)
    jobs = [workload.job(number) for number in range(60)]
    ids = [job.token_ids or [] for job in jobs]
    assert ids[0][:100] == ids[2][:100] != ids[1][:100]
    assert len({tuple(own[100:]) for own in ids}) == 60
    assert {len(own) for own in ids} == {107, 108, 109}
    assert {job.max_tokens for job in jobs} == {3, 4, 5}
    assert {job.priority for job in jobs} == {0, 2}
    assert {job.tenant for job in jobs} == {"tenant-0", "tenant-1", "tenant-2"}
    assert Workload(options).job(17) == jobs[17]


def test_messages_say_what_the_ids_would() -> None:
    """What a group shares is the system message; the null engine's texts have an id a character."""
    argv = ("--shared-tokens", "100", "--groups", "2", "--prompt-tokens", "7-9")
    as_ids, as_messages = Workload(_options(*argv)), Workload(_options(*argv, "--messages"))
    jobs = [as_messages.job(number) for number in range(20)]
    for number, job in enumerate(jobs):
        plain = as_ids.job(number)
        assert job.messages is not None
        system, user = job.messages
        assert (system["role"], user["role"]) == ("system", "user")
        assert len(system["content"]) + len(user["content"]) == len(plain.token_ids or ())
        assert (job.token_ids, job.seed, job.max_tokens) == (None, plain.seed, plain.max_tokens)
    heads = [job.messages[0]["content"] for job in jobs if job.messages]
    assert heads[0] == heads[2] != heads[1]
    assert "messages" in jobs[0].fields(0.6)
    alone = Workload(_options("--messages")).job(0).messages or []
    assert [message["role"] for message in alone] == ["user"]


@pytest.mark.parametrize("count", [2, 26, 27, 676])
def test_labels_are_told_apart_to_their_end(count: int) -> None:
    """As many labels as asked for, none twice, none the beginning of another; as a grammar."""
    job = Workload(_options("--choice", str(count))).job(3)
    assert len(set(job.labels)) == count
    assert len({len(label) for label in job.labels}) == 1
    grammar = job.fields(0.6)["grammar"]
    assert grammar["kind"] == "choice"
    assert json.loads(grammar["source"]) == list(job.labels)


def test_runs_of_one_engine_share_neither_pages_nor_seeds() -> None:
    """A second run draws other ids, other seeds and another cache group."""
    first, second = (Workload(BenchOptions(run_idx=idx)).job(5) for idx in (0, 1))
    assert first.token_ids != second.token_ids
    assert first.seed != second.seed
    assert first.cache_group != second.cache_group


def test_retail_customers_stand_behind_one_policy(tmp_path: Path) -> None:
    """The system prompt comes first and is the same for all; as text it is messages with tools."""
    path = tmp_path / "retail.json"
    wire = {
        "policy_system_prompt": "Be kind. " * 50,
        "tools": [{"type": "function", "function": {"name": "refund", "parameters": {}}}],
        "tasks_test": [{"instruction": "My boots leak."}],
        "tasks_dev": [],
        "train_instructions": ["Where is my order?"],
    }
    path.write_text(json.dumps(wire))
    options = _options("--workload", "retail", "--retail-file", str(path))
    assert (options.arrival, options.tenants, options.burst_factor) == ("burst", 20, 10)
    jobs = [Workload(options).job(number) for number in range(4)]
    heads = {tuple((job.token_ids or [])[:110]) for job in jobs}
    assert len(heads) == 1
    assert len({tuple(job.token_ids or []) for job in jobs}) == 4
    assert len({job.cache_group for job in jobs}) == 1
    as_text = Workload(options.replace(as_text=True)).job(1)
    assert as_text.token_ids is None
    assert as_text.messages is not None
    assert as_text.messages[0]["content"] == wire["policy_system_prompt"]
    assert as_text.tools == wire["tools"]


def test_every_option_has_help_with_its_default() -> None:
    """Each option says what it does, and its default or that it is required."""
    for action in build_parser()._actions:
        if action.dest != "help":
            assert "(default" in str(action.help) or "(required" in str(action.help), action.dest


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--rate", "0"], "--rate"),
        (["--engine", "paged"], "--model"),
        (["--workload", "retail"], "--retail-file"),
        (["--arrival", "trace"], "--trace"),
        (["--trace", "/nowhere"], "--trace"),
        (["--priorities", "0,0,0"], "--priorities"),
        (["--prompt-tokens", "9-3"], "--prompt-tokens"),
        (["--json", "/nowhere/figures.json"], "--json"),
        (["--offline-compare", "--jobs", "4", "--arrival", "poisson"], "--offline-compare"),
        (["--users", "4", "--load", "1"], "--load"),
        (["--arrival", "at-once"], "--jobs"),
        (["--choice", "1"], "--choice"),
        (["--plain-readers", "101"], "--plain-readers"),
        (["--plain-readers", "1", "--no-check"], "--plain-readers"),
        (["--workload", "retail", "--retail-file", __file__, "--messages"], "--messages"),
        (
            ["--workload", "retail", "--retail-file", __file__, "--as-text", "--choice", "3"],
            "--choice",
        ),
    ],
)
def test_nonsense_is_refused_by_the_options_name(argv: list[str], named: str) -> None:
    """A wrong value stops before anything starts and says which option it was."""
    with pytest.raises(SettingsInvalid, match=named):
        _options(*argv)


def test_workload_that_there_is_not_is_refused() -> None:
    """A bench in Python that asks for an unknown one is told so, and measures no other."""
    with pytest.raises(SettingsInvalid, match="--workload: nano16 is none of"):
        BenchOptions(workload="nano16")


def test_generated_tokenizer_has_text_for_every_id(tmp_path: Path) -> None:
    """The vocabulary is complete, each id has a character, and text survives the round trip."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 5000}')
    (model / "tokenizer.json").write_text("not ours")
    made = tmp_path / "made"
    made.mkdir()
    clothe(model, made)
    refuse_outside(made)
    assert (made / "config.json").read_text() == '{"vocab_size": 5000}'
    assert (made / "tokenizer.json").read_text() != "not ours"
    tokenizer = build_generated_tokenizer(5000)
    assert len(tokenizer) == 5000
    assert all(len(tokenizer.decode([token_id])) >= 1 for token_id in range(5000))
    text = "Two pairs of boots, née 43½?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < len(text.encode())
