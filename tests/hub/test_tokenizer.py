"""HID as a tokenizer of transformers: MIDI in, ids out; ids in, MIDI out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from meloformer.errors import MidiError, TokenError
from meloformer.hub import HIDTokenizer
from meloformer.hub.tokenizer import VOCABULARY_NAME
from meloformer.midi.quantise import quantise
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes, write_midi
from meloformer.tokens.hid import encode
from meloformer.tokens.vocabulary import PAD, VOCAB_SIZE
from tests.hub.folders import a_model, a_piece, some_ids, write_model


def test_midi_goes_in_as_bytes_path_or_piece_and_comes_back(tmp_path) -> None:
    piece = to_piece(a_piece(3))
    write_midi(piece, tmp_path / "a.mid")
    tokenizer = HIDTokenizer()
    expected = encode(a_piece(3)).tolist()
    for music in (
        midi_bytes(piece),
        tmp_path / "a.mid",
        str(tmp_path / "a.mid"),
        piece,
        a_piece(3),
    ):
        assert tokenizer(music)["input_ids"] == expected
    assert quantise(tokenizer.decode(expected)) == a_piece(3)
    tokenizer.decode(expected).save(tmp_path / "b.mid")
    assert tokenizer.encode(tmp_path / "b.mid") == expected


def test_rows_are_padded_behind_and_read_back_without_it() -> None:
    tokenizer = HIDTokenizer()
    rows = tokenizer([a_piece(3), a_piece(1)], padding=True, return_tensors="pt")
    long, short = some_ids(3), some_ids(1)
    assert rows["input_ids"].shape == (2, len(long))
    assert rows["input_ids"][1].tolist() == [*short, *[PAD] * (len(long) - len(short))]
    assert torch.equal(rows["attention_mask"], (rows["input_ids"] != PAD).long())
    music = tokenizer.batch_decode(rows["input_ids"])
    assert [quantise(piece) for piece in music] == [a_piece(3), a_piece(1)]
    wide = tokenizer(a_piece(1), padding="max_length", max_length=500, return_tensors="np")
    assert wide["input_ids"].shape == (1, 500)
    several = tokenizer.pad([{"input_ids": short}], pad_to_multiple_of=64, return_tensors="np")
    assert several["input_ids"].shape[1] % 64 == 0


def test_rows_stay_as_they_are_where_padding_is_declined_by_name() -> None:
    tokenizer = HIDTokenizer()
    pieces = [a_piece(2), a_piece(3)]
    plain = tokenizer(pieces)
    assert tokenizer(pieces, padding="do_not_pad") == plain
    assert tokenizer.pad(plain, padding="do_not_pad") == plain
    assert tokenizer([])["input_ids"] == []


def test_what_is_no_music_and_what_does_not_fit_is_refused(tmp_path) -> None:
    tokenizer = HIDTokenizer()
    with pytest.raises(MidiError, match="unreadable"):
        tokenizer("play me something calm")
    with pytest.raises(TokenError, match=r"allowed: 10 \(max_length\)"):
        tokenizer(a_piece(2), max_length=10)
    with pytest.raises(TokenError, match="padding=True"):
        tokenizer([a_piece(1), a_piece(2)], return_tensors="pt")
    with pytest.raises(TokenError, match="grammar"):
        tokenizer.decode(np.array([1, 500]))


def test_names_and_ids_of_all_tokens_belong_together() -> None:
    tokenizer = HIDTokenizer()
    names = tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE))
    assert len(set(names)) == len(tokenizer) == VOCAB_SIZE
    assert tokenizer.convert_tokens_to_ids(names) == list(range(VOCAB_SIZE))
    assert tokenizer.convert_tokens_to_ids("BOS") == tokenizer.bos_token_id


def test_a_folder_with_another_vocabulary_or_none_is_refused(tmp_path: Path) -> None:
    HIDTokenizer().save_pretrained(tmp_path)
    write_model(tmp_path, a_model())
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), HIDTokenizer)
    path = tmp_path / VOCABULARY_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))
    with pytest.raises(TokenError, match="another vocabulary"):
        AutoTokenizer.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(TokenError, match=VOCABULARY_NAME):
        HIDTokenizer.from_pretrained(tmp_path)
