"""launch/evaluate.py --control from flags to report, with small models of random weights."""

import json
from pathlib import Path

import pytest

from launch.evaluate import EvaluateConfig, main
from launch.tools.compare_control import CompareControlConfig
from launch.tools.compare_control import main as compare
from meloformer.captions.build import build_captions
from meloformer.captions.caption_set import (
    FORMAT_NAME,
    FORMAT_VERSION,
    WindowCaptions,
    facts_path,
)
from meloformer.captions.settings import CaptionSettings
from meloformer.command_line import run_recipe
from meloformer.evaluation.control_report import JSON_NAME, MARKDOWN_NAME, PIECES_NAME
from meloformer.evaluation.control_scores import METRICS
from meloformer.shards.reader import ShardFolder
from tests.bridge.adapter_folders import write_adapter
from tests.evaluation.judged_models import write_base, write_models


@pytest.fixture(scope="module")
def trained(tmp_path_factory, chorale_shards: Path) -> Path:
    """Models as `write_models` names them, and captions.jsonl."""
    folder = write_models(tmp_path_factory.mktemp("judged"))
    build_captions(str(chorale_shards), folder / "captions.jsonl", CaptionSettings())
    return folder


def evaluate(
    trained: Path, shards: Path, output: Path, *more: str, bridge: str = "bridge"
) -> object:
    flags = f"--control --checkpoint {trained}/base --bridge {trained}/{bridge} --data {shards} "
    flags += f"--text_encoder {trained}/qwen --output {output} --device cpu --bars 1 --n 3"
    with pytest.raises(SystemExit) as ending:
        run_recipe(main, EvaluateConfig, [*flags.split(), *more])
    return ending.value.code


def test_a_model_is_judged_from_flags_to_report(trained, chorale_shards, tmp_path, capsys) -> None:
    output = tmp_path / "reports/control"
    captions = ("--captions", str(trained / "captions.jsonl"))
    assert evaluate(trained, chorale_shards, output, *captions, "--sections") == 0
    said = capsys.readouterr().out
    assert (output / MARKDOWN_NAME).read_text().strip() in said
    assert "3 of " in said and "pieces of the test split" in said
    figures = json.loads((output / JSON_NAME).read_text())
    ways = ("summaries", "attributes", "strict")
    rows = {f"{source}, {way}" for source in ("text", "shuffled", "true") for way in ways}
    assert set(figures["rows"]) == rows | {"piece", "none, summaries"}
    for row in figures["rows"].values():
        assert all({"mean", "low", "high", "n"} == set(found) for found in row["scores"].values())
    # What is told and kept by the grammar is heard again.
    assert figures["rows"]["true, strict"]["kept"]["tempo_bin"]["mean"] == 1
    assert figures["rows"]["true, strict"]["kept"]["metre"]["mean"] == 1
    assert figures["rows"]["piece"]["scores"]["tempo_near"]["mean"] == 1
    assert set(figures["nats_against_none"]) == {"own", "another", "text", "another_text"}
    assert set(figures["variety"]) == {"piece", "text, summaries", "text, attributes"}
    assert figures["retrieval"]["group_size"] == 3 and len(figures["sections"]) == 4
    lines = (output / PIECES_NAME).read_text().splitlines()
    pieces = [json.loads(line) for line in lines]
    assert len(pieces) == figures["n"] == 3
    assert all(set(piece["scores"]["piece"]) == set(METRICS) for piece in pieces)
    assert str(trained) not in (output / JSON_NAME).read_text(), "no path of this machine"


