import builtins
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meloformer.errors import ConfigError, MidiError, ShardError
from meloformer.shards.convert import convert_midi
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.sources import open_source
from tests.shards.sources.hugging_face import (
    MIDICAPS_ROW,
    save_dict_to_disk,
    save_to_disk,
    write_stream,
)
from tests.shards.sources.outcomes import outcomes


def facts(midi: Path | str) -> dict[str, Any]:
    return {file.name: file.facts for file in open_source(str(midi)).files()}


def table_of(data: list[bytes], name: str = "midi", **columns: list[Any]) -> pa.Table:
    return pa.table({name: pa.array(data, pa.binary()), **columns})


@pytest.fixture
def captioned(chorales: list[bytes]) -> pa.Table:
    """Chorales with a caption each and what MidiCaps says of a piece."""
    captions = [f"A chorale, number {number}." for number in range(len(chorales))]
    others = {name: [value] * len(chorales) for name, value in MIDICAPS_ROW.items()}
    locations = [f"lmd_full/{number}.mid" for number in range(len(chorales))]
    return table_of(chorales, location=locations, caption=captions, **others)


def test_parquet_gives_a_file_a_row_with_all_that_midicaps_says(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table
) -> None:
    pq.write_table(captioned, tmp_path / "train.parquet", row_group_size=5)
    path = tmp_path / "train.parquet"
    assert outcomes(path) == {f"train.parquet/{row}": data for row, data in enumerate(chorales)}
    assert open_source(str(path)).survey().num_files == len(chorales)
    seventh = facts(path)["train.parquet/7"]
    assert seventh["caption"] == "A chorale, number 7."
    # Each thing once: the caption stands beside them.
    assert seventh["dataset"] == MIDICAPS_ROW | {"location": "lmd_full/7.mid"}


def test_folder_and_table_give_equal_pieces(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table
) -> None:
    (tmp_path / "loose").mkdir()
    for number, data in enumerate(chorales):
        (tmp_path / "loose" / f"{number:02d}.mid").write_bytes(data)
    pq.write_table(captioned, tmp_path / "a.parquet")
    save_to_disk(tmp_path / "saved", captioned)
    pieces = [
        [
            convert_midi(file.read(), "", ShardSettings()).stored.key
            for file in open_source(str(tmp_path / name)).files()
        ]
        for name in ("loose", "a.parquet", "saved")
    ]
    assert pieces[0] == pieces[1] == pieces[2]


def test_a_saved_dataset_is_read_shard_by_shard_without_what_the_library_caches(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table
) -> None:
    folder = save_to_disk(tmp_path / "saved", captioned, licence="cc-by-sa-4.0")
    write_stream(folder / "cache-0123456789abcdef.arrow", captioned)
    found = outcomes(folder)
    assert list(found.values()) == chorales
    assert next(iter(found)) == "data-00000-of-00002.arrow/0"
    survey = open_source(str(folder)).survey()
    assert survey.num_files == len(chorales)
    assert survey.licences == ("dataset_info.json: CC-BY-SA 4.0",)


def test_all_splits_of_a_saved_dataset_dict_are_read(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table
) -> None:
    splits = {"train": captioned.slice(0, 8), "test": captioned.slice(8)}
    found = outcomes(save_dict_to_disk(tmp_path / "dict", splits))
    assert sorted(found.values()) == sorted(chorales)  # type: ignore[type-var]
    assert {name.split("/")[0] for name in found} == {"train", "test"}


def test_a_lone_arrow_file_is_read_in_both_formats(tmp_path: Path, captioned: pa.Table) -> None:
    stream = write_stream(tmp_path / "stream.arrow", captioned)
    with (
        pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file,
        pa.ipc.new_file(file, captioned.schema) as writer,
    ):
        writer.write_table(captioned, max_chunksize=4)
    assert list(outcomes(stream).values()) == list(outcomes(tmp_path / "file.arrow").values())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("name", ["midi", "content", "an unlikely name"])
