"""Bounds and defaults that several sides know: request, queue, settings, options, engine."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from importlib import resources
from typing import Any, get_type_hints

import pytest

from tokenbus.engine.chat.requests import bounds
from tokenbus.engine.config import EngineConfig, EngineSetting, engine_settings
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.offline.offline_request import OfflineRequest
from tokenbus.engine.sampling.validation import validate_sampling
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingDefaults, SamplingParams
from tokenbus.producer.commands import cli
from tokenbus.producer.contract.bounds import CHECKPOINT_FIELDS, DEFAULTS
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.contract.schema import SEED_BITS, JobRequest
from tokenbus.producer.errors import RequestInvalid
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


def test_every_number_of_the_engine_has_a_bound() -> None:
    """What the engine takes as a number the table knows, and nothing else."""
    numbers = {name for name, kind in get_type_hints(SamplingParams).items() if _is_number(kind)}
    assert set(bounds.NUMBERS) == numbers


def _is_number(kind: Any) -> bool:
    return kind in (int, float, int | None)


# What the doors take in another spelling, and the engine behind them does not.
SPELLINGS: list[tuple[str, Any]] = [("top_k", -1), ("logprobs", True)]


def _is_spelling(field: str, value: Any) -> bool:
    """Tell whether a value means something at the doors: null is the default of every field."""
    if value is None or (field, value) in [each for each in SPELLINGS if each[1] is value]:
        return True
    is_keyed = field == "logit_bias" and isinstance(value, dict)
    return is_keyed and all(isinstance(key, str) and key.isdecimal() for key in value)


def _at_doors(field: str, value: Any) -> str | None:
    """Return the field that queue and offline API refuse with this value, in one sentence."""
    given = {"max_tokens": bounds.NUMBERS["max_tokens"].high, field: value}
    told = []
    try:
        JobRequest.build(prompt="x", **given)
    except RequestInvalid as error:
        told.append((str(error), error.field))
    try:
        OfflineRequest.of(given, (), is_chat=False)
    except RequestRejected as error:
        told.append((str(error), error.field))
    assert not told or told[1:] == told[:1], told
    return told[0][1].split(".")[0] if told else None


def _at_engine(field: str, value: Any) -> str | None:
    """Return the field that the engine refuses with this value, if it does."""
    needed: Any = {"max_tokens": bounds.NUMBERS["max_tokens"].high} | {field: value}
    try:
        validate_sampling(SamplingParams(**needed), VOCAB_SIZE)
    except RequestRejected as error:
        return error.field.split(".")[0]
    return None


def _check_value(field: str, value: Any, *, may_pass: bool) -> None:
    expected = None if may_pass else field
    if not _is_spelling(field, value):
        assert (_at_doors(field, value), _at_engine(field, value)) == (expected, expected), value
    else:
        assert _at_doors(field, value) is None, value


def _edges(bound: Any) -> list[tuple[Any, bool]]:
    """Return values at and beside both ends, and what is no number, with whether they may pass."""
    low, high, is_int = bound.low, bound.high, bound.kind is int
    under = low - 1 if is_int else math.nextafter(low, -math.inf)
    above = low + 1 if is_int else math.nextafter(low, math.inf)
    over = high + 1 if is_int else math.nextafter(high, math.inf)
    wrong: list[Any] = [
        under,
        over,
        -(10**400),
        10**400,
        True,
        "1",
        math.nan,
        math.inf,
        -math.inf,
        [1],
        {},
    ]
    wrong += [1e300, -1e300, *([1.5, 1.0] if is_int else [])]
    right = [above, high, *([] if bound.is_open else [low])]
    return [(value, True) for value in right] + [
        (value, False) for value in [*wrong, *([low] if bound.is_open else [])]
    ]


@pytest.mark.parametrize("field", bounds.NUMBERS)
def test_both_doors_agree_on_a_number(field: str) -> None:
    """At every edge and for every wrong type queue and offline API refuse by one sentence.

    The engine behind them refuses the same field.
    """
    for value, may_pass in _edges(bounds.NUMBERS[field]):
        _check_value(field, value, may_pass=may_pass)


LISTS: dict[str, list[tuple[Any, bool]]] = {
    "logit_bias": [
        *(({7: value}, may_pass) for value, may_pass in _edges(bounds.LOGIT_BIAS)),
        *(
            ({value: 1.0}, ok)
            for value, ok in _edges(bounds.TOKEN_ID)
            if not isinstance(value, (list, dict))
        ),
        (dict.fromkeys(range(bounds.MAX_LOGIT_BIAS), 1.0), True),
        (dict.fromkeys(range(bounds.MAX_LOGIT_BIAS + 1), 1.0), False),
        ([7], False),
        (None, False),
    ],
    "bad_words": [
        *(([[value]], may_pass) for value, may_pass in _edges(bounds.TOKEN_ID)),
        ([[1]] * bounds.MAX_BAD_WORDS, True),
        ([[1]] * (bounds.MAX_BAD_WORDS + 1), False),
        ([[1] * bounds.MAX_BAD_WORD_LENGTH], True),
        ([[1] * (bounds.MAX_BAD_WORD_LENGTH + 1)], False),
        ([[]], False),
        ([1], False),
        (None, False),
    ],
    "stop_token_ids": [
        *(([value], may_pass) for value, may_pass in _edges(bounds.TOKEN_ID)),
        (list(range(bounds.MAX_STOP_IDS)), True),
        (list(range(bounds.MAX_STOP_IDS + 1)), False),
        ("12", False),
        (None, False),
    ],
    "stop": [
        (["x"] * bounds.MAX_STOPS, True),
        (["x"] * (bounds.MAX_STOPS + 1), False),
        (["x" * bounds.MAX_STOP_LENGTH], True),
        (["x" * (bounds.MAX_STOP_LENGTH + 1)], False),
        ([""], False),
        ([1], False),
        (None, False),
    ],
    "include_stop": [(True, True), (1, False), ("true", False), (None, False)],
    "ignore_eos": [(True, True), (1, False), ("true", False), (None, False)],
}


@pytest.mark.parametrize("field", LISTS)
def test_both_doors_agree_on_a_list(field: str) -> None:
    """Counts, lengths and each entry: queue and engine say the same, by the field."""
    for value, may_pass in LISTS[field]:
        _check_value(field, value, may_pass=may_pass)


def test_both_doors_agree_on_a_grammar() -> None:
    """A source of every kind has the same longest length on both sides."""
    longest = bounds.MAX_GRAMMAR_LENGTH
    for length, may_pass in ((0, False), (1, True), (longest, True), (longest + 1, False)):
        expected = None if may_pass else "grammar"
        for kind in GrammarKind:
            source = "x" * length
            spec = GrammarSpec(kind, source)
            wire = {"kind": kind.value, "source": source}
            assert (_at_doors("grammar", wire), _at_engine("grammar", spec)) == (expected, expected)


def test_queue_takes_what_a_request_may_say() -> None:
    """An entry of a request is never taken for a stranger's, and the class is one there is."""
    assert LUA_LIMITS["n"] == (REQUEST["n"]["minimum"], REQUEST["n"]["maximum"])
    # What generates nothing counts as one token.
    assert LUA_LIMITS["output"][0] == 1 + REQUEST["max_tokens"]["minimum"]
    assert LUA_LIMITS["output"][1] >= bounds.NUMBERS["max_tokens"].high
    assert LUA_LIMITS["logged"][1] >= bounds.NUMBERS["max_tokens"].high * REQUEST["n"]["maximum"]
    assert REQUEST["priority"]["maximum"] == NUM_PRIORITIES - 1
    longest = SETTINGS["max_model_len"].bounds
    assert longest is not None
    assert LUA_LIMITS["prompt"][1] >= longest[1] >= bounds.NUMBERS["max_tokens"].high


