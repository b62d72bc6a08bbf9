"""Settings of a worker: bounds, names and where they come from."""

from __future__ import annotations

import pytest

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings


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
