"""The start check: all that can be wrong with a worker and needs neither server nor torch.

It takes a fraction of a second, so that a wrong setting is told before seconds are spent on it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelBroken, RequestRejected
from tokenbus.engine.start_check import check_pages, check_start
from tokenbus.producer.contract.bounds import DEFAULTS
from tokenbus.producer.listening import listening_problem
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.trace_start import check_traces

if TYPE_CHECKING:
    from tokenbus.engine.text.templates.chat_settings import ChatSettings
    from tokenbus.worker.settings import WorkerSettings

# What a model cannot run without.
_LIBRARIES = ("torch", "transformers")


def check_worker(settings: WorkerSettings) -> None:
    """Refuse settings with which a worker cannot run here.

    Raises: SettingsInvalid for a setting; ModelNotFound for a model that is neither here nor can be
        fetched; ModuleNotFoundError for a library that is not installed.
    """
    if settings.metrics_port is not None:
        check_port(settings.metrics_host, settings.metrics_port)
    check_traces(settings)
    config = settings.engine_config()
    try:
        _check_chat(settings.chat_settings())
        if isinstance(config, EngineConfig):
            # A prompt of one token and the answer that is given where none is asked for.
            check_start(config, job_tokens=1 + int(DEFAULTS["max_tokens"] or 1))
        else:
            # Made-up tokens may be few: a page for a prompt, one for an answer.
            check_pages(config.num_pages, config.page_size, 2 * config.page_size)
    except RequestRejected as error:
        raise SettingsInvalid(str(error)) from None
    except ModelBroken as error:
        raise SettingsInvalid(f"model: {error}") from None
    if isinstance(config, EngineConfig):
        for name in _LIBRARIES:
            if find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _check_chat(settings: ChatSettings) -> None:
    """Refuse settings of chats that no model can have; what reads templates is imported for them.

    Raises: RequestRejected with the field.
    """
    given = (settings.chat_template, settings.tool_format, settings.reasoning_format)
    if any(each is not None for each in given):
        from tokenbus.engine.text.templates.chat_settings import check_chat_settings

        check_chat_settings(settings)


def check_port(host: str, port: int) -> None:
    """Refuse a port of metrics that cannot be had. Raises: SettingsInvalid."""
    problem = listening_problem(host, port)
    if problem is not None:
        raise SettingsInvalid(f"metrics_port: {problem}")
