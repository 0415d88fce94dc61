"""Every file that reads must come back from its tokens, whole and bar by bar."""

import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import MidiError
from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.tokens.check import first_violation
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.hid import decode, decode_bar, encode
from meloformer.tokens.windows import bar_starts, cut_window
from tests.tokens.pieces import notes_of_bars

CORPORA = sorted((Path(__file__).parents[3] / "shared" / "corpora").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def scores():
    """Chorales and a quartet movement, quantised."""
    paths = default_corpus_paths()
    return [quantise(read_midi(score_to_midi(path))) for path in [*paths[:4], paths[-1]]]


def check_whole_and_bar_by_bar(piece, name):
    ids = encode(piece)
    assert decode(ids) == piece, name
    for bar in range(piece.num_bars):
        assert decode_bar(ids, bar) == notes_of_bars(piece, bar, bar + 1), (name, bar)
    return ids


def test_scores_come_back_whole_and_bar_by_bar(scores):
    for number, piece in enumerate(scores):
        check_whole_and_bar_by_bar(piece, number)


def test_scores_follow_the_grammar_token_by_token(scores):
    for piece in scores:
        assert GrammarState(encode(piece)).is_finished


def test_windows_of_scores_come_back(scores):
    for piece in scores:
        ids = encode(piece)
        for first in range(0, piece.num_bars, 5):
            last = min(first + 5, piece.num_bars)
            assert decode(cut_window(ids, first, last)) == notes_of_bars(piece, first, last)


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA, reason="../shared/corpora is not here")
@pytest.mark.parametrize("archive", CORPORA, ids=lambda path: path.name.split(".")[0])
def test_every_readable_file_comes_back_whole_and_bar_by_bar(archive):
    num_files, num_tokens, num_notes, bar_tokens = 0, 0, 0, []
    unreadable = defaultdict(list)
    with tarfile.open(archive) as files:
        for member in files:
            if not member.name.lower().endswith((".mid", ".midi")):
                continue
            num_files += 1
            source = files.extractfile(member)
            assert source is not None, member.name
            try:
                piece = quantise(read_midi(source.read()))
            except MidiError as error:
                unreadable[error.reason].append(f"{member.name}: {error.detail}")
                continue
            ids = check_whole_and_bar_by_bar(piece, member.name)
            assert first_violation(ids) is None
            num_tokens += len(ids)
            num_notes += piece.num_notes
            bar_tokens.append(np.diff(bar_starts(ids)))
    for reason, names in sorted(unreadable.items()):
        print(f"{reason}: {len(names)}", *names, sep="\n  ")
    tokens_of_bars = np.concatenate(bar_tokens)
    print(
        f"{archive.name}: {num_files} files, {len(bar_tokens)} come back, {num_notes} notes, "
        f"{num_tokens} tokens, {num_tokens / num_notes:.2f} tokens per note, "
        f"{tokens_of_bars.mean():.1f} per bar (median {np.median(tokens_of_bars):.0f})"
    )
    assert len(bar_tokens) + sum(map(len, unreadable.values())) == num_files
    assert bar_tokens
