"""One run of a batch, by the service that has its lease: from where an earlier run has left it.

A line's job has an id made of batch and line, so a line that was submitted before is found, not run
again. What is answered is written in parts, each named on the server together with the lines that
it has; lines that no part has are asked for again. So a run that is killed anywhere loses no line
and doubles none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenbus.producer.stored.batch_record import ENDED, BatchStatus
from tokenbus.producer.stored.derived_ids import file_of_batch, name_of_batch
from tokenbus.producer.stored.errors import NotStored
from tokenbus.worker.control.batches.batch_line import LineProblem
from tokenbus.worker.control.batches.input_check import checked_input
from tokenbus.worker.control.batches.line_window import LineWindow
from tokenbus.worker.control.batches.output_parts import joined_parts, names_of_parts
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.stored.batch_record import BatchState
    from tokenbus.producer.stored.file_record import FileRecord
    from tokenbus.worker.control.batches.batch_tools import BatchTools

_RUNNING = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)


class BatchRun:
    """Takes a batch from its status to the end, as long as it has the lease."""

    def __init__(self, tools: BatchTools, batch_id: str, token: str) -> None:
        self._tools = tools
        self._batch_id = batch_id
        self._token = token
        self._log = get_logger()

    async def run(self) -> None:
        """Run to the end. Raises: LeaseTaken; what redis and the content store raise."""
        state = await self._state()
        if state.status not in ENDED and state.status is not BatchStatus.FINALIZING:
            try:
                source = await self._tools.files.get(state.record.owner, state.record.input_file_id)
            except NotStored:
                await self._fail(LineProblem("input_file_gone", "The input file is gone."))
            else:
                await self._run_lines(state, source)
            state = await self._state()
        if state.status is BatchStatus.FINALIZING:
            await self._finish(state)
            state = await self._state()
        await self._close(state)

    async def _state(self) -> BatchState:
        return await self._tools.batches.state(self._batch_id)

    async def _fail(self, *problems: LineProblem) -> None:
        await self._failed([problem.wire(1) for problem in problems])

    async def _failed(self, errors: list[dict[str, object]]) -> None:
        await self._tools.batches.move(
            self._batch_id, self._token, BatchStatus.FAILED, _RUNNING, errors=json.dumps(errors)
        )

    async def _run_lines(self, state: BatchState, source: FileRecord) -> None:
        """Check the input, unless that was done, and see to it that each line has its output."""
        tools = self._tools
        if not state.total:
            found = await checked_input(tools.files.contents, source.content, state.record)
            if found.problems:
                await self._failed(found.problems)
                return
            # One that was cancelled meanwhile stays so; its lines are told of all the same.
            running, cancelling = BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING
            for status, before in ((running, BatchStatus.VALIDATING), (cancelling, cancelling)):
                await tools.batches.move(
                    self._batch_id, self._token, status, (before,), total=found.num_lines
                )
        window = LineWindow(tools, state.record, self._token)
        why = await window.run(source.content)
        await tools.batches.move(
            self._batch_id,
            self._token,
            BatchStatus.FINALIZING,
            (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING),
            ends_as=why.value,
        )

    async def _finish(self, state: BatchState) -> None:
        """Write the files; they have ids of their own, so that a second try writes the same."""
        tools, record = self._tools, state.record
        parts = await tools.batches.parts(self._batch_id)
        written: dict[str, str] = {}
        for kind in ("output", "error"):
            names = names_of_parts(self._batch_id, parts, kind)
            if names:
                file = await tools.files.create_output(
                    record.owner,
                    file_of_batch(self._batch_id, kind),
                    joined_parts(tools.files.contents, names),
                    filename=f"{self._batch_id}_{kind}.jsonl",
                    lives_s=record.output_lives_s,
                )
                written[f"{kind}_file_id"] = file.id
        ends_as = BatchStatus(state.ends_as)
        await tools.batches.move(
            self._batch_id, self._token, ends_as, (BatchStatus.FINALIZING,), **written
        )

    async def _close(self, state: BatchState) -> None:
        """Tell of the end, let the parts go, and leave the batch to who looks at it."""
        tools, record = self._tools, state.record
        if record.callback_url is not None:
            await tools.client.scripts.control.open_webhook(
                name_of_batch(state.id, record.tenant),
                record.tenant,
                record.callback_url,
                event=f"batch.{state.status.value}",
                event_of=state.id,
            )
        parts = await tools.batches.parts(self._batch_id)
        for kind in ("output", "error"):
            for name in names_of_parts(self._batch_id, parts, kind):
                await tools.files.contents.remove(name)
        await tools.batches.close(state, self._token)
        self._log.info(
            "batch.ended",
            batch_id=state.id,
            status=state.status.value,
            completed=state.completed,
            failed=state.failed,
        )
