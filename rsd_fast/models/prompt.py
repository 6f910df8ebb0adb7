"""OpenVLA's prompt: an instruction -> the ids its checkpoints were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from rsd_fast.models.tokenizer import InstructionTokenizer

PLACEHOLDER = -1  # no id of any tokenizer: the embedding of an action placeholder is zero


@dataclass(frozen=True)
class PromptConfig:
    """How an instruction becomes ids: begin, prompt, end, action placeholders and a stop token, padding.

    Padding comes last, so that a text's positions do not depend on it.

    Attributes:
        template: with `{instruction}`, which is put there in lower case.
        begin: id of the first token.
        end: id that follows the prompt.
        placeholders: action placeholders; OpenVLA-OFT's own heads read them. With any, a stop token follows.
        stop: its id.
        pad: id of padding.
    """

    template: str = "In: What action should the robot take to {instruction}?\nOut:"
    begin: int = 1
    end: int = 29871
    placeholders: int = 0
    stop: int = 2
    pad: int = 32000

    def __post_init__(self) -> None:
        """Raises ValueError on a template without an instruction."""
        if "{instruction}" not in self.template:
            raise ValueError(f"got prompt template {self.template!r}, expected one with {{instruction}}")
        if self.placeholders < 0:
            raise ValueError(f"got {self.placeholders} action placeholders, expected 0 or more")

    @property
    def extra_tokens(self) -> int:
        """Tokens behind the prompt's end."""
        return self.placeholders + 1 if self.placeholders else 0


class PromptTokenizer(InstructionTokenizer):
    """A checkpoint's own tokenizer behind its prompt; `max_tokens` counts everything."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, prompt: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pad_id = prompt.pad
        self.prompt = prompt

    def ids(self, instruction: str) -> list[int]:
        """All ids of one instruction, without padding."""
        prompt = self.prompt
        text = prompt.template.format(instruction=instruction.strip().lower())
        ids = [prompt.begin, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        if ids[-1] != prompt.end:
            ids.append(prompt.end)
        if prompt.placeholders:
            ids += [PLACEHOLDER] * prompt.placeholders + [prompt.stop]
        return ids

    def __call__(self, instructions: Sequence[str]) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Ids (int64) and the mask of what is not padding, both `[B, max_tokens]`.

        Raises:
            ValueError: an instruction is empty, or its prompt longer than `max_tokens`.
        """
        tokens = torch.full((len(instructions), self.max_tokens), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(instructions), self.max_tokens, dtype=torch.bool)
        for row, text in enumerate(instructions):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"got instruction {text!r}, expected a non-empty string")
            ids = self.ids(text)
            if len(ids) > self.max_tokens:
                room = self.max_tokens - self.prompt.extra_tokens
                raise ValueError(
                    f"the prompt for {text!r} has {len(ids) - self.prompt.extra_tokens} tokens, this model takes at "
                    f"most {room}; load it with a larger max_prompt_tokens"
                )
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        return tokens, mask


def read_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json` of a published checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no tokenizer.
    """
    path = folder / InstructionTokenizer.FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {folder}; where there is a tokenizer.model, transformers writes the other: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error


def load_tokenizer(folder: Path, max_tokens: int, prompt: PromptConfig | None) -> InstructionTokenizer:
    """A main model's tokenizer from its folder; errors as `read_tokenizer`."""
    if prompt is None:
        return InstructionTokenizer.load(folder, max_tokens)
    return PromptTokenizer(read_tokenizer(folder), max_tokens, prompt)
