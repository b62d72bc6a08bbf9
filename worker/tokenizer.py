"""The tokenizer of the worker process: the engine's own model folder, or words of the null one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine.errors import EngineError
from tokenbus.engine.text.tokenizer_folder import open_tokenizer
from tokenbus.worker.errors import EngineStartFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def import_library(*, has_model: bool) -> None:
    """Import what loading a tokenizer needs: seconds that can pass beside the engine's start.

    What finds the kind of a model's tokenizer brings torch along; the null engine's needs none.
    """
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    if has_model:
        from transformers import AutoTokenizer  # noqa: F401


def load_tokenizer(folder: str | None, vocab_size: int) -> PreTrainedTokenizerFast:
    """Load the tokenizer in a model's folder; without a folder build the null engine's.

    Raises: EngineStartFailed if the folder holds none.
    """
    if folder is None:
        from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

        return build_null_tokenizer(vocab_size)
    try:
        tokenizer: PreTrainedTokenizerFast = open_tokenizer(Path(folder))
    except EngineError as error:
        raise EngineStartFailed(type(error).__name__, str(error)) from error
    return tokenizer
