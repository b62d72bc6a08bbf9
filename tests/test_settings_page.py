"""Settings: the page is made of them, the file gives them, and `config show` tells no secret."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest
from house import settings_page
from house.settings_page import PAGE

from tokenbus.producer.commands.cli import main, settings_classes
from tokenbus.producer.config_file import CONFIG_VARIABLE
from tokenbus.producer.errors import ClientSettingsInvalid
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.doctor.config_command import effective
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a file that the environment names."""
    path = tmp_path / "tokenbus.toml"
    path.write_text(EXAMPLE)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def test_page_is_made_of_the_settings() -> None:
    """Every setting stands on the page with what it means; `house.settings_page` writes it."""
    assert settings_page.written() == PAGE.read_text(encoding="utf-8")
    for section, settings in settings_classes().items():
        assert set(settings_page.meanings(settings)) >= set(settings.model_fields), section


def test_file_gives_settings_and_others_go_first(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, then variables, then the section, then the top, then the default."""
    assert tomllib.loads(EXAMPLE)["pool"] == "shop"
    worker = WorkerSettings.load()
    assert (worker.pool, worker.model, worker.metrics_port) == ("shop", "/models/qwen3-8b", 9400)
    assert GatewaySettings.load().gateway_aliases == {"gpt-4o-mini": "shop"}
    assert ClientSettings().tenant_weights == {"acme": 2.0}
    file.write_text("lease_ttl_s = 6\nmax_pull_jobs = 5\n[worker]\nmax_pull_jobs = 7\n")
    assert (WorkerSettings.load().lease_ttl_s, WorkerSettings.load().max_pull_jobs) == (6, 7)
    monkeypatch.setenv("TOKENBUS_MAX_PULL_JOBS", "8")
    assert WorkerSettings.load().max_pull_jobs == 8
    assert WorkerSettings.load(max_pull_jobs=9).max_pull_jobs == 9
    monkeypatch.setenv("TOKENBUS_MAX_PULL_JOBS", "")
    assert WorkerSettings.load().max_pull_jobs == 7
    assert WorkerSettings.load().max_prompt_bytes == 8 * 2**20


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[worker]\nmodle = 'x'", "modle"),
        ("[worker]\nmax_pull_jobs = 0", "max_pull_jobs"),
        ("pool = ", "is no TOML"),
        ("worker = 3", "worker is a section"),
        ("[tenant_weights]\na = 1", "stands in a section"),
        ("pool = 'a b'", "pool"),
    ],
)
def test_file_that_is_wrong_is_refused_by_name(file: Path, text: str, told: str) -> None:
    """A worker does not start with what it does not understand, and says which name that is."""
    file.write_text(text)
    with pytest.raises(SettingsInvalid, match=told):
        WorkerSettings.load()


def test_command_refuses_a_name_that_no_process_knows(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the top of the file a typo would be nobody's setting: each command looks for it."""
    monkeypatch.delenv(CONFIG_VARIABLE)
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    file.write_text("redis_ulr = 'x'")
    assert main(["--config", str(file), "config", "show"]) == 2
    assert "redis_ulr is no setting" in capsys.readouterr().err
    file.write_text("[gateway]\nmodel = 'x'")
    assert main(["--config", str(file), "status"]) == 2
    assert "[gateway] has no setting model" in capsys.readouterr().err
    assert main(["--config", str(file.with_name("gone")), "status"]) == 2
    with pytest.raises(ClientSettingsInvalid, match="gone"):
        ClientSettings()


def test_config_show_tells_sources_and_no_secret(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value has its source; passwords, keys and URLs that may hold them are not printed."""
    file.write_text(
        "redis_url = 'redis://:sesame@valkey:6379/0'\n"
        "[gateway]\ngateway_api_keys = ['sesame-key']\nfiles_url = 's3://a:sesame@b'\n"
        "[control]\narq_redis_url = 'redis://:sesame@x'\n[control.webhook_keys]\n"
        "acme = 'whsec_c2VzYW1lc2VzYW1lc2VzYW1l'\n"
    )
    monkeypatch.setenv("TOKENBUS_GATEWAY_PORT", "8100")
    printed = ""
    for process in settings_classes():
        assert main(["config", "show", process, "--json"]) == 0
        told = capsys.readouterr().out
        printed += told
        found = {each["name"]: (each["value"], each["source"]) for each in json.loads(told)}
        assert found["redis_url"] == ("redis://***@valkey:6379/0", str(file))
        assert set(found) == set(settings_classes()[process].model_fields)
    assert "sesame" not in printed
    assert "c2VzYW1l" not in printed
    shown = {each.name: each.source for each in effective(GatewaySettings)}
    assert shown["gateway_api_keys"] == f"{file} [gateway]"
    assert shown["gateway_port"] == "TOKENBUS_GATEWAY_PORT"
    assert shown["gateway_host"] == "default"
    assert main(["config", "show", "gateway", "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == [
        *("files_url", "gateway_api_keys", "gateway_port", "redis_url"),
    ]
