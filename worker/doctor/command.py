"""`tokenbus doctor`: runs the checks, prints what they find, and says whether all is well."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

from tokenbus.producer.errors import UrlInvalid
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.terminal import visible
from tokenbus.worker.doctor.finding import State, failed, guarded, ok
from tokenbus.worker.doctor.machine_checks import machine_checks
from tokenbus.worker.doctor.model_checks import model_checks
from tokenbus.worker.doctor.server_checks import run_server_checks
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.doctor.finding import Finding

_WIDTH = 14


def run_doctor(
    url: str | None, pool: str | None, model: str | None, device: str | None, *, as_json: bool
) -> int:
    """Look at everything and print it; return 0 unless something failed.

    Each finding is printed as soon as it is there, for some take seconds. Warnings are no failure.
    """
    findings = []
    for finding in _checks(url, pool, model, device):
        findings.append(finding)
        if not as_json:
            print(visible(_line(finding), lines=True), flush=True)
    states = Counter(finding.state for finding in findings)
    is_well = not states[State.FAILED]
    if as_json:
        shown = {"ok": is_well, "findings": [asdict(finding) for finding in findings]}
        print(visible(json.dumps(shown, ensure_ascii=False)))
    else:
        print(f"{states[State.FAILED]} failed, {states[State.WARNING]} warnings")
    return 0 if is_well else 1


def _checks(
    url: str | None, pool: str | None, model: str | None, device: str | None
) -> Iterator[Finding]:
    try:
        settings = WorkerSettings.load(redis_url=url, pool=pool, model=model, device=device)
        ServerUrl.parse(settings.redis_url)
    except (SettingsInvalid, UrlInvalid) as error:
        advice = "`tokenbus config show worker` says where each setting comes from"
        yield failed("settings", str(error), advice)
        yield from machine_checks()
        return
    yield ok("settings", "they can be read, and fit each other")

    def server() -> Iterator[Finding]:
        return iter(run_server_checks(settings.redis_url, settings.pool))

    yield from chain(guarded("server", server), machine_checks(), model_checks(settings))


def _line(finding: Finding) -> str:
    line = f"{finding.state.value:8} {finding.check:{_WIDTH}} {finding.found}"
    return f"{line}\n{'':8} {'':{_WIDTH}} -> {finding.advice}" if finding.advice else line
