import json
import re

import numpy as np
import pytest

from meloformer.errors import TokenError
from meloformer.midi import grid
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    DENSITY_BIN_NOTES_PER_QUARTER,
    INDEX_OF,
    KIND_OF,
    LENGTH_BIN_BARS,
    OFFSET,
    VOCAB_SIZE,
    Kind,
    check_fingerprint,
    chord_name,
    density_bin,
    fingerprint,
    key_name,
    length_bin,
    load_vocabulary,
    save_vocabulary,
    token,
    token_id,
    token_name,
    vocabulary_json,
)


def test_blocks_cover_every_id_once_and_in_order():
    ids = [OFFSET[kind] + index for kind in Kind for index in range(BLOCK_SIZES[kind])]
    assert ids == list(range(VOCAB_SIZE))


def test_every_id_is_read_as_the_kind_and_index_that_made_it():
    for kind in Kind:
        for index in range(BLOCK_SIZES[kind]):
            made = token_id(kind, index)
            assert (token(made).kind, token(made).index) == (kind, index)
            assert (KIND_OF[made], INDEX_OF[made]) == (kind, index)


@pytest.mark.parametrize("index", [-1, 128])
def test_an_index_outside_its_block_is_no_token(index):
    with pytest.raises(ValueError, match=r"allowed 0\.\.127"):
        token_id(Kind.PITCH, index)


def test_no_two_tokens_share_a_name():
    assert len({token_name(i) for i in range(VOCAB_SIZE)}) == VOCAB_SIZE


def test_ids_fit_the_type_of_the_shards():
    assert np.iinfo(np.uint16).max >= VOCAB_SIZE


@pytest.mark.parametrize(
    ("kind", "index", "name"),
    [
        (Kind.BAR, 0, "BAR:Cmaj"),
        (Kind.BAR, 84, "BAR:N"),
        (Kind.METRE, grid.METRE_INDEX[6, 8], "6/8"),
        (Kind.INSTRUMENT, 0, "#D"),
        (Kind.INSTRUMENT, 53, "#P52"),
        (Kind.ONSET, 12, "T:12"),
        (Kind.PITCH, 60, "P:60"),
        (Kind.DURATION, 0, "L:1"),
        (Kind.VELOCITY, 0, "V:2"),
        (Kind.LENGTH, 15, "LENGTH:>256"),
        (Kind.DENSITY, 0, "DENSITY:<=0.25"),
    ],
)
def test_names_read_as_the_music_they_mean(kind, index, name):
    assert token_name(token_id(kind, index)) == name


def test_chords_and_keys_count_roots_upward_from_c():
    assert [chord_name(root * 7 + 1) for root in (0, 9)] == ["Cmin", "Amin"]
    assert [key_name(index) for index in (0, 7, 12, 21)] == [
        "C major",
        "G major",
        "C minor",
        "A minor",
    ]


def test_bins_close_at_their_upper_edge():
    for index, edge in enumerate(LENGTH_BIN_BARS):
        assert (length_bin(edge), length_bin(edge + 1)) == (index, index + 1)
    for index, edge in enumerate(DENSITY_BIN_NOTES_PER_QUARTER):
        assert (density_bin(edge), density_bin(edge * 1.001)) == (index, index + 1)


def test_a_saved_vocabulary_loads_as_it_was(tmp_path):
    save_vocabulary(tmp_path / "vocabulary.json")
    assert load_vocabulary(tmp_path / "vocabulary.json") == vocabulary_json()


def test_another_vocabulary_is_refused_with_both_fingerprints(tmp_path):
    path = tmp_path / "vocabulary.json"
    save_vocabulary(path)
    document = json.loads(path.read_text()) | {"fingerprint": "0" * 64}
    path.write_text(json.dumps(document))
    with pytest.raises(TokenError, match=f"found fingerprint {'0' * 64}, allowed {fingerprint()}"):
        load_vocabulary(path)


def test_a_vocabulary_that_contradicts_its_fingerprint_is_refused(tmp_path):
    path = tmp_path / "vocabulary.json"
    save_vocabulary(path)
    path.write_text(path.read_text().replace('"P:60"', '"P:61"'))
    with pytest.raises(TokenError, match="is damaged"):
        load_vocabulary(path)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "\x00"])
def test_a_file_that_is_no_vocabulary_is_refused_with_the_remedy(tmp_path, text):
    path = tmp_path / "vocabulary.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TokenError, match=re.escape("is no vocabulary") + ".*--output FILE"):
        load_vocabulary(path)


def test_the_refusal_names_what_carries_the_foreign_tokens():
    check_fingerprint(fingerprint(), "a checkpoint")
    with pytest.raises(TokenError, match="a checkpoint holds tokens of another vocabulary"):
        check_fingerprint("abc", "a checkpoint")
