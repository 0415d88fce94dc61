"""launch/evaluate.py --midi and --checkpoint from flags to report."""

import json
import re
from pathlib import Path

import pytest

from launch.evaluate import EvaluateConfig, main
from meloformer.command_line import run_recipe
from meloformer.evaluation.statistics_judge import MEANINGS
from meloformer.evaluation.statistics_table import STATISTICS
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from tests.evaluation.judged_models import write_base
from tests.evaluation.test_judged_pieces import write_folder


def evaluate(*flags: object) -> object:
    with pytest.raises(SystemExit) as ending:
        run_recipe(main, EvaluateConfig, [*map(str, flags), "--num_workers", "1"])
    return ending.value.code


@pytest.fixture(scope="module")
def folders(tmp_path_factory, chorale_shards: Path) -> Path:
    """real/: chorales of the training split; mixed/: two pieces and three broken files."""
    folder = tmp_path_factory.mktemp("folders")
    (folder / "real").mkdir()
    train = ShardFolder.open(chorale_shards).split("train")
    for number in range(3):
        write_midi(to_piece(decode(train.read(number))), folder / f"real/{number}.mid")
    write_folder(folder / "mixed")
    return folder


def test_folders_are_judged_side_by_side(folders, chorale_shards, tmp_path, capsys) -> None:
    output = tmp_path / "reports/beside"
    flags = ("--midi", folders / "real", folders / "mixed", "--output", output)
    more = ("--player_seconds", "1", "--players", "1", "--distances", "8")
    assert evaluate(*flags, "--against", chorale_shards, "--n", "4", *more) == 0
    said = capsys.readouterr().out
    figures = json.loads((output / "statistics.json").read_text())
    reference = figures["reference"]
    assert list(figures["sets"]) == [reference, "real", "mixed"]
    assert reference.endswith(", held out") and figures["sets"][reference]["pieces"] == 4
    real, mixed = figures["sets"]["real"], figures["sets"]["mixed"]
    assert mixed["files"] == 5 and mixed["pieces"] == 2 and sum(mixed["unread"].values()) == 3
    assert mixed["statistics"]["readable"]["mean"] == pytest.approx(2 / 5)
    assert set(real["statistics"]) == set(MEANINGS)
    # They stand in the training split, bar for bar.
    assert real["statistics"]["copied_bars_verbatim"]["mean"] == 1
    assert real["statistics"]["tunes"]["mean"] == 1
    assert mixed["statistics"]["copied_bars_verbatim"]["n"] == 0, "bars of too few notes to tell"
    assert mixed["statistics"]["tunes"]["mean"] == 0
    assert "bar_similarity_error" not in figures["sets"][reference]["statistics"]
    assert len(real["bar_similarity"]) == 8
    assert sum(real["keys"].values()) == pytest.approx(1)
    for of in figures["sets"].values():
        for found in of["statistics"].values():
            assert found["n"] == 0 or found["low"] <= found["mean"] <= found["high"]
    lines = [json.loads(line) for line in (output / "pieces.jsonl").read_text().splitlines()]
    assert len(lines) == 4 + 3 + 5
    assert all(line["overlap"] > 0.95 for line in lines if line["set"] == "real")
    assert sum("unread" in line for line in lines) == 3
    for name in (*MEANINGS, "real", "mixed", "3 files not read"):
        assert name in said, name
    assert str(folders) not in (output / "statistics.json").read_text(), "no path of this machine"
    check_page((output / "report.html").read_text(), players=3)


def check_page(page: str, *, players: int) -> None:
    """One file, whole, that asks nobody for anything."""
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="(.{22})', page)
    assert sources == ["data:audio/wav;base64,"] * players
    for tag in ("svg", "figure", "table", "section", "audio"):
        assert page.count(f"<{tag}") == page.count(f"</{tag}>"), tag
    for statistic in STATISTICS:
        assert statistic.name.replace("_", " ") in page
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)


def test_names_from_files_are_no_markup(folders, tmp_path, capsys) -> None:
    (tmp_path / "<b>[bold]&").mkdir()
    name = tmp_path / "<b>[bold]&/<script>[red].mid"
    name.write_bytes((folders / "real/0.mid").read_bytes())
    (tmp_path / "<b>[bold]&/[bold]x.mid").write_bytes(b"MThd")
    output = tmp_path / "out"
    assert evaluate("--midi", name.parent, "--output", output, "--players", "0") == 0
    assert "<b>[bold]&, 1 piece " in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert "&lt;script&gt;[red].mid" in page
    check_page(page, players=0)