def test_bars_are_compared_within_pieces_and_between_two_of_one_text(
    trained, chorale_shards, tmp_path
) -> None:
    captions = ("--captions", str(trained / "captions.jsonl"))
    output = tmp_path / "likeness"
    more = (*captions, "--bars", "2", "--variety_n", "2")
    assert evaluate(trained, chorale_shards, output, *more, bridge="soft_prompt") == 0
    figures = json.loads((output / JSON_NAME).read_text())
    similarity, variety = figures["bar_similarity"], figures["variety"]
    assert set(similarity) == set(figures["rows"])
    assert (
        similarity["piece"]["error"]["mean"] == 0 < similarity["text, summaries"]["error"]["mean"]
    )
    assert all(len(row["by_distance"]) == 1 for row in similarity.values())
    assert figures["bar_similarity_chance"]["n"] == 3
    assert set(variety) == {"piece", "text, summaries"}
    assert all(found["n"] == 2 for found in variety.values())
    assert variety["text, summaries"]["mean"] > 0, "other seeds, other music"
    lines = (output / PIECES_NAME).read_text().splitlines()
    pieces = [json.loads(line) for line in lines]
    for name, found in variety.items():
        values = [piece["variety"][name] for piece in pieces]
        assert values.count(None) == 1
        assert sum(value or 0 for value in values) / 2 == pytest.approx(found["mean"])
    assert all(set(piece["bar_similarity"]) == set(similarity) for piece in pieces)
    report = (output / MARKDOWN_NAME).read_text()
    assert "| similarity error" in report and "| variety" in report


def test_rows_that_are_not_asked_for_are_not_written_and_nothing_asks_for_them(
    trained, chorale_shards, tmp_path, capsys
) -> None:
    output = tmp_path / "few"
    captions = ("--captions", str(trained / "captions.jsonl"), "--variety_n", "2")
    few = ("--rows", "none", "text", "--ways", "attributes")
    assert evaluate(trained, chorale_shards, output, *captions, *few) == 0
    figures = json.loads((output / JSON_NAME).read_text())
    assert set(figures["rows"]) == {"piece", "text, attributes", "none, summaries"}
    assert set(figures["bar_similarity"]) == set(figures["rows"])
    assert set(figures["variety"]) == {"piece", "text, attributes"}
    assert {one["beside"] for one in figures["comparisons"]} == {"none, summaries"}
    assert set(figures["nats_against_none"]) == {"own", "another", "text", "another_text"}
    assert figures["settings"]["judge"]["rows"] == ["none", "text"]
    alone = tmp_path / "alone"
    true = ("--rows", "true", "--ways", "strict")
    assert evaluate(trained, chorale_shards, alone, *captions, *true) == 0
    figures = json.loads((alone / JSON_NAME).read_text())
    assert set(figures["rows"]) == {"piece", "true, strict"} and not figures["comparisons"]
    assert figures["variety"] == {}
    capsys.readouterr()
    compared = CompareControlConfig(reports=(output, alone), row=("true", "none"))
    compare(compared)
    assert "without this row: few" in capsys.readouterr().out


