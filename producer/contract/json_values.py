"""Free JSON values of a request, as fields of it: see `engine.chat.requests.json_values`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from tokenbus.engine.chat.requests.json_values import check_json

JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
