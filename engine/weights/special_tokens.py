"""Special tokens of a model's own files, held against its vocabulary when it is loaded.

An id outside the vocabulary is no token: as an end it would never come, and rules on it would reach
past the logits. Such ids are left out, with a warning that names the file and the field.
"""

from __future__ import annotations

import json
import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.bounds import MAX_STOP_IDS
from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.model_folder import broken_if
from tokenbus.engine.text.turn_end import turn_end

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


# Far above the ends that count; each that is no token is a warning of its own.
_MAX_LISTED = 1024
# Under which names tokenizers keep tokens that end a text or a turn of it.
_END_NAMES = ("eos_token", "eot_token", "eom_token", "end_of_turn_token", "end_of_message_token")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return what a JSON file of the folder says; nothing where there is none.

    Raises: ModelBroken if it cannot be read.
    """
    file = folder / name
    if not file.is_file():
        return {}
    with broken_if(folder, name):
        told = json.loads(file.read_bytes())
        if not isinstance(told, dict):
            raise ModelBroken(f"{name} of {folder} is no JSON object")
    return told


def eos_token_ids(
    folder: Path,
    config: Any,
    tokenizer: Any,
    vocab_size: int,
    chat_template: str | None = None,
) -> tuple[int, ...]:
    """Return the ids that end a text: those of generation config, config and tokenizer together.

    A tokenizer may name the end of a turn besides. Where none of all these ends an answer in the
    chat template, what does is taken too: without it a chat would run into the next turn. So it is
    with `chat_template`, a template that takes the place of the model's.
    What transformers takes for an end where config.json names none counts if nobody names one.
    Raises: ModelBroken if a file cannot be read; ModelUnsupported if there are too many.
    """
    generation = read_json(folder, "generation_config.json")
    given = [("generation_config.json", "eos_token_id", generation.get("eos_token_id"))]
    given += [("config.json", "eos_token_id", value) for value in _ends_in_config(folder, config)]
    if tokenizer is not None:
        given += [("the tokenizer", *named) for named in _named_ends(tokenizer)]
    if all(value is None for _, _, value in given):
        by_default = getattr(config.get_text_config(), "eos_token_id", None)
        given.append(("config.json", "eos_token_id", by_default))
    ids = list(dict.fromkeys(chain(*(_tokens(*source, vocab_size) for source in given))))
    for template in dict.fromkeys((None, chat_template)):
        end = None if tokenizer is None else turn_end(tokenizer, ids, template)
        if end is None or end >= vocab_size:
            continue
        _log.warning(
            "ends.of_template: the chat template ends an answer with %s, which no file of the"
            " model names as an end; it ends texts all the same",
            tokenizer.convert_ids_to_tokens(end),
        )
        ids.append(end)
    if len(ids) > MAX_STOP_IDS:
        raise ModelUnsupported(f"{len(ids)} tokens end a text, at most {MAX_STOP_IDS} may")
    return tuple(ids)


def _ends_in_config(folder: Path, config: Any) -> list[Any]:
    """Return what config.json itself names, at its top and for the text model inside of it."""
    top, text = read_json(folder, "config.json"), config.get_text_config()
    inside = [top.get(name) for name, part in vars(config).items() if part is text]
    return [part.get("eos_token_id") for part in (top, *inside) if isinstance(part, dict)]


def _named_ends(tokenizer: Any) -> list[tuple[str, Any]]:
    """Return name and id of the tokens that the tokenizer has under names of ends."""
    named = {**getattr(tokenizer, "init_kwargs", {}), **tokenizer.special_tokens_map}
    found = []
    for name in _END_NAMES:
        value = named.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        token_id = None if text is None else tokenizer.convert_tokens_to_ids(str(text))
        # What is not known becomes the token for that.
        if token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == str(text):
            found.append((f"{name}_id", token_id))
    return found


def check_others(config: Any, tokenizer: Any, vocab_size: int) -> None:
    """Warn of ids of start and padding that are no tokens, and take padding out of the config.

    Transformers' own code makes a row of the embedding out of it.
    """
    text = config.get_text_config()
    for name in ("bos_token_id", "pad_token_id"):
        value = getattr(text, name, None)
        if value is not None and not _tokens("config.json", name, value, vocab_size):
            setattr(text, name, None)
    for name in ("bos_token_id", "pad_token_id"):
        _tokens("the tokenizer", name, getattr(tokenizer, name, None), vocab_size)


def _tokens(source: str, name: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of one field that are tokens, each once; warn of the others."""
    listed = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if len(listed) > _MAX_LISTED:
        raise ModelBroken(f"{name} of {source} lists {len(listed)} tokens")
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
