"""data_shards/README.md against a folder as it is built: what it names is there, and no more."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meloformer.midi.filters import FilterSettings
from meloformer.shards.manifest import SPLITS, load_manifest
from meloformer.shards.sources import columns
from meloformer.shards.verify_shard import read_tar
from tests.shards.builds import build

README = (Path(__file__).parents[2] / "data_shards" / "README.md").read_text(encoding="utf-8")


def table_behind(words: str) -> dict[str, str]:
    """Names in the first column of the table that follows some words, each with its row."""
    table = README.split(words, 1)[1].split("\n|", 1)[1].split("\n\n", 1)[0]
    rows = [line for line in table.splitlines()[1:] if not line.startswith("|---")]
    return {name: row for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.fixture(scope="module")
def manifest(built: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def pieces_of(folder: Path) -> Iterator[dict[str, Any]]:
    for tar in folder.rglob("*.tar"):
        for plain in read_tar(tar):
            yield plain.facts


def test_facts_are_those_that_stand_in_the_tars(
    chorales: list[bytes], built: Path, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"midi": chorales[:4], "caption": ["a waltz"] * 4, "genre": ["pop"] * 4}
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    build(tmp_path / "a.parquet", tmp_path / "shards")
    found = {
        name for folder in (built, tmp_path / "shards") for f in pieces_of(folder) for name in f
    }
    assert set(table_behind("Facts:")) - {"recovered"} == found - {"recovered"}


def test_arrays_of_an_index_and_fields_of_signatures_are_those_of_the_files(built: Path) -> None:
    entry = load_manifest(built).splits["train"][0]
    named = table_behind("## An index")
    with np.load(built / entry.index_file) as index:
        assert set(named) == set(index)
        for name, row in named.items():
            kind = str(index[name].dtype)
            if index[name].dtype.kind == "S":
                kind = f"{index[name].dtype.itemsize} bytes"
            assert kind in row
    copies = np.load(built / entry.signatures_file)
    said = " ".join(README.split("The signatures are", 1)[1].split("\n\n", 1)[0].split())
    assert re.findall(r"`(\w+)`", said) == list(copies.dtype.names)
    assert f"`signature` ({copies['signature'].shape[1]} uint32" in said
    assert f"`cluster` ({copies['cluster'].dtype.itemsize} bytes)" in said


def test_entries_of_the_manifest_are_those_of_the_file(manifest: dict[str, Any]) -> None:
    named = table_behind("## The manifest")
    assert set(named) - {"format_version"} == set(manifest) - {"format_version"}
    for part in ("settings", "counts", "near_copies"):
        found = set(re.findall(r"`(\w+)`", named[part].split("|", 2)[2]))
        assert set(manifest[part]) == found
    of_input = named["inputs"].split("|", 2)[2]
    assert set(manifest["inputs"][0]) == set(re.findall(r"`(\w+)`", of_input))
    shards = manifest["splits"]["train"]["shards"]
    assert set(table_behind("Each of the `shards`")) == set(shards[0])
    in_splits = set(re.findall(r"`(\w+)`", named["splits"].split("|", 2)[2]))
    assert in_splits == set(manifest["splits"]["train"]) | set(SPLITS)


def test_every_filter_has_its_flag_in_the_text() -> None:
    for name in (*vars(FilterSettings()), "max_bar_tokens"):
        assert f"`--{name}`" in README


def test_names_of_columns_are_those_that_are_read() -> None:
    text = README.split("## From a Hugging Face dataset", 1)[1].split("\n## ", 1)[0]
    for names in (
        columns._BYTES_NAMES,
        columns._LOCATION_NAMES,
        columns._CAPTION_NAMES,
        columns._MIDICAPS_NAMES,
    ):
        assert all(f"`{name}`" in text for name in names)


def test_rejections_hold_what_is_said_of_them(built: Path) -> None:
    lines = (built / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    for entry in map(json.loads, lines):
        wanted = {"path", "reason"}
        wanted |= {"repeats", "key"} if entry["reason"] == "duplicate" else {"detail"}
        assert set(entry) == wanted