def test_the_music_is_found_by_its_first_bytes_whatever_its_column_is_called(
    tmp_path: Path, chorales: list[bytes], kind: pa.DataType, name: str
) -> None:
    noise = pa.array([b"no music"] * len(chorales), kind)
    table = pa.table({"bytes": noise, "id": range(12), name: pa.array(chorales, kind)})
    write_stream(tmp_path / "a.arrow", table)
    assert list(outcomes(tmp_path / "a.arrow").values()) == chorales


def test_a_struct_gives_its_bytes_or_else_the_file_that_it_names(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "2.mid").write_bytes(chorales[2])
    cells = [
        {"bytes": chorales[0], "path": "a.mid"},
        {"bytes": chorales[1], "path": None},
        {"bytes": None, "path": "loose/2.mid"},
        {"bytes": None, "path": None},
        None,
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"audio": pa.array(cells, kind)}), tmp_path / "a.parquet")
    assert outcomes(tmp_path / "a.parquet") == {
        "a.parquet/0": chorales[0],
        "a.parquet/1": chorales[1],
        "loose/2.mid": chorales[2],
        "a.parquet/3": "missing_file",
        "a.parquet/4": "missing_file",
    }


@pytest.mark.parametrize("layout", ["beside", "hub", "dict"])
def test_rows_that_name_files_bring_their_captions_and_no_file_comes_twice(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table, layout: str
) -> None:
    (tmp_path / "lmd_full").mkdir()
    for number, data in enumerate(chorales[:-1]):
        (tmp_path / "lmd_full" / f"{number}.mid").write_bytes(data)
    (tmp_path / "other.mid").write_bytes(chorales[0])
    rows = captioned.drop_columns(["midi"])
    if layout == "dict":
        save_dict_to_disk(tmp_path, {"train": rows.slice(0, 6), "test": rows.slice(6)})
    else:
        folder = tmp_path / "data" if layout == "hub" else tmp_path
        folder.mkdir(exist_ok=True)
        pq.write_table(rows, folder / "train-00000-of-00001.parquet")
    expected = {f"lmd_full/{number}.mid": data for number, data in enumerate(chorales)}
    expected |= {"other.mid": chorales[0], "lmd_full/11.mid": "missing_file"}  # type: ignore[dict-item]
    assert outcomes(tmp_path) == expected
    assert open_source(str(tmp_path)).survey().num_files == len(chorales) + 1
    found = facts(tmp_path)
    assert found["other.mid"] == {}
    assert found["lmd_full/3.mid"]["caption"] == "A chorale, number 3."


def test_a_location_that_leads_out_of_the_dataset_is_refused(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    (tmp_path / "secret.mid").write_bytes(chorales[0])
    (tmp_path / "in").mkdir()
    locations = ["../secret.mid", str(tmp_path / "secret.mid"), "gone.mid"]
    pq.write_table(pa.table({"location": locations}), tmp_path / "in" / "a.parquet")
    assert list(outcomes(tmp_path / "in").values()) == ["unsafe_path"] * 2 + ["missing_file"]


def test_a_folder_may_mix_loose_files_archives_and_tables(
    tmp_path: Path, chorales: list[bytes], captioned: pa.Table
) -> None:
    (tmp_path / "z.mid").write_bytes(chorales[0])
    pq.write_table(captioned, tmp_path / "a.parquet")
    assert len(outcomes(tmp_path)) == len(chorales) + 1


def test_a_table_without_midi_is_counted_and_says_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"score": [1.0], "name": ["x"]}), tmp_path / "a.parquet")
    [file] = open_source(str(tmp_path)).files()
    with pytest.raises(MidiError, match=r"no_midi_column: found score \(double\), name \(string\)"):
        file.read()
    assert open_source(str(tmp_path)).survey().num_files == 1


def test_a_table_of_no_rows_gives_no_files(tmp_path: Path) -> None:
    pq.write_table(table_of([]), tmp_path / "a.parquet")
    assert open_source(str(tmp_path)).survey().num_files == 0
    with pytest.raises(ShardError, match="no MIDI"):
        list(open_source(str(tmp_path)).files())


