"""Sampling defaults of a checkpoint: read from its files, and used where nobody chose."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel

from tokenbus.engine.llm import LLM
from tokenbus.engine.sampling.checkpoint_defaults import sampling_defaults
from tokenbus.engine.types import SamplingDefaults, SamplingParams

if TYPE_CHECKING:
    from pathlib import Path


def test_fields_that_a_request_has_too_are_defaults() -> None:
    """Whole numbers stand for numbers; what is no field of a request is no default."""
    told = {"temperature": 1, "top_k": 20, "top_p": 0.8, "min_p": 0, "repetition_penalty": 1.05}
    found = sampling_defaults({**told, "do_sample": False, "max_new_tokens": 9, "typical_p": 0.9})
    assert found == SamplingDefaults(1.0, 20, 0.8, 0.0, 1.05)
    assert type(found.temperature) is float
    assert sampling_defaults({"top_k": -1, "temperature": None}) == SamplingDefaults(top_k=0)
    assert sampling_defaults({}).given() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "0.6"),
        ("temperature", [0.6]),
        ("temperature", float("nan")),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("repetition_penalty", 0),
    ],
)
def test_number_that_no_request_could_ask_for_is_left_out(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Anything outside the bounds of a request is left out, and the log names the field."""
    assert sampling_defaults({name: value, "min_p": 0.1}) == SamplingDefaults(min_p=0.1)
    assert name in caplog.text


def test_given_number_wins_though_it_is_the_default() -> None:
    """A field that was given, whatever the number, is not open; `replace` keeps others open."""
    defaults = SamplingDefaults(temperature=0.6, top_k=20, top_p=1.0)
    assert SamplingParams().open_among(defaults) == {"temperature": 0.6, "top_k": 20}
    assert SamplingParams(temperature=1.0, top_k=0).open_among(defaults) == {}
    changed = replace(SamplingParams(temperature=1.0), seed=4)
    assert changed.open_among(defaults) == {"top_k": 20}


def test_offline_answers_follow_the_checkpoint_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Left out, the checkpoint's temperature of 0 makes answers greedy, and the output tells it."""
    model = TinyModel(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    sizes: dict[str, Any] = {"dtype": "float32", "num_pages": 20, "max_num_seqs": 4}
    caplog.set_level(logging.INFO, "tokenbus.engine")
    llm = LLM(tmp_path, **sizes)
    assert "sampling.defaults: temperature 0" in caplog.text
    greedy = model.greedy("good morning", 12)
    asked = [
        SamplingParams(max_tokens=12, seed=5),
        SamplingParams(max_tokens=12, seed=5, temperature=1.0),
    ]
    left_out, given = llm.generate(["good morning"] * 2, asked, progress=False)
    llm.close()
    assert (left_out.token_ids, left_out.sampling) == (greedy, {"temperature": 0.0})
    assert (given.token_ids == greedy, given.sampling) == (False, {})
    plain = LLM(tmp_path, generation_config="none", **sizes)
    (output,) = plain.generate("good morning", asked[0], progress=False)
    plain.close()
    assert (output.token_ids, output.sampling) == (given.token_ids, {})
