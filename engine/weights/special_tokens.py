"""Special tokens of a model's own files, held against its vocabulary when it is loaded.

An id outside the vocabulary is no token: as an end it would never come, and rules on it would reach
past the logits. Such ids are left out, with a warning that names the file and the field.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from tokenbus.engine.chat.requests.bounds import MAX_STOP_IDS
from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.model_folder import broken_if

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def eos_token_ids(folder: Path, config: Any, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end a text: the generation config's, else the config's.

    Where none of those given is a token, the tokenizer's is taken, and without one none.
    Raises: ModelBroken if a file cannot be read; ModelUnsupported if there are too many.
    """
    given = None
    if (folder / "generation_config.json").is_file():
        with broken_if(folder, "generation_config.json"):
            given = GenerationConfig.from_pretrained(folder).eos_token_id
    sources = [
        ("generation_config.json", given),
        ("config.json", getattr(config.get_text_config(), "eos_token_id", None)),
    ]
    is_given = False
    for source, value in sources:
        is_given = is_given or value is not None
        ids = _tokens(source, "eos_token_id", value, vocab_size)
        if len(ids) > MAX_STOP_IDS:
            raise ModelUnsupported(f"{len(ids)} tokens end a text, at most {MAX_STOP_IDS} may")
        if ids:
            return ids
    if is_given and tokenizer is not None:
        return _tokens("the tokenizer", "eos_token_id", tokenizer.eos_token_id, vocab_size)
    return ()


def check_others(config: Any, tokenizer: Any, vocab_size: int) -> None:
    """Warn of ids of start and padding that are no tokens, and take padding out of the config.

    Transformers' own code makes a row of the embedding out of it.
    """
    text = config.get_text_config()
    for name in ("bos_token_id", "pad_token_id"):
        value = getattr(text, name, None)
        if value is not None and not _tokens("config.json", name, value, vocab_size):
            setattr(text, name, None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _tokens("the tokenizer", name, getattr(tokenizer, name, None), vocab_size)


def _tokens(source: str, name: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of one field that are tokens, each once; warn of the others."""
    listed = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    tokens: list[int] = []
    for token_id in listed:
        is_whole = isinstance(token_id, int) and not isinstance(token_id, bool)
        if is_whole and 0 <= token_id < vocab_size:
            tokens.append(token_id)
        else:
            _log.warning(
                "%s of %s holds %.60r, which is none of the model's %d tokens; it is left out",
                name,
                source,
                token_id,
                vocab_size,
            )
    return tuple(dict.fromkeys(tokens))
