"""Links to publishers: what a publisher's process says is said by its worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import structlog

from tokenbus.worker import logs
from tokenbus.worker.errors import PublisherDied
from tokenbus.worker.messages.publishing import Configure
from tokenbus.worker.publishing.links import ProcessLink

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    """Leave the configuration of the log as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


async def test_last_words_of_a_publisher_are_lines_of_its_worker(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One that cannot start prints a trace: every line of the log is JSON all the same."""
    logs.configure("info", "json")
    configure = Configure(
        redis_url="nonsense://nowhere",
        pool="default",
        worker="vm-1",
        call_timeout_s=5.0,
        lease_ttl_s=5.0,
        vocab_size=0,
        tokenizer_folder=None,
        token_bytes=[],
        strips_first_space=False,
        special_texts={},
        log_level="info",
    )
    with pytest.raises(PublisherDied, match="the log has what it said"):
        await ProcessLink(configure, lambda _: None).start()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["event"] for line in lines} == {"publisher.said"}
    assert any("UrlInvalid" in line["text"] for line in lines)
