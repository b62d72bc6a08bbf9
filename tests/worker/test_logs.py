"""Log lines name tenant and id of a job apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import structlog

from tokenbus.worker import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    """Leave the configuration of the log as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_line_about_a_job_names_tenant_and_id(capsys: pytest.CaptureFixture[str]) -> None:
    """An address is taken apart; what is no address stays as it is."""
    logs.configure("info", "json")
    log = logs.get_logger()
    log.info("job.finished", job_id="order-7@a@b")
    log.info("job.finished", job_id="order-8")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["job_id"], line.get("tenant")) for line in lines] == [
        ("order-7", "a@b"),
        ("order-8", None),
    ]
