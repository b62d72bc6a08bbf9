"""Items of earlier responses: those that a request goes on from, and those that it refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.responses.input_items import invalid
from tokenbus.producer.gateway.responses.job_steps import response_body
from tokenbus.producer.gateway.responses.response_request import MAX_ANCESTORS
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.stored.derived_ids import response_of_item
from tokenbus.producer.stored.errors import NotStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.pools.served_models import ServedModels
    from tokenbus.producer.stored.stored_responses import StoredResponse, StoredResponses

Items = list[dict[str, Any]]


class EarlierItems:
    """Finds what the responses of callers have been told and have answered."""

    def __init__(self, models: ServedModels, responses: StoredResponses) -> None:
        self._models = models
        self._responses = responses

    async def chain(self, caller: Caller, previous_id: str | None) -> list[StoredResponse]:
        """Return the responses that one goes on from, the first one first. Raises: ApiError 400."""
        if previous_id is None:
            return []
        try:
            last = await self._responses.get(caller.id_prefix, previous_id)
            before = await self._responses.get_all(caller.id_prefix, last.record.ancestors)
        except NotStored as error:
            told = f"Previous response with id '{error.name}' not found."
            code, param = "previous_response_not_found", "previous_response_id"
            raise ApiError(400, told, code=code, param=param) from None
        if len(before) >= MAX_ANCESTORS:
            raise invalid("previous_response_id", f"has {MAX_ANCESTORS} responses before it")
        return [*before, last]

    async def of_chain(self, chain: Sequence[StoredResponse]) -> Items:
        """Return the items of a chain in their order. Raises: ApiError 400 before its end."""
        return [item for each in chain for item in await self._of(each, "previous_response_id")]

    async def referred(
        self, caller: Caller, references: Sequence[tuple[int, str]], chained: Items
    ) -> dict[str, dict[str, Any]]:
        """Return items by their ids: those of a chain, and of the responses that are referred to.

        An id names the response of its item, and the last turn of a talk that is referred to was
        told all turns before: it is looked at first, and mostly has them all. The search ends with
        the first item that is nowhere, for which the request is refused.
        Raises: ApiError 400 for an item of a response that has no answer yet.
        """
        found = {str(item.get("id")): item for item in chained}
        searched: set[str] = set()
        for index, item_id in reversed(references):
            if item_id in found:
                continue
            response_id = response_of_item(item_id)
            if response_id is None or response_id in searched or len(searched) == MAX_ANCESTORS:
                break
            searched.add(response_id)
            try:
                stored = await self._responses.get(caller.id_prefix, response_id)
            except NotStored:
                break
            for item in await self._of(stored, f"input.{index}.id"):
                found.setdefault(str(item.get("id")), item)
        return found

    async def _of(self, stored: StoredResponse, param: str) -> Items:
        """Return input and output of an earlier response. Raises: ApiError 400 before its end."""
        record, result = stored.record, stored.result
        if result is None:
            client = await self._models.client(record.pool)
            result = await self._responses.store_result(record, client.scripts)
        if result is None:
            raise invalid(param, f"the response {record.id} has no answer yet")
        return [*stored.items, *response_body(record, result)["output"]]
