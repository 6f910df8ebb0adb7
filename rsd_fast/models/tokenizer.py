"""Instructions -> tokens of a fixed length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

_PAD = "<pad>"


class InstructionTokenizer:
    """A `tokenizers` tokenizer with padding to a fixed length, so that shapes never depend on the text."""

    FILE = "tokenizer.json"

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        pad_id = tokenizer.token_to_id(_PAD)
        if pad_id is None:
            raise ValueError(f"the tokenizer has no {_PAD} token; make it with InstructionTokenizer.train")
        self.pad_id = pad_id
        self._row = lru_cache(maxsize=4096)(self._encode)  # a robot hears the same instruction for a whole episode

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 512, max_tokens: int = 24) -> InstructionTokenizer:
        """A byte-level BPE on lower-cased instructions; any text can be encoded."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[_PAD],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(tokenizer, max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.tokenizer.get_vocab_size()

    def __call__(self, instructions: Sequence[str]) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Token ids (int64) and the mask of real tokens, both `[B, max_tokens]`.

        Raises:
            ValueError: there is none, or one is empty or longer than `max_tokens`.
        """
        if not instructions:
            raise ValueError("got no instruction, expected at least one")
        for text in instructions:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"got instruction {text!r}, expected a non-empty string")
        tokens, mask = zip(*(self._row(text) for text in instructions), strict=True)
        return torch.stack(tokens), torch.stack(mask)

    def _encode(self, text: str) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        ids = self.tokenizer.encode(text.strip()).ids
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"the instruction {text!r} has {len(ids)} tokens, this model takes at most {self.max_tokens}"
            )
        padding = self.max_tokens - len(ids)
        tokens = torch.tensor([*ids, *[self.pad_id] * padding])
        return tokens, torch.arange(self.max_tokens) < len(ids)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`."""
        self.tokenizer.save(str(folder / self.FILE))

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> InstructionTokenizer:
        """Reads `tokenizer.json`."""
        path = folder / cls.FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {cls.FILE} in {folder}; a main model's folder holds its tokenizer")
        return cls(Tokenizer.from_file(str(path)), max_tokens)