def test_seed_of_a_request_is_drawn_within_its_bounds() -> None:
    """What is drawn could have been given."""
    assert REQUEST["seed"]["anyOf"][0]["maximum"] == 2**SEED_BITS - 1


def test_variable_that_several_read_has_one_default() -> None:
    """Client, worker and control service agree where one environment configures them all."""
    sides = (ClientSettings, WorkerSettings, ControlSettings)
    for name in {name for side in sides for name in side.model_fields}:
        defaults = {repr(s.model_fields[name].default) for s in sides if name in s.model_fields}
        assert len(defaults) == 1, name


def test_every_door_has_the_defaults_of_one_table() -> None:
    """Python, a raw entry, the command line and the offline API leave open what the table says."""
    request, offline = JobRequest(prompt="x"), SamplingParams()
    raw = JobRequest.parse('{"prompt": "x"}')
    parsed = vars(cli.build_parser().parse_args(["submit", "x"]))
    assert set(DEFAULTS) == set(bounds.NUMBERS)
    for name, default in DEFAULTS.items():
        assert getattr(request, name) == getattr(raw, name) == default
        assert getattr(offline, name) == default
        # What the checkpoint may say otherwise is left to it.
        shown = None if name in CHECKPOINT_FIELDS else default
        assert parsed.get(name, shown) == shown
    assert set(SamplingDefaults.__dataclass_fields__) == CHECKPOINT_FIELDS
    assert {"max_tokens", "temperature", "top_k", "top_p", "seed"} <= set(parsed)
    for name in ("tenant", "priority", "stop", "deadline_s", "idempotency_key", "callback_url"):
        assert parsed[name] == getattr(request, name)
