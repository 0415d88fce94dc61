"""launch/extract_summaries.py from a run and shards on disk, and the probes of the same run."""

import json
from pathlib import Path

import pytest

from meloformer.bridge.targets import SummaryTargets
from meloformer.command_line import run_recipe
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.tokens import vocabulary
from tests.bridge.bases import random_base
from tests.launch.recipes import load_recipe

extract_recipe = load_recipe("extract_summaries.py")
probe_recipe = load_recipe("tools/probe_summaries.py")


@pytest.fixture
def run_of(tmp_path: Path):
    """A run folder of a base that has never been trained."""

    def run_of_(**changes) -> Path:
        model = random_base(**{"width": 32, "ffn_width": 32, "max_seq_len": 128, **changes})
        facts = {"tokenizer": vocabulary.fingerprint()}
        save_model(tmp_path / "run" / "model", model.config, model.state_dict(), facts)
        return tmp_path / "run"

    return run_of_


def ending(recipe, config_class, capsys, *flags) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, config_class, [str(flag) for flag in flags])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def extract(capsys, *flags) -> tuple[object, str, str]:
    return ending(extract_recipe, extract_recipe.ExtractConfig, capsys, *flags)


def test_targets_are_tied_to_the_run_and_its_shards(
    run_of, chorale_shards, tmp_path, capsys
) -> None:
    run, output = run_of(open_summary_rate=0.3), tmp_path / "summaries"
    flags = ("--checkpoint", run, "--data", chorale_shards, "--output", output)
    code, said, _ = extract(capsys, *flags, "--max_bars", 4, "--overlap", 0)
    assert code == 0 and "train" in said and "deviation" in said
    targets = SummaryTargets.open(output)
    targets.check_base(model_fingerprint(run / "model"))
    facts = {
        name: targets.manifest[name] for name in ("layer", "max_bars", "overlap", "attributes")
    }
    assert facts == {"layer": 3, "max_bars": 4, "overlap": 0, "attributes": "absent"}
    assert targets.base["open_summary_rate"] == 0.3 and targets.base["max_seq_len"] == 128
    before = (output / "manifest.json").read_bytes()
    code, _, complaint = extract(capsys, *flags)
    assert code == 2 and "nothing was written" in complaint
    assert (output / "manifest.json").read_bytes() == before


def test_a_base_without_open_summaries_is_refused_and_nothing_written(
    run_of, chorale_shards, tmp_path, capsys
) -> None:
    flags = ("--data", chorale_shards, "--output", tmp_path / "summaries")
    code, _, complaint = extract(capsys, "--checkpoint", run_of(), *flags)
    assert code == 2 and complaint.count("\n") == 1 and "--allow_closed_base" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_probes_print_a_table_and_write_what_it_rests_on(
    run_of, chorale_shards, tmp_path, capsys
) -> None:
    run, file = run_of(num_layers=2), tmp_path / "probes.json"
    flags = ("--checkpoint", run, "--data", chorale_shards, "--json", file)
    sizes = ("--train_pieces", 6, "--test_pieces", 2)
    code, said, _ = ending(probe_recipe, probe_recipe.ProbeConfig, capsys, *flags, *sizes)
    assert code == 0 and "nothing (chance)" in said and "above chance" in said
    found = json.loads(file.read_text())
    assert found["fingerprint"] == model_fingerprint(run / "model")
    assert [(row["layer"], row["stream"]) for row in found["probes"]] == [
        (0, "tokens"),
        (1, "tokens"),
        (1, "summaries"),
        (2, "tokens"),
        (2, "summaries"),
    ]
