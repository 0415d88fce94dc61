import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.command_line import parse_flags
from meloformer.midi.filters import FilterSettings
from meloformer.shards.card import commands, data_card
from meloformer.shards.manifest import (
    InputEntry,
    Manifest,
    ShardSettings,
    flat_settings,
    load_manifest,
)
from tests.shards.builds import build, find_faults_of
from tests.shards.damage import edit_manifest


@pytest.fixture
def manifest(chorale_shards: Path) -> Manifest:
    return load_manifest(chorale_shards)


def front_matter(card: str) -> dict[str, list[str]]:
    """The flat lists of the YAML block, read by hand."""
    lines = card.split("---\n")[1].splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.endswith(":") and not line.startswith((" ", "-")):
            found[line[:-1]] = []
        elif line.startswith("- "):
            list(found.values())[-1].append(line[2:])
    return found


def test_the_folder_carries_its_card(chorale_shards: Path, manifest: Manifest) -> None:
    assert (chorale_shards / "README.md").read_text(encoding="utf-8") == data_card(manifest)


def test_the_hub_finds_licence_size_and_tags_in_the_front_matter(manifest: Manifest) -> None:
    licences = ("a/LICENSE: CC-BY 4.0", "b/LICENSE: CC0", "c/COPYING: GPL 3", "and more: MIT, BSD")
    entry = replace(manifest.inputs[0], licences=licences)
    found = front_matter(data_card(replace(manifest, inputs=(entry,))))
    assert found["license"] == ["bsd", "cc-by-4.0", "cc0-1.0", "gpl-3.0", "mit"]
    assert found["size_categories"] == ["n<1K"]
    assert "midi" in found["tags"]
    assert f"- {entry.name}/b/LICENSE: CC0" in data_card(replace(manifest, inputs=(entry,)))
    assert found["task_categories"]


def test_the_front_matter_is_yaml_that_names_every_split_with_pieces(manifest: Manifest) -> None:
    yaml = pytest.importorskip("yaml")
    no_test = replace(manifest, splits=manifest.splits | {"test": ()})
    for of, names in (
        (manifest, ["train", "validation", "test"]),
        (no_test, ["train", "validation"]),
    ):
        block = yaml.safe_load(data_card(of).split("---\n")[1])
        files = block["configs"][0]["data_files"]
        assert [entry["split"] for entry in files] == names
        assert files[0]["path"] == "train/*.tar"


def test_the_card_says_where_every_file_went(manifest: Manifest) -> None:
    card = data_card(
        replace(
            manifest, num_in=manifest.num_pieces + 7, num_duplicates=2, rejected={"a": 4, "b": 1}
        )
    )
    assert f"{manifest.num_pieces + 7:,} = {manifest.num_pieces:,} + 2 + 5" in card
    assert "| `a` | 4 |" in card
    assert f"| train | {manifest.total('train', 'pieces'):,} |" in card


def test_its_command_makes_the_same_settings_again(manifest: Manifest) -> None:
    settings = ShardSettings(
        pedal="off", near_copy_threshold=0.0, filters=FilterSettings(min_bars=8)
    )
    [command] = commands(replace(manifest, settings=settings))
    words = shlex.split(command)
    assert words[:4] == ["python", "launch/shard_data.py", "--midi", manifest.inputs[0].name]
    flags = words[words.index("--output") + 2 :]
    assert parse_flags(ShardSettings, flags) == settings
    assert "num_workers" not in data_card(manifest)


def test_default_settings_are_not_repeated(manifest: Manifest) -> None:
    [command] = commands(replace(manifest, settings=ShardSettings()))
    assert not any(f"--{name} " in command for name in flat_settings(ShardSettings()))


def test_an_appended_folder_says_each_command_in_turn(manifest: Manifest) -> None:
    more = InputEntry(name="more songs", fingerprint="0" * 64, files=3)
    first, second = commands(replace(manifest, inputs=(*manifest.inputs, more)))
    assert "--append" not in first
    assert "--midi 'more songs'" in second
    assert second.endswith(" --append")


def test_a_strange_input_name_cannot_break_the_card(manifest: Manifest) -> None:
    entry = replace(manifest.inputs[0], name="a|b\n---\n`c`<script>")
    card = data_card(replace(manifest, inputs=(entry,)))
    head, command = card.split("## How it was made")
    assert "<script>" not in head
    assert command.count("<script>") == 1  # quoted for the shell
    assert card.count("\n---\n") == data_card(manifest).count("\n---\n")


def test_columns_of_a_dataset_stand_in_manifest_and_card(
    chorales: list[bytes], tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"midi": chorales, "caption": ["a waltz"] * len(chorales), "id": chorales})
    parquet.write_table(table, tmp_path / "train.parquet")
    said = "train.parquet: music from midi; fact caption from caption; left out id"
    made = build(tmp_path / "train.parquet", tmp_path / "shards")
    assert load_manifest(tmp_path / "shards").inputs[0].columns == (said,)
    assert f"- train.parquet: {said}\n" in data_card(made)
    assert find_faults_of(tmp_path / "shards") == []


def test_a_manifest_without_columns_is_read(chorale_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(chorale_shards, tmp_path / "shards"))
    edit_manifest(folder, lambda data: data["inputs"][0].pop("columns"))
    assert load_manifest(folder).inputs[0].columns == ()
