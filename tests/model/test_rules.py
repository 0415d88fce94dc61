"""Rules from files: read back as they were written, refused where they say nothing clear."""

import json
from pathlib import Path

import pytest
import torch

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model import attention
from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import RULES, HeadGroup, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.rules import describe_rule, load_rule, parse_rule, rule_to_json
from tests.layouts import as_torch, random_layout, tiny_config

GROUP = {"same_instrument": False, "bar_distances": [0, 1]}
# What no preset has: three shares, a far group, an instrument group that also reads near bars.
CUSTOM = [
    {"same_instrument": True, "bar_distances": [0], "order": "instrument", "share": 2},
    {"same_instrument": False, "bar_distances": [0, 8, 16], "order": "bar", "share": 1},
    {"same_instrument": False, "bar_distances": [], "order": "bar", "share": 1},
]


def written(folder: Path, value: object) -> str:
    path = folder / "rule.json"
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.parametrize("name", RULES)
def test_a_preset_goes_by_its_name_wherever_it_comes_from(name, tmp_path) -> None:
    groups = rule_to_json(RULES[name])
    assert load_rule(name) == name
    assert load_rule(written(tmp_path, groups)) == name
    assert rule_to_json(name) == name


def test_a_rule_from_a_file_comes_back_as_it_was_written(tmp_path) -> None:
    rule = load_rule(written(tmp_path, CUSTOM))
    assert rule == (
        HeadGroup(True, (0,), "instrument", 2),
        HeadGroup(False, (0, 8, 16)),
        HeadGroup(False, ()),
    )
    assert rule_to_json(rule) == CUSTOM
    assert rule_of(rule) == rule
    assert describe_rule(rule) == (
        "2 x same instrument and bars 0, 1 x bars 0 8 16, 1 x summaries alone"
    )


def test_order_and_share_may_be_left_out_and_distances_come_in_any_order() -> None:
    assert parse_rule([{**GROUP, "bar_distances": [4, 0]}], "x") == (HeadGroup(False, (0, 4)),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "an empty list"),
        ({}, "found {}"),
        (3, "found 3"),
        ("sparse", "'sparse'; allowed: museformer"),
        ([3], "group 1: found 3"),
        ([GROUP, {**GROUP, "heads": 2}], "group 2: found the unknown key heads"),
        ([{"share": 2}], "group 1: found no same_instrument and no bar_distances"),
        ([{**GROUP, "same_instrument": 1}], "same_instrument 1; allowed: a bool"),
        ([{**GROUP, "bar_distances": [0, -1]}], r"bar_distances \[0, -1\]; allowed"),
        ([{**GROUP, "bar_distances": [0, 0]}], r"bar_distances \[0, 0\]; allowed"),
        ([{**GROUP, "bar_distances": [0.5]}], r"bar_distances \[0.5\]; allowed"),
        ([{**GROUP, "bar_distances": [10**9]}], r"bar_distances \[1000000000\]; allowed.* 4096"),
        ([{**GROUP, "bar_distances": [True]}], r"bar_distances \[true\]; allowed"),
        ([{**GROUP, "bar_distances": 4}], "bar_distances 4; allowed"),
        ([{**GROUP, "order": "time"}], 'order "time"; allowed: bar or instrument'),
        ([{**GROUP, "order": ["bar"]}], r"order \[\"bar\"\]; allowed"),
        ([{**GROUP, "share": 0}], "share 0; allowed"),
        ([{**GROUP, "share": True}], "share true; allowed"),
        ([{"same_instrument": True, "bar_distances": None}], "reads every bar anyway"),
    ],
)
def test_a_rule_that_says_nothing_clear_is_refused_with_what_is_allowed(
    value, message, tmp_path
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        parse_rule(value, "rule.json")
    assert "rule.json" in str(refusal.value) and "allowed" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("[{", "cannot be read"), ("[" * 200_000, "cannot be read")],
)
def test_a_file_that_is_absent_or_damaged_is_refused(content, message, tmp_path) -> None:
    path = tmp_path / "rule.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_rule(str(path))


def test_a_name_that_is_no_preset_is_refused_with_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"--attention sparse: .* allowed: museformer, hid"):
        load_rule("sparse")


def test_shares_that_do_not_divide_the_heads_are_refused_with_the_remedy() -> None:
    rule = parse_rule(CUSTOM, "x")
    tiny_config(num_heads=4, num_kv_heads=4, rule=rule)
    with pytest.raises(ConfigError, match=r"2 key/value heads .* 4 parts .* multiples of 4; take"):
        tiny_config(rule=rule)


def test_the_settings_of_a_model_hold_the_rule_itself(tmp_path) -> None:
    config = tiny_config(num_heads=4, num_kv_heads=4, rule=parse_rule(CUSTOM, "x"))
    config.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rule"] == CUSTOM
    assert MuseFormerConfig.load(tmp_path) == config
    preset = tiny_config(rule="hid")
    preset.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rule"] == "hid"
    assert MuseFormerConfig.load(tmp_path) == preset


def test_settings_with_a_damaged_rule_are_refused(tmp_path) -> None:
    tiny_config().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rule": [{"share": 1}]}))
    with pytest.raises(CheckpointError, match=r"config\.json, rule, group 1: found no"):
        MuseFormerConfig.load(tmp_path)


def test_a_sparse_rule_without_summaries_is_refused() -> None:
    with pytest.raises(ConfigError, match="without summaries under rule halves: allowed: full"):
        tiny_config(summaries=False)


@pytest.mark.slow
@pytest.mark.parametrize("summaries", [True, False])
def test_compiled_flex_of_a_rule_from_a_file_and_of_no_summaries_equals_dense(summaries) -> None:
    rule = parse_rule(CUSTOM, "x") if summaries else "full"
    torch.manual_seed(0)
    config = tiny_config(num_layers=2, num_heads=4, num_kv_heads=4, rule=rule, summaries=summaries)
    model = MuseFormer(config).eval()
    layout = random_layout(seed=3)
    layout = layout if summaries else layout.without_summaries()
    tensors = as_torch(layout)
    ids = torch.randint(0, config.vocab_size, tensors.piece_BT.shape)
    groups = rule_of(rule)
    blocks = as_torch(build_blocks(layout, groups))
    with torch.no_grad():
        dense = model(ids, tensors, attention.build_plan(tensors, groups))
        flex = model(ids, tensors, attention.build_plan(tensors, groups, "flex", blocks))
    assert (dense - flex).abs().max() < 1e-5
