"""The gateway against its own description: `schemathesis` reads it and asks, `make clients`.

The variable SCHEMATHESIS names its command; without it the test is skipped.
`CHAOS_EXAMPLES` says how many requests of each route are drawn.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from gateways.serving import serving
from patience import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

SCHEMATHESIS = os.environ.get("SCHEMATHESIS", "")
NUM_EXAMPLES = os.environ.get("CHAOS_EXAMPLES", "25")
# Nothing waits longer than this: the gateway gives up before.
LIMIT_S, GIVEN_UP_S = "5", "2"
# What is right by the description and refused all the same has reasons that no schema tells, and
# unknown fields are ignored: the checks for these are left out.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "allow_header_conformance",
)  # fmt: skip

pytestmark = [pytest.mark.clients, pytest.mark.processes]


@pytest.mark.skipif(not SCHEMATHESIS, reason="make clients runs it")
def test_gateway_is_as_it_describes_itself(tmp_path: Path) -> None:
    """No 5xx, nothing slow, and statuses, types and bodies as the document has them."""
    variables = {
        "TOKENBUS_ENGINE": "null",
        "TOKENBUS_FILES_URL": str(tmp_path / "files"),
        "TOKENBUS_GATEWAY_ANSWER_TIMEOUT_S": GIVEN_UP_S,
        "TOKENBUS_GATEWAY_BODY_TIMEOUT_S": GIVEN_UP_S,
        "TOKENBUS_GATEWAY_GRACE_S": "0",
    }
    options = [
        *("--checks", ",".join(CHECKS), "--max-response-time", LIMIT_S, "--warnings", "off"),
        *("--max-examples", NUM_EXAMPLES, "--phases", "examples,coverage,fuzzing"),
        *("--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "10"),
    ]
    with serving(tmp_path / "bus", "made-up", **variables) as url:
        run = subprocess.run(
            [SCHEMATHESIS, "run", f"{url}/openapi.json", *options],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )
    print(run.stdout[-2000:])
    assert run.returncode == 0, run.stdout + run.stderr