def test_a_model_is_scored_and_what_it_writes_is_judged(chorale_shards, tmp_path, capsys) -> None:
    base, output = write_base(tmp_path / "base"), tmp_path / "model"
    flags = ("--checkpoint", base, "--data", chorale_shards, "--output", output)
    more = ("--n", "3", "--bars", "2", "--players", "0", "--device", "cpu")
    assert evaluate(*flags, *more) == 0
    figures = json.loads((output / "statistics.json").read_text())
    assert list(figures["sets"]) == ["held out", "written"]
    assert figures["reference"] == "held out"
    written, held_out = figures["sets"]["written"], figures["sets"]["held out"]
    assert written["files"] == 3 == len(list((output / "samples").glob("*.mid")))
    assert held_out["statistics"]["bars"]["high"] <= 2, "real pieces are looked at as far"
    assert {"copied_bars_verbatim", "tunes", "bar_similarity_error"} <= set(written["statistics"])
    scored = figures["likelihood"]
    assert all({"PITCH", "DURATION", "BAR"} <= set(one["nats"]["per_kind"]) for one in scored)
    assert all(one["nats"]["num_notes"] == scored[0]["nats"]["num_notes"] for one in scored)
    assert scored[0]["nats"]["per_note"] > 0
    said = capsys.readouterr().out
    assert "nats of held-out pieces" in said and "written, " in said
    page = (output / "report.html").read_text()
    assert "<h2>Likelihood</h2>" in page
    check_page(page, players=0)


def test_bad_input_is_refused_in_a_line_and_nothing_is_written(
    folders, chorale_shards, tmp_path, capsys
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.mid").write_bytes(b"MThd")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    real, out = folders / "real", tmp_path / "out"
    base = write_base(tmp_path / "base")
    before = sorted(tmp_path.rglob("*"))
    for flags, message in (
        ((), "nothing to evaluate: found no --midi, --checkpoint or --control"),
        (("--midi", tmp_path / "empty"), "no MIDI in empty"),
        (("--midi", tmp_path / "broken"), "none of its 1 MIDI files can be read (1 "),
        (("--midi", tmp_path / "absent"), "no such file or folder"),
        (("--midi", real, real), "found 2 times"),
        (("--midi", real, "--output", tmp_path / "taken"), "found a folder that is not empty"),
        (("--midi", real, "--output", tmp_path / "file"), "found a file"),
        (("--midi", real, "--against", tmp_path / "empty"), "manifest.json"),
        (("--midi", real, "--control"), "--control with --midi"),
        (("--midi", real, "--checkpoint", base), "--midi with --checkpoint"),
        (("--midi", real, "--data", chorale_shards), "--midi with --data"),
        (("--midi", real, "--bridge", base), "--midi with --bridge"),
        (("--midi", real, "--alpha", ".3"), "--midi with --alpha, which goes with --control;"),
        (("--midi", real, "--top_p", ".5"), "with --top_p, which goes with --control or a model"),
        (("--midi", real, "--first_bars", "0"), "--first_bars 0"),
        (("--midi", real, "--player_seconds", "0"), "--player_seconds 0"),
        (("--checkpoint", base), "--checkpoint without --data"),
        (("--checkpoint", base, "--data", "d", "--steps", "2"), "--checkpoint with --steps"),
        (
            ("--checkpoint", base, "--data", chorale_shards, "--first_bars", "4"),
            "--first_bars with --checkpoint",
        ),
        (("--data", chorale_shards), "--data without --checkpoint"),
        (("--checkpoint", base, "--data", chorale_shards, "--bridge", base), "with --bridge"),
        (("--checkpoint", base, "--data", chorale_shards, "--against", base), "with --against"),
        (("--checkpoint", tmp_path / "empty", "--data", chorale_shards), "expected a run folder"),
        (("--checkpoint", base, "--data", tmp_path / "empty"), "manifest.json"),
    ):
        output = () if "--output" in flags else ("--output", out)
        assert evaluate(*flags, *output) == 2, flags
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1, error
        assert sorted(tmp_path.rglob("*")) == before, flags