def test_facts_are_such_that_json_takes_them(tmp_path: Path, chorales: list[bytes]) -> None:
    table = table_of(chorales[:1], key=[None], genre_prob=[[math.nan, 0.5]], caption=[["", "b"]])
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    table = table.append_column("text", broken)
    write_stream(tmp_path / "a.arrow", table)
    assert facts(tmp_path / "a.arrow")["a.arrow/0"] == {
        "caption": "b",
        "dataset": {"genre_prob": [None, 0.5], "text": "caf�"},
    }


def test_further_captions_are_kept_without_the_first(tmp_path: Path, chorales: list[bytes]) -> None:
    table = table_of(chorales[:2], captions=[["one", "two"], None], text=["three", "four"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(facts(tmp_path / "a.parquet").values()) == [
        {"caption": "one", "dataset": {"captions": ["two"], "text": "three"}},
        {"caption": "four"},
    ]


def test_a_survey_says_which_columns_are_taken_as_what_and_which_are_not(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    table = table_of(chorales, text=["a"] * 12, genre=["b"] * 12, id=range(12), score=[0.5] * 12)
    save_to_disk(tmp_path / "saved", table)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "0.mid").write_bytes(chorales[0])
    pq.write_table(pa.table({"location": ["0.mid"]}), tmp_path / "named" / "a.parquet")
    source = open_source(str(tmp_path))
    said = (
        "named/a.parquet: music from the files that location names; nothing left out",
        "saved/data-00000-of-00002.arrow and 1 more: music from midi; fact caption from text; "
        "fact dataset from genre; left out id, score",
    )
    assert source.survey().columns == said
    assert source.survey().columns == said  # and a second look counts nothing twice


def test_rows_that_name_files_do_not_repeat_the_name_as_a_fact(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    (tmp_path / "0.mid").write_bytes(chorales[0])
    rows = {"location": ["0.mid"], "genre": ["pop"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert facts(tmp_path) == {"0.mid": {"dataset": {"genre": "pop"}}}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_table_cut_anywhere_is_never_taken_for_a_shorter_one(
    tmp_path: Path, captioned: pa.Table, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "arrow":
        write_stream(path, captioned)
    else:
        pq.write_table(captioned, path)
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), len(whole) // 30), len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=rf"a\.{ending} is damaged"):
            list(open_source(str(path)).files())


def test_parquet_that_swells_a_hundredfold_is_refused(tmp_path: Path) -> None:
    cells = [bytes(2**20)] * 80
    pq.write_table(
        table_of(cells), tmp_path / "a.parquet", compression="zstd", use_dictionary=False
    )
    with pytest.raises(ShardError, match="decompression bomb"):
        open_source(str(tmp_path)).survey()


def test_without_pyarrow_the_command_that_installs_it_is_named(
    tmp_path: Path, captioned: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(captioned, tmp_path / "a.parquet")
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"a\.parquet: .* pip install pyarrow"):
        open_source(str(tmp_path)).survey()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, ending: str) -> None:
    """Peak memory over 50 MB and 200 MB in one row group, each in a process of its own."""

    def peak(num_rows: int) -> int:
        path = tmp_path / f"{num_rows}.{ending}"
        table = table_of([b"MThd" + os.urandom(20_000) for _ in range(num_rows)])
        if ending == "arrow":
            write_stream(path, table)
        else:
            pq.write_table(table, path, row_group_size=num_rows)
        # Private memory: pages of the mapped file are the system's to take back.
        code = (
            "import re, sys; from meloformer.shards.sources import open_source;"
            "n = sum(len(file.read()) > 0 for file in open_source(sys.argv[1]).files());"
            "print(n, max(int(v) for v in re.findall(r'RssAnon:\\s+(\\d+)',"
            " open('/proc/self/status').read())))"
        )
        command = [sys.executable, "-c", code, str(path)]
        found, kilobytes = subprocess.run(command, capture_output=True, check=True).stdout.split()
        assert int(found) == num_rows
        return int(kilobytes)

    assert peak(10_000) - peak(2_500) < 10_000
