"""MIDI files that are continued, filled and accompanied, as launch/generate.py's flags say."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miditoolkit import Instrument, MidiFile, Note

import meloformer
from meloformer.errors import ConfigError, GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.file_editing import EditConfig, read_to_edit, write_edits
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import TextConfig
from meloformer.generation.writing import WritingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.layouts import tiny_config

TICKS_A_BAR = 4 * 480


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "width": 32, "ffn_width": 32, "max_seq_len": 1024}
    return MuseFormer(tiny_config(fill_rate=0.3, **sizes)).eval()


def write_song(path: Path, shift: int = 0) -> Path:
    """Six bars of piano and bass, by another writer than ours."""
    midi = MidiFile(ticks_per_beat=480)
    for program, pitch in ((0, 60), (33, 36)):
        track = Instrument(program=program)
        for bar in range(6):
            start = bar * TICKS_A_BAR + 960 + shift * (program == 0)
            track.notes.append(Note(velocity=66, pitch=pitch + bar, start=start, end=start + 480))
        midi.instruments.append(track)
    midi.dump(str(path))
    return path


def notes_of(path: Path) -> set[tuple[int, int, int, int]]:
    """Program (-1 drums), bar, start and pitch, read by another reader than ours."""
    return {
        (-1 if track.is_drum else track.program, note.start // TICKS_A_BAR, note.start, note.pitch)
        for track in MidiFile(str(path)).instruments
        for note in track.notes
    }


def change(
    model: MuseFormer, edits: EditConfig, output: Path, num_samples: int = 1, **controls: object
) -> None:
    wishes = ControlConfig(**controls)
    edits.check_wishes(wishes, TextConfig())
    config = WritingConfig(
        output=output,
        num_samples=num_samples,
        controls=wishes,
        sampling=SamplingConfig(top_k=40),
        seed=2,
    )
    write_edits(config, edits, model)


def test_a_continued_file_begins_as_it_was(model, tmp_path: Path) -> None:
    song, output = write_song(tmp_path / "song.mid"), tmp_path / "out.mid"
    change(model, EditConfig(continue_midi=song, from_bar=4), output, bars=3)
    kept = {note for note in notes_of(song) if note[1] < 4}
    found = notes_of(output)
    assert {note for note in found if note[1] < 4} == kept
    assert max(note[1] for note in found) == 6
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    change(model, EditConfig(continue_midi=song), output, bars=2, instruments=("drums",))
    found = notes_of(output)
    assert notes_of(song) == {note for note in found if note[1] < 6}
    assert {note[0] for note in found if note[1] >= 6} == {-1}


def test_each_version_of_a_filled_file_keeps_what_is_around(model, tmp_path: Path) -> None:
    song, output = write_song(tmp_path / "song.mid"), tmp_path / "new" / "out.mid"
    change(model, EditConfig(fill_midi=song, fill_bars="2-3"), output, num_samples=3)
    names = [f"out-{number}{suffix}" for number in range(3) for suffix in (".mid", ".png")]
    assert sorted(path.name for path in output.parent.iterdir()) == names
    versions = [notes_of(output.with_stem(f"out-{number}")) for number in range(3)]
    for found in versions:
        kept = {note for note in notes_of(song) if note[1] not in (2, 3)}
        assert {note for note in found if note[1] not in (2, 3)} == kept
    # More of them leave the first one as it was.
    change(model, EditConfig(fill_midi=song, fill_bars="2-3"), tmp_path / "one.mid")
    assert notes_of(tmp_path / "one.mid") == versions[0]


def test_an_accompanied_file_keeps_all_other_instruments(model, tmp_path: Path, capsys) -> None:
    song, output = write_song(tmp_path / "song.mid"), tmp_path / "out.mid"
    edits = EditConfig(accompany_midi=song)
    change(model, edits, output, instruments=("33", "drums"))
    found = notes_of(output)
    assert {note for note in found if note[0] == 0} == {n for n in notes_of(song) if n[0] == 0}
    assert {note[0] for note in found} <= {0, 33, -1}
    # Who plays in how many bars is said.
    said = capsys.readouterr().out
    for program, name in ((-1, "drums"), (33, "Fingered Electric Bass (33)")):
        num_bars = len({note[1] for note in found if note[0] == program})
        assert f"{name} in {num_bars} bar" in said, said
    change(model, EditConfig(fill_midi=song, fill_bars="5"), output, instruments=("33",))
    kept = {note for note in notes_of(song) if note[0] == 0 or note[1] != 5}
    assert kept <= notes_of(output)
    assert all(note[0] == 33 and note[1] == 5 for note in notes_of(output) - kept)


def test_programs_ask_by_the_same_names(model, tmp_path: Path) -> None:
    song, folder = write_song(tmp_path / "song.mid"), tmp_path / "model"
    save_model(folder, model.config, model.state_dict(), {"tokenizer": fingerprint()})
    piece = meloformer.generate(folder, seed=2, continue_midi=str(song), bars=2, top_k=40)
    change(model, EditConfig(continue_midi=song), tmp_path / "out.mid", bars=2)
    by_flags = quantise(read_midi(tmp_path / "out.mid"))
    assert quantise(piece) == by_flags
    with pytest.raises(GenerationError, match="--tempo with --continue_midi"):
        meloformer.generate(folder, continue_midi=str(song), tempo=90)


def test_a_notice_of_the_engine_is_one_line_of_the_command_whatever_the_number_of_versions(
    tmp_path: Path, capsys
) -> None:
    sizes = {"num_layers": 1, "width": 32, "ffn_width": 32, "max_seq_len": 1024}
    plain = MuseFormer(tiny_config(fill_rate=0.0, **sizes)).eval()
    song = EditConfig(fill_midi=write_song(tmp_path / "song.mid"), fill_bars="2-3")
    change(plain, song, tmp_path / "out.mid", num_samples=2)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("bars 2-3: the model was trained with --fill_rate 0 and does not read")
    assert said.count("--fill_rate") == 1 and "NoticeCode" not in said


def test_notes_that_the_grid_moves_are_counted_in_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    on_grid = read_to_edit("--fill_midi", write_song(tmp_path / "a.mid"), lines.append)
    assert not lines
    moved = read_to_edit("--fill_midi", write_song(tmp_path / "b.mid", shift=7), lines.append)
    assert lines == [f"{tmp_path / 'b.mid'}: 12 notes put on the grid (6 onsets moved)"]
    assert np.array_equal(moved.onset_steps, on_grid.onset_steps)


def test_what_is_no_way_to_change_a_file_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody: Any = None  # no model is asked
    song = EditConfig(continue_midi=write_song(tmp_path / "a.mid"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GenerationError, match=r"--output .*/file/out\.mid: cannot be written"):
        write_edits(WritingConfig(output=tmp_path / "file" / "out.mid"), song, nobody)
    aside = tmp_path / "new" / "out.mid"
    for flag in ("endless", "skip_existing", "compile"):
        with pytest.raises(ConfigError, match=f"^--{flag} with --continue_midi: allowed is one"):
            write_edits(WritingConfig(output=aside, **{flag: True}), song, nobody)
    with pytest.raises(GenerationError, match="missing"):
        missing = EditConfig(continue_midi=tmp_path / "missing.mid")
        write_edits(WritingConfig(output=aside), missing, nobody)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^2 processes with --continue_midi"):
        write_edits(WritingConfig(output=aside), song, nobody)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mid", "file"}


def test_a_damaged_file_is_read_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    song = write_song(tmp_path / "a.mid")
    song.write_bytes(song.read_bytes()[:-20])
    lines: list[str] = []
    read_to_edit("--continue_midi", song, lines.append)
    assert len(lines) == 1 and "damaged or wrapped" in lines[0]


def test_chinese_file_names_are_read_written_and_shown(model, tmp_path: Path, capsys) -> None:
    song = write_song(tmp_path / "歌曲 一.mid")
    output = tmp_path / "新 的" / "结果.mid"
    config = WritingConfig(output=output, controls=ControlConfig(bars=1), sampling=SamplingConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_edits(config, EditConfig(continue_midi=song), model)
    assert output.is_file() and output.with_suffix(".png").is_file()
    # However long: a name that is broken into two lines is none to copy.
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "7 bars" in line]
    assert line.startswith(f"{output} and .png: 7 bars") and "Fingered Electric Bass (33)" in line


@pytest.mark.parametrize(
    ("edits", "controls", "steering", "message"),
    [
        ({"continue_midi": "a", "fill_midi": "b"}, {}, {}, "at once: allowed: one of"),
        ({"from_bar": 3}, {}, {}, "--from_bar 3 without --continue_midi"),
        ({"fill_midi": "a"}, {}, {}, "--fill_midi alone"),
        ({"fill_bars": "4"}, {}, {}, "--fill_bars alone"),
        ({"fill_midi": "a", "fill_bars": "7-4"}, {}, {}, "--fill_bars 7-4: allowed"),
        ({"fill_midi": "a", "fill_bars": "all"}, {}, {}, "--fill_bars all: allowed"),
        ({"accompany_midi": "a"}, {}, {}, "without --instruments"),
        ({"accompany_midi": "a"}, {"bars": 4}, {}, "--bars with --accompany_midi: a piece keeps"),
        ({"continue_midi": "a"}, {"tempo": 90.0}, {}, "--tempo with --continue_midi: metre, tempo"),
        ({"continue_midi": "a"}, {"enter": ("0:1",)}, {}, "--enter with --continue_midi"),
        ({"continue_midi": "a"}, {"drums": False}, {}, "--no_drums with --continue_midi: who"),
        (
            {"continue_midi": "a"},
            {},
            {"summaries_from": Path("b")},
            "--summaries_from with --continue_midi",
        ),
    ],
)
def test_wishes_that_do_not_go_together_are_refused(edits, controls, steering, message) -> None:
    with pytest.raises(GenerationError, match=message) as refused:
        config = EditConfig(
            **{name: Path(v) if name.endswith("midi") else v for name, v in edits.items()}
        )
        config.check_wishes(ControlConfig(**controls), TextConfig(**steering))
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_that_cannot_be_read_is_refused_by_its_name(model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mid"
    bad.write_bytes(b"no music")
    for path in (bad, tmp_path / "absent.mid"):
        with pytest.raises(GenerationError, match=f"--continue_midi {path}"):
            change(model, EditConfig(continue_midi=path), tmp_path / "out.mid")
    assert not (tmp_path / "out.mid").exists()
