"""Settings of a worker: bounds, names and where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.commands import cli
from tokenbus.producer.errors import ClientSettingsInvalid, ProducerError
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def test_value_out_of_bounds_names_the_setting() -> None:
    """A bad value is one sentence with the setting's name."""
    with pytest.raises(SettingsInvalid, match="num_pages: "):
        WorkerSettings.load(num_pages=0)
    with pytest.raises(SettingsInvalid, match="pagesize: "):
        WorkerSettings.load(pagesize=16)
    with pytest.raises(SettingsInvalid, match="renew_interval_s: three of 2 s"):
        WorkerSettings.load(renew_interval_s=2, lease_ttl_s=5)


def test_environment_counts_and_arguments_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOKENBUS_* sets what no argument does; an argument of None is none."""
    monkeypatch.setenv("TOKENBUS_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("TOKENBUS_POOL", "from-env")
    settings = WorkerSettings.load(pool="given", max_num_seqs=None)
    engine = settings.engine_config()
    assert (settings.pool, engine.max_num_seqs) == ("given", 7)


def test_engine_gets_what_was_set_and_its_own_defaults_else() -> None:
    """Fields left open stay the engine's; the null engine takes its sizes from the same names."""
    engine = WorkerSettings.load(model="m", num_pages=10, dtype="float32").engine_config()
    assert engine == EngineConfig("m", num_pages=10, dtype="float32")
    assert engine.max_num_seqs == 256
    null = WorkerSettings.load(engine="null", num_pages=10, null_tokens_per_s=5).engine_config()
    assert null == NullConfig(num_pages=10, tokens_per_s=5)


@pytest.mark.parametrize("settings", [ClientSettings, WorkerSettings.load, ControlSettings.load])
def test_empty_variable_is_one_that_is_not_set(
    settings: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a compose file passes those that its host does not have, of whatever type."""
    wanted = settings()
    fields = {*ClientSettings.model_fields, *WorkerSettings.model_fields}
    for name in fields | set(ControlSettings.model_fields):
        monkeypatch.setenv(f"TOKENBUS_{name.upper()}", "")
    assert settings() == wanted


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("retry_for_s", "soon", "retry_for_s: .* number"),
        ("tenant_weights", "shop=3", "tenant_weights.* JSON"),
        ("cache_groups", '{"promo": 3}', "cache_groups.promo"),
        ("silence_s", "99", "silence_s"),
    ],
)
async def test_wrong_setting_of_a_client_is_an_error_of_ours(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name and without its value, from the variable and from the caller."""
    monkeypatch.setenv(f"TOKENBUS_{name.upper()}", value)
    with pytest.raises(ClientSettingsInvalid, match=why) as caught:
        await AsyncClient.connect("embedded://")
    assert isinstance(caught.value, ProducerError)
    assert value not in str(caught.value)
    assert cli.main(["status"]) == 2
    monkeypatch.delenv(f"TOKENBUS_{name.upper()}")
    with pytest.raises(ClientSettingsInvalid, match=name):
        ClientSettings(**{name: value})
