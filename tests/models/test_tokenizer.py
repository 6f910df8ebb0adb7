"""Instructions -> tokens of a fixed length."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from rsd_fast.models.tokenizer import InstructionTokenizer
from tests.policies import INSTRUCTIONS

TOKENIZER = InstructionTokenizer.train(INSTRUCTIONS, vocab_size=300, max_tokens=12)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())


@given(words)
def test_any_text_is_encoded_or_refused_for_its_length(text):
    roomy = InstructionTokenizer(TOKENIZER.tokenizer, 4096)
    tokens, mask = roomy([text])
    count = int(mask.sum())
    assert count > 0 and mask[0, :count].all()  # padding comes last
    assert (tokens[0, count:] == TOKENIZER.pad_id).all()
    assert tokens.min() >= 0 and tokens.max() < TOKENIZER.vocab_size
    if count <= TOKENIZER.max_tokens:
        short, short_mask = TOKENIZER([text])
        assert torch.equal(short[short_mask], tokens[mask])
    else:
        with pytest.raises(ValueError, match=f"has {count} tokens, this model takes at most 12"):
            TOKENIZER([text])


@given(words)
def test_case_surrounding_space_and_unicode_form_do_not_matter(text):
    roomy = InstructionTokenizer(TOKENIZER.tokenizer, 4096)
    expected = roomy([text])[0]
    for other in (f"  {text}\n", unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        assert torch.equal(roomy([other])[0], expected)
    for lowered in INSTRUCTIONS:
        assert torch.equal(roomy([lowered.upper()])[0], roomy([lowered])[0])


def test_a_batch_has_one_shape_and_rows_do_not_see_each_other():
    tokens, mask = TOKENIZER(list(INSTRUCTIONS))
    assert tokens.shape == mask.shape == (3, 12) and tokens.dtype == torch.int64 and mask.dtype == torch.bool
    for row, text in enumerate(INSTRUCTIONS):
        alone, alone_mask = TOKENIZER([text])
        assert torch.equal(alone[0], tokens[row]) and torch.equal(alone_mask[0], mask[row])
    assert len({tuple(row) for row in tokens.tolist()}) == 3


def test_trained_words_are_short_and_others_are_told_apart():
    tokens, mask = TOKENIZER(["lift the red cube", "lift the tan cube", "lift the tin cube"])
    assert mask.sum(1)[0] <= mask.sum(1)[1]
    assert not torch.equal(tokens[1], tokens[2])


@pytest.mark.parametrize("bad", ["", "   ", "\n\t", None, 3, b"lift", ["lift"]])
def test_nothing_to_encode_is_refused(bad):
    with pytest.raises(ValueError, match=r"got instruction .*, expected a non-empty string"):
        TOKENIZER(["lift the red cube", bad])


def test_no_instruction_at_all_is_refused():
    with pytest.raises(ValueError, match="got no instruction, expected at least one"):
        TOKENIZER([])


def test_it_is_the_same_after_saving_and_training_again(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = InstructionTokenizer.load(tmp_path, 12)
    again = InstructionTokenizer.train(INSTRUCTIONS, vocab_size=300, max_tokens=12)
    for other in (loaded, again):
        assert torch.equal(other(INSTRUCTIONS)[0], TOKENIZER(INSTRUCTIONS)[0])
        assert other.pad_id == TOKENIZER.pad_id and other.vocab_size == TOKENIZER.vocab_size <= 300


def test_a_missing_file_and_a_foreign_tokenizer_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        InstructionTokenizer.load(tmp_path, 12)
    with pytest.raises(ValueError, match="has no <pad> token; make it with InstructionTokenizer"):
        InstructionTokenizer(Tokenizer(models.BPE()), 12)
