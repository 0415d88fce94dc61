import pytest
from hypothesis import HealthCheck, given, settings

from meloformer.errors import TokenError
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.tokens.__main__ import ShowConfig, main
from meloformer.tokens.hid import encode
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    OFFSET,
    Kind,
    fingerprint,
    load_vocabulary,
    token_name,
    vocabulary_json,
)
from tests.tokens.pieces import piece_of, quantised_pieces


def test_the_table_shows_every_block_with_its_first_id_and_size(capsys):
    main(ShowConfig())
    shown = capsys.readouterr().out
    rows = {cells[1]: cells for cells in (line.split() for line in shown.splitlines()) if cells[1:]}
    for kind in Kind:
        assert rows[kind.name][3] == str(OFFSET[kind])
        assert rows[kind.name][5] == str(BLOCK_SIZES[kind])
    assert fingerprint() in shown


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(quantised_pieces())
def test_every_token_of_a_file_is_shown_in_order(tmp_path, capsys, piece):
    write_midi(to_piece(piece), tmp_path / "piece.mid")
    main(ShowConfig(file=tmp_path / "piece.mid"))
    *lines, summary = capsys.readouterr().out.splitlines()
    ids = encode(piece)
    # The margin of a bar's first line is its number.
    shown = " ".join(line[6:] if line[4].isdigit() else line for line in lines).split()
    assert shown == " ".join(token_name(i) for i in ids).split()
    assert summary.startswith(f"{len(ids)} tokens, {piece.num_bars} bars, {piece.num_notes} notes")


def test_each_instrument_of_a_bar_has_a_line(tmp_path, capsys):
    notes = [(bar, instrument, 0, 60, 24, 66) for bar in (0, 1) for instrument in (0, 1, 9)]
    write_midi(to_piece(piece_of([3, 3], [40, 40], notes)), tmp_path / "piece.mid")
    main(ShowConfig(file=tmp_path / "piece.mid"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[0].startswith("#")] == ["#D", "#P0", "#P8"] * 2


def test_the_vocabulary_is_written_where_nothing_stands(tmp_path):
    main(ShowConfig(output=tmp_path / "vocabulary.json"))
    assert load_vocabulary(tmp_path / "vocabulary.json") == vocabulary_json()
    with pytest.raises(TokenError, match="name another --output"):
        main(ShowConfig(output=tmp_path / "vocabulary.json"))
    with pytest.raises(TokenError, match="cannot be written"):
        main(ShowConfig(output=tmp_path / "absent" / "vocabulary.json"))
