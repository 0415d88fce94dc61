"""Pieces that were asked for, as files: in their order, each as if it were the only one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.errors import GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.rendering import RenderingConfig
from meloformer.generation.text import Order
from meloformer.generation.writing import WritingConfig, how_to_get_a_band, write_orders
from meloformer.midi.limits import MAX_BARS
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.model import box
from meloformer.model.injection import Injection
from tests.generation.steered_models import BASE_WIDTH


@pytest.mark.parametrize("batch_size", [2, 64])
def test_files_are_those_of_each_order_alone_whatever_is_sampled_beside_it(
    base, tmp_path: Path, batch_size: int
) -> None:
    summaries_BSD = torch.randn(2, 3, BASE_WIDTH, generator=torch.Generator().manual_seed(0))
    injection = Injection(summaries_BSD=summaries_BSD, mask_BS=torch.ones(2, 3, dtype=torch.bool))
    one_player = ("0",)
    orders = [
        Order(title="long", controls=ControlConfig(bars=3, instruments=one_player)),
        Order(title="short", controls=ControlConfig(bars=1, tempo=90, instruments=one_player)),
        Order(
            title="[b]steered[/b]",
            controls=ControlConfig(bars=3, instruments=one_player),
            injection=injection,
        ),
    ]
    config = WritingConfig(
        output=tmp_path / "all.mid", num_samples=2, seed=3, batch_size=batch_size
    )
    write_orders(config, base, orders)
    names = [f"all-{number}{suffix}" for number in range(6) for suffix in (".mid", ".png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for place, order in enumerate(orders):
        write_orders(replace(config, output=tmp_path / "one.mid"), base, [order])
        for number in range(2):
            together, alone = (
                tmp_path / name for name in (f"all-{2 * place + number}.mid", f"one-{number}.mid")
            )
            assert together.read_bytes() == alone.read_bytes()
            music = quantise(read_midi(alone))
            assert music.num_bars == order.controls.num_bars


NO_PICTURE = RenderingConfig(piano_roll=False)
ONE_PLAYER = Order(title="", controls=ControlConfig(bars=2, instruments=("0",)))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_together_write_the_files_that_one_writes(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, num_processes: int
) -> None:
    def write(folder: str) -> str:
        output = tmp_path / folder / "a.mid"
        config = WritingConfig(output=output, num_samples=5, batch_size=2, rendering=NO_PICTURE)
        write_orders(config, base, [ONE_PLAYER])
        return capsys.readouterr().out

    assert "process 1 of" not in write("one")
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    shares = []
    for rank in range(num_processes):
        monkeypatch.setenv("RANK", str(rank))
        said = write("many")
        assert (f"process 1 of {num_processes}: " in said) == bool(said) == (rank == 0)
        shares.append(len(files(tmp_path / "many")))
    assert shares == {2: [3, 5], 3: [2, 4, 5]}[num_processes]
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_files_that_are_there_are_skipped_only_if_that_is_asked_for(
    base, tmp_path: Path, capsys
) -> None:
    config = WritingConfig(
        output=tmp_path / "a.mid", num_samples=4, batch_size=2, rendering=NO_PICTURE
    )
    write_orders(config, base, [ONE_PLAYER])
    whole = files(tmp_path)
    (tmp_path / "a-1.mid").unlink()
    (tmp_path / "a-0.mid").write_bytes(b"mine")
    capsys.readouterr()
    write_orders(replace(config, skip_existing=True), base, [ONE_PLAYER])
    said = capsys.readouterr().out
    assert "1 of 2 files are there" in said and "2 of 2 files are there" in said
    # The piece that was missing is the same as beside the others.
    assert files(tmp_path) == {**whole, "a-0.mid": b"mine"}
    write_orders(config, base, [ONE_PLAYER])
    assert files(tmp_path) == whole


def test_a_file_that_cannot_be_written_is_named(base, tmp_path: Path) -> None:
    config = WritingConfig(output=tmp_path / "a.mid", rendering=NO_PICTURE)
    (tmp_path / "a.mid").mkdir()  # after the flags were checked
    with pytest.raises(GenerationError, match=r"a\.mid: cannot be written"):
        write_orders(config, base, [ONE_PLAYER])


@pytest.mark.parametrize(("asked", "taken"), [(97.0, "96.63"), (96.63, None), (None, None)])
def test_a_tempo_that_is_not_of_the_grid_is_said_once_and_what_is_taken(
    base, tmp_path: Path, capsys, asked: float | None, taken: str | None
) -> None:
    controls = ControlConfig(bars=1, tempo=asked, instruments=("0",))
    config = WritingConfig(output=tmp_path / "a.mid", rendering=NO_PICTURE, controls=controls)
    orders = [Order(title="", controls=controls)] * 2
    write_orders(config, base, orders)
    lines = [line for line in capsys.readouterr().out.splitlines() if "--tempo" in line]
    line = f"--tempo 97: the nearest tempo of the grid is taken, {taken}"
    assert lines == ([line] if taken else [])


def test_more_bars_than_can_be_written_are_refused_before_the_first() -> None:
    assert ControlConfig(bars=MAX_BARS).num_bars == MAX_BARS
    for bars in (MAX_BARS + 1, 10**8):
        with pytest.raises(GenerationError, match=f"--bars {bars}: allowed are 1 to {MAX_BARS}"):
            ControlConfig(bars=bars)


@pytest.mark.parametrize(
    ("wishes", "is_told"),
    [
        ({}, True),
        ({"bars": 4, "tempo": 120.0}, True),
        ({"drums": False}, True),
        ({"instruments": ("0",)}, False),
        ({"num_instruments": 3}, False),
        ({"enter": ("drums:2",)}, False),
    ],
)
def test_only_who_asks_the_boxed_model_for_nobody_is_told_how_to_get_a_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict, is_told: bool
) -> None:
    config = WritingConfig(controls=ControlConfig(**wishes))
    monkeypatch.setattr(box, "BOX", tmp_path / "box")
    line = how_to_get_a_band(config, tmp_path / "box")
    assert (line is not None) == is_told
    assert how_to_get_a_band(config, tmp_path / "run") is None
    if line:
        *_, flags = line.partition(": ")
        asked = ControlConfig(instruments=tuple(flags.split()[1:]))
        assert flags.startswith("--instruments ") and len(asked.playing) == 4


def test_one_of_something_is_said_as_one(base, tmp_path: Path, capsys) -> None:
    controls = ControlConfig(bars=1, instruments=("0",), notes_per_bar="1-1")
    config = WritingConfig(output=tmp_path / "a.mid", rendering=NO_PICTURE)
    write_orders(config, base, [Order(title="", controls=controls)])
    said = " ".join(capsys.readouterr().out.split())
    assert ": 1 bar, Acoustic" in said and "a.mid: 1 bar, 1 note, " in said


def test_what_is_written_is_one_line_however_long_its_name(base, tmp_path: Path, capsys) -> None:
    output = tmp_path / ("a long name " * 9) / "out.mid"
    write_orders(WritingConfig(output=output, rendering=NO_PICTURE), base, [ONE_PLAYER])
    assert f"\n{output}: 2 bars, " in capsys.readouterr().out
