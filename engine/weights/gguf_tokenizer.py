"""The tokenizer in a GGUF file: byte-level BPE, with the rule that cuts texts before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

# GGUF's token types (llama.cpp, enum llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4
# transformers' name of a special token -> GGUF's.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_GPT2 = {"gpt-2", "default"}
# Digits stand alone in the SmolLM family, which GPT-2's rule does not do.
_DIGITS = {"smollm"}
# Rules as expressions: of words, numbers of so many digits, signs and white space.
_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = {"llama-bpe", "llama3", "llama-v3"}
_QWEN2 = {"qwen2", "deepseek-r1-qwen"}


def gguf_tokenizer(fields: Mapping[str, Any], max_tokens: int) -> Any:
    """Return the transformers tokenizer that the fields of a file describe.

    max_tokens: the longest text of the model.
    Raises: ModelUnsupported for another kind of tokenizer, or a rule that is not known.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelUnsupported(
            f"the GGUF's tokenizer is of kind {kind}; byte-level BPE is the only one read"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    rule = fields.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: idx for idx, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token as it is, without its merges.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule in _LLAMA3))
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    if rule in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    named = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in _ROLES.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    _add_ends(tokenizer, fields, named, vocabulary)
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        **named,
    )


def _pre_tokenizer(rule: str) -> Any:
    if rule in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    if rule not in _LLAMA3 | _QWEN2:
        raise ModelUnsupported(f"the GGUF's pre-tokenizer {rule} is not known")
    pattern = Regex(_RULE.format(digits="{1,3}" if rule in _LLAMA3 else ""))
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_alone])


def _add_ends(
    tokenizer: Tokenizer,
    fields: Mapping[str, Any],
    named: Mapping[str, str],
    vocabulary: Mapping[str, int],
) -> None:
    """Let texts begin and end with the tokens that the file asks for."""
    parts, special = ["$A"], []
    for role, place in (("bos", 0), ("eos", 2)):
        token = named.get(f"{role}_token")
        if fields.get(f"tokenizer.ggml.add_{role}_token") and token is not None:
            parts.insert(place, token)
            special.append((token, vocabulary[token]))
    if special:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single=" ".join(parts), special_tokens=special),
            ]
        )
