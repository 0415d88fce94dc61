"""The recipe that compares rules: a table, a verdict, figures and their picture."""

import json

import pytest

from launch.tools.compare_rules import Flags, compare_rules
from meloformer.command_line import run_recipe


def test_the_recipe_prints_a_verdict_and_writes_figures_and_picture(
    chorale_shards, tmp_path, capsys
) -> None:
    path = tmp_path / "rules.json"
    flags = f"--data {chorale_shards} --minutes 0.00001 --seeds 1 --rules halves,dense_twin"
    flags += " --max_seq_len 256 --batch_size 1 --slice_steps 2 --validate_every 2 --warmup_steps 1"
    flags += f" --validation_rows 1 --device cpu --json {path}"
    with pytest.raises(SystemExit) as ending:
        run_recipe(compare_rules, Flags, flags.split())
    assert ending.value.code == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].endswith("dense attention, CPU"), "no line is broken in a file"
    assert any(line.startswith("dense_twin: ") and "no summaries" in line for line in lines)
    assert "at equal seconds halves wins" in said and "it is the default" in said
    figures = json.loads(path.read_text())
    assert set(figures["curves"]) == {"halves", "dense_twin"}
    assert figures["settings"]["data"] == chorale_shards.name, "no path of this machine"
    assert {"device", "versions", "commit", "machine", "threads", "load_average"} <= set(figures)
    assert set(figures["rules"]) == {"halves", "dense_twin"}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_absent_is_refused_before_anything_is_trained(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        run_recipe(compare_rules, Flags, ["--json", str(tmp_path / "absent" / "rules.json")])
    assert ending.value.code == 2
    assert "allowed: a file in a folder that does" in capsys.readouterr().err
