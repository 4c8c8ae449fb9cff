"""Prompts and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from vla_rl.policies import PolicyError
from vla_rl.policies.openvla.prompts import PromptTokenizer, prompt_text

INSTRUCTIONS = ["Put the bowl on the plate", "open the drawer", "pick up the alphabet soup"]


def test_the_prompt_is_openvlas() -> None:
    assert prompt_text("Open the Drawer") == "In: What action should the robot take to open the drawer?\nOut:"


def test_known_words_are_single_tokens() -> None:
    tokenizer = PromptTokenizer.train(INSTRUCTIONS, 2048)
    ids = tokenizer.encode("open the bowl")
    # <s> In : What action should the robot take to | open the bowl | ? \n Out :
    assert len(ids) == 17 and ids[0] == tokenizer.begin_id


@pytest.mark.parametrize("text", ["", "stack the ZEBRA upside-down!", "fasse die Tür an – 桌子 \N{ROBOT FACE}", "a\x00b\tc"])
def test_any_text_can_be_tokenised_and_read_back(text: str) -> None:
    tokenizer = PromptTokenizer.train(INSTRUCTIONS, 2048)
    assert tokenizer.tokenizer.decode(tokenizer.encode(text)[1:].tolist()) == prompt_text(text)


def test_training_depends_on_the_set_of_instructions_only() -> None:
    one = PromptTokenizer.train(INSTRUCTIONS, 300)
    other = PromptTokenizer.train([*reversed(INSTRUCTIONS), INSTRUCTIONS[0]], 300)
    assert one.tokenizer.to_str() == other.tokenizer.to_str() and one.vocab_size == 300


def test_without_instructions_the_prompt_itself_still_tokenises() -> None:
    tokenizer = PromptTokenizer.train([], 1024)
    assert tokenizer.tokenizer.decode(tokenizer.encode("go")[1:].tolist()) == prompt_text("go")


def test_a_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer.train(INSTRUCTIONS, 1024)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = PromptTokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode("grasp the mug").tolist() == tokenizer.encode("grasp the mug").tolist()


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    Tokenizer(BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PolicyError, match="has no token <s>"):
        PromptTokenizer.load(tmp_path / "tokenizer.json")