def test_texts_that_say_the_same_do_the_same_however_long_their_own_pieces_are(
    trained, chorale_shards, tmp_path
) -> None:
    """Pieces of 1, 2 and 3 bars: another's text is asked for as many bars as the piece has."""
    index = ShardFolder.open(chorale_shards).split("test")
    windows = [
        WindowCaptions(
            location=key,
            key=key,
            split="test",
            first_bar=0,
            last_bar=bars,
            captions={"en": ["calm"]},
            templates={"en": ["en-90"]},
            mentions={"en": [["tempo"]]},
            attributes={"tempo_bpm": 90.0},
        )
        for bars, key in enumerate(index.keys()[:3], start=1)
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(window.to_line() for window in windows))
    facts = {"name": FORMAT_NAME, "format": FORMAT_VERSION}
    facts_path(path).write_text(json.dumps(facts | {"held_out_templates": {"en": ["en-90"]}}))
    output = tmp_path / "out"
    flags = ("--captions", str(path), "--bars", "3", "--rows", "none")
    assert evaluate(trained, chorale_shards, output, *flags) == 0
    pieces = [json.loads(line) for line in (output / PIECES_NAME).read_text().splitlines()]
    assert sorted(piece["name"][3] for piece in pieces) == [1, 2, 3]
    for piece in pieces:
        nats = piece["nats_per_note"]
        assert nats["another_text"] == pytest.approx(nats["text"], rel=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_and_no_heads_no_attributes(
    trained, chorale_shards, tmp_path, capsys
) -> None:
    captions = ("--captions", str(trained / "captions.jsonl"), "--language", "zh")
    found = []
    for name in ("a", "b"):
        output = tmp_path / name
        assert evaluate(trained, chorale_shards, output, *captions, bridge="plain_bridge") == 0
        found.append((output / JSON_NAME).read_text())
    assert found[0] == found[1]
    assert set(json.loads(found[0])["rows"]) == {
        "piece",
        *(f"{source}, summaries" for source in ("text", "shuffled", "true", "none")),
    }
    assert "the bridge has no attribute heads" in capsys.readouterr().out


def test_a_soft_prompt_is_judged_without_what_the_input_has_none_of(
    trained, chorale_shards, tmp_path, capsys
) -> None:
    captions = ("--captions", str(trained / "captions.jsonl"))
    output = tmp_path / "soft"
    more = (*captions, "--variety_n", "0")
    assert evaluate(trained, chorale_shards, output, *more, bridge="soft_prompt") == 0
    figures = json.loads((output / JSON_NAME).read_text())
    sources = ("text", "shuffled", "none")
    assert set(figures["rows"]) == {"piece", *(f"{source}, summaries" for source in sources)}
    assert set(figures["nats_against_none"]) == {"text", "another_text"}
    assert figures["retrieval"] is None and figures["variety"] == {}
    assert figures["settings"]["injection"].endswith("after layer 0")
    said = capsys.readouterr().out
    assert said.count("true summaries, their likelihood and retrieval not run") == 1


def test_a_users_captions_run_the_published_protocol(
    trained, chorale_shards, tmp_path, capsys
) -> None:
    path = tmp_path / "midicaps.jsonl"
    entries = [
        {
            "location": f"{n}.mid",
            "caption": "A calm piano piece.",
            "tempo": 90 + n,
            "key": "D minor",
        }
        for n in range(2)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    output = tmp_path / "out"
    flags = ("--captions", str(path), "--sections")
    assert evaluate(trained, chorale_shards, output, *flags, bridge="plain_bridge") == 0
    said = capsys.readouterr().out
    assert "| row " in said and "rows of true summaries not run" in said
    assert "## Two texts, one after the other" in said
    figures = json.loads((output / JSON_NAME).read_text())
    assert figures["variety"]["text, summaries"]["n"] == 2
    assert figures["variety"]["piece"]["n"] == 0, "no real piece is there"
    protocol = figures["protocol"]
    assert set(protocol) == {"text, summaries", "shuffled, summaries", "none, summaries"}
    assert set(protocol["text, summaries"]) == {"TB", "TBT", "CK", "CKD", "CR"}


def test_bad_input_ends_in_one_line_and_code_2(trained, chorale_shards, tmp_path, capsys) -> None:
    own = ("--captions", str(trained / "captions.jsonl"))
    other = write_base(tmp_path / "other", seed=1)
    file = tmp_path / "file"
    file.write_text("")
    plain = ("--bridge", str(trained / "plain_bridge"))
    soft = ("--bridge", str(trained / "soft_prompt"))
    adapted = ("--strategy", "adapter", "--adapter")
    soft_adapter = write_adapter(tmp_path / "adapter", trained / "soft_prompt")
    for flags, message in (
        ((), "--captions: found none"),
        (("--captions", "absent.jsonl"), "absent.jsonl"),
        ((*own, "--n", "1"), "--n 1"),
        ((*own, "--rows", "piece"), "piece"),
        ((*own, "--ways", "tight"), "tight"),
        ((*own, "--rows"), "--rows: found none; allowed: text"),
        ((*own, "--ways"), "--ways: found none; allowed: summaries"),
        ((*own, *plain, "--ways", "strict", "--rows", "text"), "no attribute heads; allowed"),
        ((*own, *soft, "--rows", "true"), "have no summaries of their own; allowed"),
        ((*own, "--variety_n", "-1"), "--variety_n -1"),
        ((*own, "--checkpoint", str(other)), "was trained on"),
        ((*own, "--output", str(file)), "--output"),
        ((*own, "--no-control"), "--control"),
        ((*own, "--alpha", "2"), "--alpha"),
        ((*own, "--strategy", "adapter"), "--strategy adapter without --adapter"),
        ((*own, *adapted, str(trained / "plain_bridge")), "'qformer'; allowed: adapter"),
        ((*own, *adapted, str(soft_adapter)), "an adapter to summaries that enter after layer 0"),
        ((*own, "--bridge", str(trained / "base")), "model_type"),
    ):
        assert evaluate(trained, chorale_shards, tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1, error
        assert not list((tmp_path / "out").glob("*")), "nothing half-written"
