"""Words of users above a picture, in whatever script."""

import warnings
from pathlib import Path

import pytest
from matplotlib.font_manager import fontManager

from meloformer.midi.piano_roll import save_piano_roll
from meloformer.midi.title_fonts import drawable
from tests.midi.pieces import canonical_piece


def test_letters_that_no_font_has_become_an_ellipsis() -> None:
    assert drawable("结果, after 歌曲 1.mid", ()) == ("…, after … 1.mid", ["DejaVu Sans"])
    assert drawable("a [b] ^c-d\\", ())[0] == "a [b] ^c-d\\"


@pytest.mark.parametrize("has_chinese", [True, False])
def test_a_chinese_title_is_drawn_without_a_warning(
    has_chinese: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_chinese:
        bare = [font for font in fontManager.ttflist if "DejaVu" in font.name]
        monkeypatch.setattr(fontManager, "ttflist", bare)
    piece = canonical_piece([3], [40], [(0, 1, 0, 60, 24, 66)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_piano_roll(piece, tmp_path / "歌.png", title="歌曲 after 结果 [小]")
    assert (tmp_path / "歌.png").stat().st_size > 1000
