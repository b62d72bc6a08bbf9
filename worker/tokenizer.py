"""The tokenizer of the worker process: the engine's own model folder, or words of the null one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.worker.errors import EngineStartFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def import_library() -> None:
    """Import what loading a tokenizer needs: seconds that can pass beside the engine's start."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


def load_tokenizer(folder: str | None, vocab_size: int) -> PreTrainedTokenizerFast:
    """Load the tokenizer in a model's folder; without a folder build the null engine's.

    Raises: EngineStartFailed if the folder holds none.
    """
    if folder is None:
        from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

        return build_null_tokenizer(vocab_size)
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"the tokenizer in {folder} cannot be used: {reason}"
        raise EngineStartFailed("ModelBroken", message) from error
    tokenizer: PreTrainedTokenizerFast = loaded
    return tokenizer
