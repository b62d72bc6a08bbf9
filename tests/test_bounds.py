"""Bounds and defaults that several sides know: request, queue, settings, options, engine."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from importlib import resources
from typing import Any

import pytest

from tokenbus.engine.config import EngineConfig, EngineSetting, engine_settings
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.sampling.validation import validate_sampling
from tokenbus.engine.types import SamplingParams
from tokenbus.producer.commands import cli
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.contract.schema import MAX_TOKENS_LIMIT, SEED_BITS, JobRequest
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings

SETTINGS = engine_settings()
BOUNDED = [setting for setting in SETTINGS.values() if setting.bounds is not None]
CHOSEN = [setting for setting in SETTINGS.values() if setting.choices is not None]
VOCAB_SIZE = 2**31
REQUEST = JobRequest.model_json_schema()["properties"]
LUA_LIMITS = {
    name: (float(low), float(high))
    for name, low, high in re.findall(
        r"\{ '(\w+)', (\S+), (\S+) \}",
        (resources.files("tokenbus.producer.scripts") / "lua/lib/entry.lua").read_text(),
    )
}


def _outside(setting: EngineSetting) -> tuple[float, float]:
    assert setting.bounds is not None
    low, high = setting.bounds
    if setting.kind is int:
        return low - 1, high + 1
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


def _other(setting: EngineSetting) -> Any:
    """Return a value that is not the default."""
    if setting.bounds is not None:
        return setting.kind(setting.bounds[1])
    if setting.choices is not None:
        return setting.choices[-1]
    return "cuda:1" if setting.kind is str else not setting.default


def _engine(settings: WorkerSettings) -> EngineConfig:
    config = settings.engine_config()
    assert isinstance(config, EngineConfig)
    return config


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_worker_takes_what_the_engine_takes(setting: EngineSetting) -> None:
    """Both ends of the bounds reach the engine; what lies past them is refused on both sides."""
    assert setting.bounds is not None
    for value in setting.bounds:
        given: Any = {setting.name: value}
        assert _engine(WorkerSettings.load(**given)) == EngineConfig("smollm2-135m", **given)
    for value in _outside(setting):
        given = {setting.name: value}
        with pytest.raises(SettingsInvalid, match=f"^{setting.name}: "):
            WorkerSettings.load(**given)
        with pytest.raises(RequestRejected, match=f"^{setting.name}: .*is outside"):
            EngineConfig("m", **given)


@pytest.mark.parametrize("setting", CHOSEN, ids=lambda setting: setting.name)
def test_choices_are_the_engines(setting: EngineSetting) -> None:
    """A text that is none of the choices is refused on both sides, by the field's name."""
    assert setting.choices is not None
    for choice in setting.choices:
        given: Any = {setting.name: choice}
        assert _engine(WorkerSettings.load(**given)) == EngineConfig("smollm2-135m", **given)
    given = {setting.name: "int3"}
    with pytest.raises(SettingsInvalid, match=f"^{setting.name}: "):
        WorkerSettings.load(**given)
    with pytest.raises(RequestRejected, match=f"^{setting.name}: int3 is not {setting.choices[0]}"):
        EngineConfig("m", **given)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_variable_reaches_the_engine(
    setting: EngineSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TOKENBUS_` and the field's name sets the field; what is not set keeps the default."""
    plain = EngineConfig("smollm2-135m")
    assert _engine(WorkerSettings.load()) == plain
    value = _other(setting)
    monkeypatch.setenv(f"TOKENBUS_{setting.name.upper()}", str(value))
    assert _engine(WorkerSettings.load()) == replace(plain, **{setting.name: value})


@pytest.mark.parametrize(
    "setting",
    [setting for setting in SETTINGS.values() if setting.option],
    ids=lambda setting: setting.name,
)
def test_option_sets_the_engines_setting(setting: EngineSetting) -> None:
    """An option that the engine declares is one of `tokenbus worker`."""
    value = _other(setting)
    args = cli.build_parser().parse_args(["worker", setting.option, str(value)])
    assert vars(args)[setting.name] == value


@pytest.mark.parametrize("name", [item.name for item in fields(SamplingParams)])
def test_request_means_what_the_engine_means(name: str) -> None:
    """Sampling fields have the same defaults on both sides; an open seed is drawn."""
    asked: Any = JobRequest.model_fields[name].get_default(call_default_factory=True)
    if name == "seed":
        assert asked is None
    elif isinstance(asked, list | dict):
        assert not asked
        assert not getattr(SamplingParams(), name)
    else:
        assert asked == getattr(SamplingParams(), name)


@pytest.mark.parametrize("name", [name for name in REQUEST if hasattr(SamplingParams(), name)])
def test_engine_takes_what_a_request_may_say(name: str) -> None:
    """No number within the bounds of the wire is out of the engine's."""
    said = REQUEST[name]
    choices = [said, *said.get("anyOf", ())]
    bounds = [choice[end] for choice in choices for end in ("minimum", "maximum") if end in choice]
    for value in bounds:
        needed = SamplingParams(max_tokens=MAX_TOKENS_LIMIT)
        validate_sampling(replace(needed, **{name: value}), VOCAB_SIZE)


def test_engine_takes_as_many_ids_as_a_request_may_name() -> None:
    """Lists of a request fit the engine's tables, where the model has no stop tokens itself."""
    many: dict[str, Any] = {
        "logit_bias": dict.fromkeys(range(REQUEST["logit_bias"]["maxProperties"]), 1.0),
        "bad_words": tuple((i,) for i in range(REQUEST["bad_words"]["maxItems"])),
        "stop_token_ids": tuple(range(REQUEST["stop_token_ids"]["maxItems"])),
    }
    validate_sampling(SamplingParams(**many), VOCAB_SIZE)


def test_queue_takes_what_a_request_may_say() -> None:
    """An entry of a request is never taken for a stranger's, and the class is one there is."""
    assert LUA_LIMITS["n"] == (REQUEST["n"]["minimum"], REQUEST["n"]["maximum"])
    assert LUA_LIMITS["output"][0] == REQUEST["max_tokens"]["minimum"]
    assert LUA_LIMITS["output"][1] >= MAX_TOKENS_LIMIT
    assert LUA_LIMITS["logged"][1] >= MAX_TOKENS_LIMIT * REQUEST["n"]["maximum"]
    assert REQUEST["priority"]["maximum"] == NUM_PRIORITIES - 1
    longest = SETTINGS["max_model_len"].bounds
    assert longest is not None
    assert LUA_LIMITS["prompt"][1] >= longest[1] >= MAX_TOKENS_LIMIT


def test_seed_of_a_request_is_drawn_within_its_bounds() -> None:
    """What is drawn could have been given."""
    assert REQUEST["seed"]["anyOf"][0]["exclusiveMaximum"] == 2**SEED_BITS


def test_variable_that_several_read_has_one_default() -> None:
    """Client, worker and control service agree where one environment configures them all."""
    sides = (ClientSettings, WorkerSettings, ControlSettings)
    for name in {name for side in sides for name in side.model_fields}:
        defaults = {repr(s.model_fields[name].default) for s in sides if name in s.model_fields}
        assert len(defaults) == 1, name
