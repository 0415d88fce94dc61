"""The two commands as people type them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meloformer.shards.manifest import load_manifest
from tests.shards.builds import keys_of, stopped_build

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def shard_data(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(REPOSITORY / "launch/shard_data.py", *arguments, cwd=cwd)


def inspect_shards(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(REPOSITORY / "launch/tools/inspect_shards.py", *arguments, cwd=cwd)


def test_shards_are_made_and_inspected_from_the_command_line(
    midi_folder: Path, tmp_path: Path
) -> None:
    made = shard_data(
        *("--midi", midi_folder, "--output", "out", "--num_workers", 2),
        *("--engine", "local", "--pedal", "off"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert "files per second" in made.stdout
    assert load_manifest(tmp_path / "out").num_duplicates == 2
    assert load_manifest(tmp_path / "out").settings.pedal == "off"

    proof = inspect_shards("out", "--verify", "--with", "webdataset", cwd=tmp_path)
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert proof.stdout.count("all pieces and sums are right") == 2

    tar = tmp_path / "out/train/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    proof = inspect_shards("out", "--verify", cwd=tmp_path)
    assert proof.returncode == 1
    assert "train/shard-000000.tar: found sha256" in proof.stdout

    tar.unlink()
    proof = inspect_shards("out", cwd=tmp_path)
    assert proof.returncode == 2
    assert proof.stderr.startswith("error: out/train/shard-000000.tar: found no such file")


def test_a_piece_is_printed_by_the_start_of_its_key(chorale_shards: Path, tmp_path: Path) -> None:
    key = keys_of(chorale_shards)["train"][0]
    printed = inspect_shards(chorale_shards, "--piece", key[:12], cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert "BOS" in printed.stdout
    assert "\nBAR:" in printed.stdout
    missing = inspect_shards(chorale_shards, "--piece", "xyz", cwd=tmp_path)
    assert missing.returncode == 2
    assert "no piece whose key starts with 'xyz'" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--midi", "nowhere"), "error: --midi nowhere: no such file or folder"),
        (("--midi", ""), 'error: --midi "": found no name; allowed: `default`'),
        (("--midi", "."), "error: --output out lies in --midi ., and what is written there would"),
        (("--min_bars", "abc"), "error: --min_bars: found 'abc', allowed a whole number"),
        (("--midi", "a", "b"), "error: found b, which follows no flag"),
        (("--num_workers", "0"), "error: --num_workers 0: allowed 1 or more"),
        (("--valid_share", "2"), "error: --valid_share 2.0: allowed"),
        (("--no_such_flag", "1"), "no_such_flag"),
        (("--engine", "abacus"), "abacus"),
    ],
)
def test_bad_input_gets_a_clear_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused = shard_data(*arguments, "--output", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_all_rejected_end_in_a_table_of_reasons(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "[x].mid").write_bytes(b"x")
    refused = shard_data("--midi", "bad", "--output", "out", "--num_workers", 1, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no usable MIDI in bad: all 1 files were rejected (1 ")
    assert re.search(r"unreadable +│ +1 │ \[x\]\.mid +│ found no", refused.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_the_pace_is_that_of_this_try(midi_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    made = ("--midi", midi_folder, "--output", output, "--num_workers", 1)
    stopped_build(midi_folder, output, 6)
    flags = ("--valid_share", 0.2, "--test_share", 0.2, "--pieces_per_shard", 4)
    went_on = shard_data(*made, *flags, cwd=tmp_path)
    assert went_on.returncode == 0, went_on.stderr
    assert went_on.stdout.splitlines()[-1].endswith("s; all files had been converted before")


def test_a_folder_is_named_as_it_is_whatever_stands_in_its_name(
    midi_folder: Path, tmp_path: Path
) -> None:
    name = "my [best] pieces " + "of all " * 9
    made = shard_data("--midi", midi_folder, "--report", name, "--num_workers", 1, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert f"report: {name}/report.html and" in made.stdout
