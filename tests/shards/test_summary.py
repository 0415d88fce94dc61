import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from meloformer.shards.manifest import Manifest, load_manifest
from meloformer.shards.summary import summary_table


@pytest.fixture
def manifest(chorale_shards: Path) -> Manifest:
    return load_manifest(chorale_shards)


def lines_of(table: Table) -> list[list[str]]:
    file = io.StringIO()
    Console(width=80, file=file).print(table)
    return [line.split() for line in file.getvalue().splitlines()]


def test_every_file_and_near_copy_is_accounted_for(manifest: Manifest) -> None:
    rejected = {"impossible_tempo": 4, "no_notes": 1}
    counted = replace(
        manifest, num_duplicates=3, rejected=rejected, num_clusters=7, num_near_copies=19
    )
    lines = lines_of(summary_table(counted, title="shards"))
    for line in (
        ["in", str(manifest.num_in)],
        ["duplicates", "3"],
        ["rejected", "5"],
        ["impossible_tempo", "4"],
        ["no_notes", "1"],
        ["near", "copies", "19"],
        ["in", "clusters", "7"],
    ):
        assert line in lines


def test_appended_inputs_stand_one_by_one(manifest: Manifest) -> None:
    more = replace(manifest.inputs[0], name="[more].tar", files=3)
    lines = lines_of(summary_table(replace(manifest, inputs=(*manifest.inputs, more)), title=""))
    assert ["[more].tar", "3"] in lines


def test_a_split_without_pieces_says_why(manifest: Manifest) -> None:
    empty = replace(manifest, splits=manifest.splits | {"test": ()})
    [line] = (line for line in lines_of(summary_table(empty, title="")) if line[:1] == ["test"])
    assert line[:4] == ["test", "(too", "few", "pieces)"]
