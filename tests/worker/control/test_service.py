"""How the control service starts, stops and is checked, as an operator sees it."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from aiohttp import web
from patience import PATIENCE_S
from servers.ports import free_port
from workers.control_processes import KEY, control_process, receiver

from tokenbus.producer.commands.cli import main
from tokenbus.producer.scripts.control import WebhookState
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from workers.control_processes import Call

    from tokenbus.producer.client.async_client import AsyncClient


async def _check(redis_url: str, pool: str) -> int:
    """Ask for the health of the service as its container does."""
    return await asyncio.to_thread(main, ["control", "check", "--redis", redis_url, "--pool", pool])


async def test_service_delivers_and_is_healthy_and_stops_in_order(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """A job's end is told by the service as started from the command line; SIGTERM ends it well."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"default": KEY}))
    assert await _check(redis_url, pool) == 1
    async with (
        receiver() as shop,
        control_process(
            pool,
            redis_url,
            "--webhook-keys",
            str(keys),
            webhook_allowed_networks='["127.0.0.1/32"]',
        ) as service,
        asyncio.timeout(PATIENCE_S),
    ):
        job = await client.submit("x", callback_url=shop.url())
        await client.cancel(job.job_id)
        await service.until_logged("webhook.tried")
        while await _check(redis_url, pool) != 0:
            pass
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
    hook = await client.webhook(job.job_id)
    assert hook is not None
    assert hook.state is WebhookState.DELIVERED
    [call] = shop.calls
    assert call.message["finish"]["reason"] == "cancelled"
    assert call.message["tenant"] == "default"
    assert service.logged("control.stopped")
    assert KEY not in json.dumps(service.lines)


async def test_metrics_tell_what_became_of_webhooks(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A scrape of the port asked for counts the tries by what followed, and the ticks of crons."""

    async def answer(call: Call) -> web.Response:
        return web.Response(status=503 if call.headers["tokenbus-try"] == "1" else 200)

    port = free_port()
    async with (
        receiver(answer) as shop,
        control_process(
            pool,
            redis_url,
            "--metrics-port",
            str(port),
            webhook_keys=json.dumps({"default": KEY}),
            webhook_allowed_networks='["127.0.0.1/32"]',
            webhook_backoff_s=0.02,
        ) as service,
        asyncio.timeout(PATIENCE_S),
    ):
        job = await client.submit("x", callback_url=shop.url())
        await client.cancel(job.job_id)
        await service.until_logged("webhook.tried", 2)
        text = await asyncio.to_thread(_scrape, port)
    for outcome, number in (("retried", 1), ("delivered", 1), ("expired", 0)):
        labels = f'outcome="{outcome}",pool="{pool}"'
        assert f"tokenbus_webhook_tries_total{{{labels}}} {number}.0" in text
    assert "tokenbus_cron_ticks" in text


def _scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as reply:
        text: str = reply.read().decode()
    return text


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"webhook_keys": {"shop": "short"}}, "webhook_keys.shop"),
        ({"webhook_keys": {"shop": f"{KEY} short"}}, "webhook_keys.shop"),
        ({"webhook_keys": {"shop": ""}}, "webhook_keys.shop"),
        ({"webhook_keys": {"shop": "whsec_c2hvcnQ="}}, "webhook_keys.shop: a key of whsec_"),
        ({"webhook_keys": {"shop": "whsec_not base64 at all"}}, "webhook_keys.shop"),
        ({"webhook_keys": {"shop": "whsec_-_-_-_-_-_-_-_-_-_-_-_-_-_-_"}}, "is no base64"),
        ({"webhook_keys_file": "/nowhere/keys.json"}, "webhook_keys_file"),
        ({"webhook_allowed_networks": ["10.0.0.1/8"]}, "webhook_allowed_networks"),
        ({"webhook_timeout_s": 0}, "webhook_timeout_s"),
        ({"adapter_job_timeout_s": 1}, "adapter_job_timeout_s"),
    ],
)
def test_wrong_setting_is_named(values: dict[str, Any], why: str) -> None:
    """What cannot be meant stops the start, with its name and without the secret."""
    with pytest.raises(SettingsInvalid, match=why) as caught:
        ControlSettings.load(**values).signing_keys()
    assert KEY not in str(caught.value)


def test_keys_that_are_no_json_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that cannot be read is named, its value kept out of the message."""
    monkeypatch.setenv("TOKENBUS_WEBHOOK_KEYS", "{my-secret-signing-key")
    with pytest.raises(SettingsInvalid, match="webhook_keys") as caught:
        ControlSettings.load()
    assert "my-secret" not in str(caught.value)


def test_wrong_table_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says in one line what is wrong."""
    table = tmp_path / "crons.toml"
    table.write_text("[[cron]]\nname = 'a'\n")
    code = main(["control", "--redis", "redis://127.0.0.1:1", "--crons", str(table)])
    assert code == 2
    assert "crons.toml" in capsys.readouterr().err
