"""launch/tools/inspect_shards.py as people type it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest

from launch.tools.inspect_shards import InspectShardsConfig, inspect_shards
from meloformer.command_line import run_recipe
from meloformer.shards.manifest import load_manifest
from tests.shards.damage import edit_arrays, edit_manifest, flip_a_byte, make_sums_fit

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def shards(chorale_shards: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(chorale_shards, tmp_path / "shards"))


class Outcome(NamedTuple):
    """How a recipe ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The recipe in this process: to start one takes longer than to look at a few pieces."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ending:
            run_recipe(inspect_shards, InspectShardsConfig, [str(word) for word in arguments])
        code = ending.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


def test_the_command_runs_as_it_is_typed(chorale_shards: Path) -> None:
    script = REPOSITORY / "launch/tools/inspect_shards.py"
    command = [sys.executable, str(script), str(chorale_shards), "--verify", "--num_workers", "2"]
    proof = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "all pieces and sums are right" in proof.stdout


def test_a_folder_is_summed_up_for_people_and_as_json(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    shown = inspect(chorale_shards)
    assert shown.returncode == 0, shown.stderr
    assert "near copies" in shown.stdout
    data = inspect(chorale_shards, "--json")
    manifest = load_manifest(chorale_shards)
    assert json.loads(data.stdout)["counts"] == manifest.to_json()["counts"]


def test_a_split_a_shard_and_a_piece_can_be_listed(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    entry = load_manifest(chorale_shards).splits["valid"][0]
    split = inspect(chorale_shards, "--split", "valid")
    assert split.returncode == 0, split.stderr
    assert entry.file in split.stdout
    assert entry.sha256[:12] in split.stdout

    shard = json.loads(inspect(chorale_shards, "--shard", "valid/shard-000000", "--json").stdout)
    assert len(shard["pieces"]) == entry.pieces
    last = shard["pieces"][-1]
    by_number = inspect(chorale_shards, "--piece", f"valid:{last['number']}", "--json")
    by_key = inspect(chorale_shards, "--piece", last["piece"][:12], "--json")
    row = entry.pieces - 1
    by_row = inspect(chorale_shards, "--piece", f"valid/shard-000000.tar:{row}", "--json")
    assert json.loads(by_number.stdout) == json.loads(by_key.stdout) == json.loads(by_row.stdout)
    assert json.loads(by_key.stdout)["facts"] == last["facts"]
    shown = inspect(chorale_shards, "--piece", last["piece"])
    assert "BOS" in shown.stdout
    assert "\nBAR:" in shown.stdout


def test_a_table_of_pieces_names_every_piece(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    shown = inspect(chorale_shards, "--shard", "train/shard-000001.tar")
    assert shown.returncode == 0, shown.stderr
    listed = json.loads(
        inspect(chorale_shards, "--shard", "train/shard-000001.tar", "--json").stdout
    )
    assert listed["pieces"]
    assert all(piece["piece"] in shown.stdout for piece in listed["pieces"])


def test_whole_shards_pass_both_proofs(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    proof = inspect(chorale_shards, "--verify", "--with", "webdataset")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "all pieces and sums are right" in proof.stdout


def test_damage_is_named_and_ends_with_1(inspect: Callable[..., Outcome], shards: Path) -> None:
    flip_a_byte(shards / "train/shard-000000.tar", 700)
    (shards / "valid/shard-000000.tar").unlink()
    proof = inspect(shards, "--verify")
    assert proof.returncode == 1
    assert "wrong: " in proof.stdout
    assert "train/shard-000000.tar: found sha256" in proof.stdout
    assert "valid/shard-000000.tar: found no such file" in proof.stdout
    data = inspect(shards, "--verify", "--json")
    assert data.returncode == 1
    assert any("no such file" in fault for fault in json.loads(data.stdout)["faults"])
    # Without --verify it is not the place to find out more: it cannot be read.
    assert inspect(shards).returncode == 2


def test_a_start_of_several_keys_is_refused_with_pieces_that_have_it(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    first = json.loads(inspect(chorale_shards, "--piece", "train:0", "--json").stdout)["piece"]
    refused = inspect(chorale_shards, "--piece", first[0])
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"pieces have keys that start with '{first[0]}' (train:0 {first}" in refused.stderr
    assert "give more of the key" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--piece", "0", "--shard", "train/shard-000000"),
        ("--piece", "0", "--split", "train"),
        ("--piece", "0", "--verify"),
        ("--shard", "train/shard-000000", "--with", "webdataset"),
        ("--shard", "train/shard-000000", "--split", "train"),
    ],
)
def test_what_cannot_be_asked_together_is_refused_in_one_line(
    inspect: Callable[..., Outcome], chorale_shards: Path, arguments: tuple[str, ...]
) -> None:
    refused = inspect(chorale_shards, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    flags = [word for word in arguments if word.startswith("--")]
    assert all(flag in refused.stderr for flag in flags)


def test_the_longest_piece_and_bar_are_shown_with_key_and_source(
    inspect: Callable[..., Outcome], chorale_shards: Path
) -> None:
    longest = json.loads(inspect(chorale_shards, "--json").stdout)["longest"]
    shown = inspect(chorale_shards).stdout
    for what in ("piece", "bar"):
        assert longest[what]["key"] in shown
        assert longest[what]["source"] in shown
        assert f"{longest[what]['tokens']:,}" in shown
    assert "0 over 1,024, 0 over 2,048, 0 over 4,096" in shown
    entry = load_manifest(chorale_shards).splits["train"][0]
    listed = inspect(chorale_shards, "--split", "train").stdout
    assert "longest bar" in listed
    assert f"{entry.longest_bar:,}" in listed


def test_one_split_alone_is_compared_with_webdataset(
    inspect: Callable[..., Outcome], shards: Path
) -> None:
    flip_a_byte(shards / "train/shard-000000.tar", 0)
    assert inspect(shards, "--with", "webdataset", "--split", "valid").returncode == 0
    assert inspect(shards, "--with", "webdataset").returncode != 0


def damage_of_every_kind(shards: Path) -> dict[str, str]:
    """Spoil a folder in six ways; returns what names each."""
    flip_a_byte(shards / "train/shard-000000.tar", 700)
    with (shards / "train/shard-000001.tar").open("r+b") as file:
        file.truncate(5000)
    (shards / "valid/shard-000000.index.npz").unlink()
    edit_manifest(shards, lambda data: data["splits"]["test"].update(tokens=1))
    shutil.copy(shards / "train/shard-000002.tar", shards / "train/shard-000077.tar")
    with (shards / "rejected.jsonl").open("a") as file:
        file.write('{"path": "x.mid", "reason": "no_notes"}\n')
    return {
        "train/shard-000000.tar": "found sha256",
        "train/shard-000001.tar": "found 5000 bytes",
        "valid/shard-000000.index.npz": "found no such file",
        "manifest.json": "test: found tokens = 1, its shards and reasons give",
        "train/shard-000077.tar": "found a file that the manifest does not list",
        "rejected.jsonl": "found 1 lines of reason no_notes, expected 0",
    }


def test_every_damage_at_once_is_told_in_a_line_that_names_its_file(
    inspect: Callable[..., Outcome], shards: Path
) -> None:
    damages = damage_of_every_kind(shards)
    proof = inspect(shards, "--verify")
    assert proof.returncode == 1
    for file, said in damages.items():
        assert any(
            line.startswith(f"wrong: {shards}/{file}: {said}") for line in proof.stdout.splitlines()
        ), file


def test_many_faults_of_one_shard_hide_no_other_file(
    inspect: Callable[..., Outcome], shards: Path
) -> None:
    """Every piece of a shard in the wrong place, and a file that nothing lists."""
    entry = load_manifest(shards).splits["train"][0]

    def edit(arrays: dict[str, np.ndarray]) -> None:
        for name in ("ids_offset", "facts_offset", "ids_crc32", "num_notes"):
            arrays[name] += 1

    edit_arrays(shards / entry.index_file, edit)
    make_sums_fit(shards)
    flip_a_byte(shards / "valid/shard-000000.tar", 700)
    shown = inspect(shards, "--verify").stdout
    assert f"{entry.file}: " in shown
    assert " more; --json prints all" in shown
    assert "valid/shard-000000.tar: found sha256" in shown


def test_a_number_of_the_manifest_that_is_none_is_refused_in_one_line(
    inspect: Callable[..., Outcome], shards: Path
) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["splits"]["train"]["shards"][0]["pieces"] = "many"

    edit_manifest(shards, edit)
    refused = inspect(shards, "--verify")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "pieces of train/shard-000000.tar: found 'many'" in refused.stderr


@pytest.mark.parametrize("name", ["../secret.tar", "/secret.tar", "train/../../secret.tar"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(
    inspect: Callable[..., Outcome], shards: Path, name: str
) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["splits"]["train"]["shards"][0]["file"] = name

    edit_manifest(shards, edit)
    refused = inspect(shards, "--verify")
    assert refused.returncode == 2
    assert f"file '{name}' leads out of the folder" in refused.stderr


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_counts_that_do_not_add_up_end_with_1(
    inspect: Callable[..., Outcome], shards: Path, verify: tuple[str, ...]
) -> None:
    edit_manifest(shards, lambda data: data["counts"].update({"in": data["counts"]["in"] + 1}))
    proof = inspect(shards, *verify)
    assert proof.returncode == 1
    assert "expected pieces + duplicates + rejected" in proof.stdout


def test_a_folder_behind_a_url_is_listed_and_verified(
    inspect: Callable[..., Outcome], chorale_shards: Path, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    handler = partial(QuietHandler, directory=str(chorale_shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        cache = ("--cache_dir", tmp_path / "cache")
        proof = inspect(url, "--verify", *cache)
        piece = inspect(url, "--piece", "valid:0", "--json", *cache)
        server.shutdown()
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "all pieces and sums are right" in proof.stdout
    assert json.loads(piece.stdout)["tokens"][0] == "BOS"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and keeps silent about it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def of_version(number: int) -> Any:
    return lambda data: data.update(format_version=number)


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_an_earlier_format_version_is_refused_with_the_remedy(
    inspect: Callable[..., Outcome], shards: Path, verify: tuple[str, ...]
) -> None:
    edit_manifest(shards, of_version(1))
    refused = inspect(shards, *verify)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "found format version 1" in refused.stderr
    assert "make the shards again" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--piece", "xyz"), "no piece whose key starts with 'xyz'"),
        (("--piece", "valid:1000"), "no piece valid:1000; valid holds"),
        (("--shard", "train/shard-000999"), "no shard 'train/shard-000999' among"),
        (("--split", "trian"), "trian"),
        (("--num_workers", "0"), "--num_workers 0: allowed 1 or more"),
    ],
)
def test_what_is_not_there_gets_a_clear_line_and_exit_code_2(
    inspect: Callable[..., Outcome], chorale_shards: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused = inspect(chorale_shards, *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_of_other_things_is_refused(
    inspect: Callable[..., Outcome], tmp_path: Path
) -> None:
    refused = inspect(tmp_path)
    assert refused.returncode == 2
    assert "is no shard folder" in refused.stderr
