"""Instructions -> prompt tokens, with a byte-level BPE that is trained offline on the instructions of a project.

Legend: B prompts, N tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from vla_rl.policies.base import PolicyError

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
END_TOKEN = 2
"""Id of </s> in Llama's vocabulary."""
EMPTY = "\u2581"
"""Llama's token of a lone space (29871). Every prompt that OpenVLA was trained with ends in it, since one stood between the
colon and the first action token."""


def prompt_text(instruction: str) -> str:
    """OpenVLA's prompt."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def _special(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise PolicyError(f"the text tokenizer has no token {token}: it is not one of this project's policies")
    return int(token_id)


class PromptTokenizer:
    """Text tokenizer with a cache: an instruction is tokenised once."""

    def __init__(self, tokenizer: Tokenizer, pad_id: int | None = None, last: str | None = None) -> None:
        """`last` names a token that every prompt ends in; it is added where the text's last token is another one."""
        self.tokenizer = tokenizer
        self.begin_id = _special(tokenizer, BEGIN)
        self.pad_id = _special(tokenizer, PAD) if pad_id is None else pad_id
        self.last_id = None if last is None else _special(tokenizer, last)
        self._cache: dict[str, Int64[np.ndarray, "N"]] = {}

    @staticmethod
    def train(instructions: Sequence[str], vocab_size: int) -> PromptTokenizer:
        """A tokenizer whose tokens are mostly words of `instructions`; any other text falls back on bytes.

        The result depends on the set of instructions only, not on their order.
        """
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=1,
            special_tokens=[BEGIN, END, PAD],
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sorted({prompt_text(instruction) for instruction in instructions}), trainer)
        return PromptTokenizer(tokenizer)

    @staticmethod
    def load(path: Path) -> PromptTokenizer:
        return PromptTokenizer(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        self.tokenizer.save(str(path))

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, instruction: str) -> Int64[np.ndarray, "N"]:
        """The prompt of an instruction, <s> first."""
        if instruction not in self._cache:
            ids = self.tokenizer.encode(prompt_text(instruction), add_special_tokens=False).ids
            if self.last_id is not None and ids[-1] != self.last_id:
                ids.append(self.last_id)
            self._cache[instruction] = np.array([self.begin_id, *ids], dtype=np.int64)
        return self._cache[instruction]
