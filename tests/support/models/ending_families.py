"""Families of models by their ends: which special tokens end a text, and which file names them.

Written down from the published files of each family; the tokenizers are made here in their form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_NUM_WORDS = 280
_END, _IM_END = "<|endoftext|>", "<|im_end|>"
# Its bars are wide ones.
_BAR = "\N{FULLWIDTH VERTICAL LINE}"
_DEEPSEEK_END = f"<{_BAR}end▁of▁sentence{_BAR}>"


@dataclass(frozen=True)
class Ends:
    """The ends of a family as each of its files names them; empty where it names none.

    `named` are further tokens that the tokenizer keeps under a name; `others` end nothing.
    """

    config: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    tokenizer: str = ""
    named: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ("<|other|>",)

    @property
    def all(self) -> tuple[str, ...]:
        """Return every end once."""
        own = (self.tokenizer,) if self.tokenizer else ()
        names = (*self.config, *self.generation, *own, *(token for _, token in self.named))
        return tuple(dict.fromkeys(names))


FAMILIES = {
    "qwen3": Ends((_IM_END,), (_IM_END, _END), _IM_END, others=("<|im_start|>", "<think>")),
    "qwen2.5-chat-on-base": Ends((_END,), (_END,), _IM_END, others=("<|im_start|>",)),
    "llama3": Ends(
        ("<|end_of_text|>",), ("<|end_of_text|>",), "<|eot_id|>", others=("<|eom_id|>",)
    ),
    "llama3.1": Ends(
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        others=("<|start_header_id|>", "<|python_tag|>"),
    ),
    "mistral": Ends(("</s>",), ("</s>",), "</s>", others=("[INST]", "[/INST]", "[TOOL_CALLS]")),
    "gpt-oss": Ends(
        ("<|return|>",),
        ("<|return|>", _END, "<|call|>"),
        "<|return|>",
        others=("<|end|>", "<|channel|>", "<|message|>"),
    ),
    "deepseek-v3": Ends((_DEEPSEEK_END,), (), _DEEPSEEK_END, others=(f"<{_BAR}User{_BAR}>",)),
    "gemma3": Ends(("<eos>", "<end_of_turn>"), ("<eos>", "<end_of_turn>"), "<eos>"),
    "gemma2": Ends(
        ("<eos>",),
        ("<eos>",),
        "<eos>",
        (("eot_token", "<end_of_turn>"),),
        others=("<start_of_turn>",),
    ),
    "phi3": Ends((_END,), ("<|end|>", _END, "<|assistant|>"), _END, others=("<|user|>",)),
    "glm4": Ends(
        (_END, "<|user|>", "<|observation|>"), (_END, "<|user|>"), _END, others=("[gMASK]",)
    ),
    "command-r": Ends(
        (), ("<|END_OF_TURN_TOKEN|>",), "<|END_OF_TURN_TOKEN|>", others=("<|START_OF_TURN_TOKEN|>",)
    ),
    "granite": Ends(("<|end_of_text|>",), (), "<|end_of_text|>", others=("<|end_of_role|>",)),
}


class EndingModel:
    """A tiny model with a family's ends, saved into `folder`; `reference` is transformers' own."""

    def __init__(self, ends: Ends, folder: Path) -> None:
        self.folder = folder
        tokenizer = build_null_tokenizer(_NUM_WORDS)
        tokenizer.chat_template = None
        tokenizer.add_special_tokens({"additional_special_tokens": [*ends.others, *ends.all]})
        self.id_of: dict[str, int] = tokenizer.get_vocab()
        if ends.tokenizer:
            tokenizer.eos_token = ends.tokenizer
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.4,
            bos_token_id=None,
            eos_token_id=None,
        )
        made: Any = LlamaForCausalLM(config)
        self.reference = made.requires_grad_(False).eval()
        self.reference.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self._tell("config.json", eos_token_id=self.ids(ends.config) or None)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if ends.generation:
            self._tell("generation_config.json", eos_token_id=self.ids(ends.generation))
        self._tell("tokenizer_config.json", **dict(ends.named))

    def ids(self, tokens: tuple[str, ...]) -> list[int]:
        """Return the ids of tokens."""
        return [self.id_of[token] for token in tokens]

    def generate(
        self, prompt: list[int], ends: list[int], bias: dict[int, float], num_tokens: int
    ) -> list[int]:
        """Return the greedy ids of transformers' generate up to the first end, it included."""
        ids = self.reference.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
            sequence_bias={(token_id,): value for token_id, value in bias.items()},
        )
        found: list[int] = ids[0, len(prompt) :].tolist()
        return found

    def _tell(self, name: str, **fields: Any) -> None:
        file = self.folder / name
        told = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(told | fields))
