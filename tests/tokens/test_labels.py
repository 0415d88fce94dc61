import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.tokens.hid import encode
from meloformer.tokens.labels import HEADER, PREFIX, token_labels
from meloformer.tokens.vocabulary import EOS, Kind
from meloformer.tokens.windows import bar_starts
from tests.tokens.pieces import label_plainly, quantised_pieces, random_walk


@settings(deadline=None)
@given(quantised_pieces())
def test_labels_of_a_piece_are_those_of_a_plain_loop(piece):
    ids = encode(piece)
    labels, expected = token_labels(ids), label_plainly(ids)
    for name, values in vars(labels).items():
        assert values.tolist() == expected[name], name


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_labels_of_every_beginning_are_the_beginning_of_the_labels(seed):
    ids = random_walk(seed, num_bars=2)
    whole = token_labels(ids)
    for end in range(1, len(ids) + 1):
        for name, values in vars(token_labels(ids[:end])).items():
            assert np.array_equal(values, getattr(whole, name)[:end]), name


@settings(deadline=None)
@given(quantised_pieces())
def test_every_token_belongs_to_the_prefix_or_to_exactly_one_bar(piece):
    ids = encode(piece)
    labels, starts = token_labels(ids), bar_starts(ids)
    sizes = np.diff(starts)
    sizes[-1] += 1  # EOS
    expected = np.repeat(np.arange(-1, piece.num_bars), [starts[0], *sizes])
    assert np.array_equal(labels.bar, expected)
    assert np.array_equal(labels.instrument == PREFIX, labels.bar < 0)


@settings(deadline=None)
@given(quantised_pieces())
def test_eos_is_a_header_token_of_the_last_bar(piece):
    ids = encode(piece)
    labels = token_labels(ids)
    assert ids[-1] == EOS
    assert labels.bar[-1] == piece.num_bars - 1
    assert labels.instrument[-1] == HEADER
    assert labels.onset[-1] == 0
    assert labels.index[-1] == labels.index[-2] + 1


@pytest.mark.parametrize("name", ["bar", "instrument", "onset", "index"])
def test_labels_are_int32(name):
    ids = random_walk(0, num_bars=1)
    assert getattr(token_labels(ids), name).dtype == np.int32


def test_instruments_named_in_the_prefix_keep_the_label_of_the_prefix():
    ids = random_walk(3, num_bars=1, instruments={7})
    labels = token_labels(ids)
    of_instruments = labels.instrument[labels.kind == Kind.INSTRUMENT]
    assert set(of_instruments.tolist()) <= {PREFIX, 8}
