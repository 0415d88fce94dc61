"""launch/evaluate.py --control from flags to report, with small models of random weights."""

import json
from pathlib import Path

import pytest
import torch

from launch.evaluate import EvaluateConfig, main
from meloformer.bridge.attribute_heads import AttributeHeads, AttributeHeadsConfig, save_heads
from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.captions.build import build_captions
from meloformer.captions.settings import CaptionSettings
from meloformer.command_line import run_recipe
from meloformer.evaluation.control_report import JSON_NAME, MARKDOWN_NAME, PIECES_NAME
from meloformer.evaluation.control_scores import METRICS
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.tokens.vocabulary import EOS, OFFSET, Kind, fingerprint
from tests.bridge.text_encoders import WIDTH, write_qwen3
from tests.layouts import tiny_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, chorale_shards: Path) -> Path:
    """base/, bridge/ with heads, plain_bridge/ without, captions.jsonl."""
    folder = tmp_path_factory.mktemp("judged")
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=4, width=32, ffn_width=32, num_heads=2))
    save_model(
        folder / "base/model", model.config, model.state_dict(), {"tokenizer": fingerprint()}
    )
    settings = write_qwen3(folder / "qwen") / "config.json"
    # Its tokenizer knows few words: captions are many tokens.
    longer = json.loads(settings.read_text()) | {"max_position_embeddings": 1024}
    settings.write_text(json.dumps(longer))
    encoder = TextEncoder.load(settings.parent, "cpu")
    small = {"width": 32, "num_layers": 1, "num_heads": 2, "ffn_width": 32}
    bridge = QFormer(QFormerConfig(text_width=WIDTH, summary_width=32, **small))
    facts = BridgeFacts.of(
        bridge,
        base={"fingerprint": model_fingerprint(folder / "base/model"), "width": 32},
        encoder=encoder.facts(),
        mean_D=torch.zeros(32),
        std_D=torch.ones(32),
    )
    for name in ("bridge", "plain_bridge"):
        save_bridge(folder / name / "model", facts, bridge.state_dict())
    heads = AttributeHeads(
        AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint=encoder.fingerprint)
    )
    save_heads(folder / "bridge/model", heads)
    build_captions(str(chorale_shards), folder / "captions.jsonl", CaptionSettings())
    return folder


def evaluate(trained: Path, shards: Path, output: Path, *more: str, bridge: str = "bridge") -> int:
    flags = f"--control --checkpoint {trained}/base --bridge {trained}/{bridge} --data {shards} "
    flags += f"--text_encoder {trained}/qwen --output {output} --device cpu --bars 1 --n 3"
    with pytest.raises(SystemExit) as ending:
        run_recipe(main, EvaluateConfig, [*flags.split(), *more])
    return int(ending.value.code)


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
    assert figures["retrieval"]["group_size"] == 3 and len(figures["sections"]) == 4
    lines = (output / PIECES_NAME).read_text().splitlines()
    pieces = [json.loads(line) for line in lines]
    assert len(pieces) == figures["n"] == 3
    assert all(set(piece["scores"]["piece"]) == set(METRICS) for piece in pieces)
    assert str(trained) not in (output / JSON_NAME).read_text(), "no path of this machine"


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
    flags = ("--captions", str(path))
    assert evaluate(trained, chorale_shards, output, *flags, bridge="plain_bridge") == 0
    assert "| row " in capsys.readouterr().out
    protocol = json.loads((output / JSON_NAME).read_text())["protocol"]
    assert set(protocol) == {"text, summaries", "shuffled, summaries", "none, summaries"}
    assert set(protocol["text, summaries"]) == {"TB", "TBT", "CK", "CKD", "CR"}


def test_bad_input_ends_in_one_line_and_code_2(trained, chorale_shards, tmp_path, capsys) -> None:
    own = ("--captions", str(trained / "captions.jsonl"))
    other = trained / "other"
    torch.manual_seed(1)
    model = MuseFormer(tiny_config(num_layers=4, width=32, ffn_width=32, num_heads=2))
    save_model(other, model.config, model.state_dict(), {"tokenizer": fingerprint()})
    file = tmp_path / "file"
    file.write_text("")
    for flags, message in (
        ((), "--captions: found none"),
        (("--captions", "absent.jsonl"), "absent.jsonl"),
        ((*own, "--n", "1"), "--n 1"),
        ((*own, "--checkpoint", str(other)), "was trained on"),
        ((*own, "--output", str(file)), "--output"),
        ((*own, "--no-control"), "--control"),
        ((*own, "--alpha", "2"), "--alpha"),
        ((*own, "--bridge", str(trained / "base")), "model_type"),
    ):
        assert evaluate(trained, chorale_shards, tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1, error
        assert not list((tmp_path / "out").glob("*")), "nothing half-written"
