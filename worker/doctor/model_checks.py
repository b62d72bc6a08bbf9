"""Checks of a model: whether it is there, whole and known, and what its chat template proves."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tokenbus.engine.errors import EngineError, ModelNotFound
from tokenbus.engine.weights.model_place import locate
from tokenbus.worker.doctor.finding import failed, guarded, ok, skipped, warning
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.start_check import check_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenbus.worker.doctor.finding import Finding
    from tokenbus.worker.settings import WorkerSettings

_TURNS = [{"role": "user", "content": "Are there lamps left?"}]


def model_checks(settings: WorkerSettings) -> Iterator[Finding]:
    """Look at the model of a worker's settings, without its weights."""
    if settings.engine == "null":
        yield skipped("model", "the null engine has none")
        return
    yield from guarded("model", lambda: _model(settings))


def _model(settings: WorkerSettings) -> Iterator[Finding]:
    try:
        check_worker(settings)
        place = locate(settings.model)
    except (WorkerError, EngineError) as error:
        advice = "name a folder, a GGUF file, an alias (tokenbus model pull) or an id of the hub"
        is_place = isinstance(error, ModelNotFound)
        yield failed("model", str(error), advice if is_place else "see the sentence above")
        return
    if place is None:
        yield warning(
            "model", f"{settings.model} is not on this machine", "it is fetched at the first start"
        )
        return
    if place.suffix == ".gguf":
        yield ok("model", f"{place}, which is converted at the first start")
        return
    size = sum(each.stat().st_size for each in place.glob("*.safetensors"))
    yield ok("model", f"{place}, {size / 2**30:.2f} GiB of weights")
    if find_spec("transformers") is None:
        yield skipped("chat template", "transformers is not installed")
        return
    yield from guarded("chat template", lambda: _template(place, settings))


def _template(place: Path, settings: WorkerSettings) -> Iterator[Finding]:
    """Render a turn, and let the template's own calls be read back and pass their grammar."""
    from tokenbus.engine.text.model_chat import model_chat
    from tokenbus.engine.text.tokenizer_folder import open_tokenizer

    tokenizer = open_tokenizer(place)
    eos = tokenizer.eos_token_id
    chat, why_not = model_chat(tokenizer, () if eos is None else (eos,), settings.chat_settings())
    if chat is None:
        yield warning("chat template", why_not, "prompts work; --chat-template FILE gives it one")
        return
    prompt = chat.render(_TURNS)
    told = chat.told()
    found = (
        f"renders ({len(prompt.text)} characters for a question); tool calls as"
        f" {told['tool_format']}, reasoning as {told['reasoning_format']}"
    )
    if chat.refusal:
        yield warning("chat template", f"{found}; {chat.refusal}", "docs/chat-formats.md")
    else:
        yield ok("chat template", found)
