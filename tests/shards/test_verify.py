import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards.against_webdataset import differences_from_webdataset
from meloformer.shards.build import BuildOptions, build_shards
from meloformer.shards.content import tune_hash
from meloformer.shards.manifest import SPLITS, load_manifest
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.shards.storage import open_storage
from meloformer.shards.verify import find_faults
from meloformer.shards.verify_shard import read_tar
from meloformer.tokens.hid import decode
from tests.shards.damage import (
    edit_arrays,
    edit_copies,
    edit_facts,
    edit_manifest,
    flip_a_byte,
    make_sums_fit,
)

SHARD = "train/shard-000001"


def all_members(tar: Path) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


@pytest.fixture
def shards(chorale_shards: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(chorale_shards, tmp_path / "shards"))


def faults_of(folder: Path, **options: Any) -> list[str]:
    return list(find_faults(open_storage(folder), load_manifest(folder), **options))


def test_whole_shards_have_no_faults(chorale_shards: Path) -> None:
    assert faults_of(chorale_shards) == []


def test_worker_processes_find_the_same_faults_in_the_same_order(shards: Path) -> None:
    for name in ("train/shard-000000.tar", "train/shard-000002.tar", "test/shard-000000.tar"):
        flip_a_byte(shards / name, 700)
    (shards / "valid/shard-000000.index.npz").unlink()
    alone = faults_of(shards)
    assert len(alone) >= 4
    assert faults_of(shards, num_workers=2) == alone


def test_a_folder_that_was_added_to_is_whole(shards: Path, midi_folder: Path) -> None:
    before = load_manifest(shards)
    build_shards(
        open_source(str(midi_folder)),
        shards,
        before.settings,
        run=local_engine(1),
        options=BuildOptions(append=True),
    )
    after = load_manifest(shards)
    assert after.num_in > before.num_in
    # The chorales of both are the same music: copies of pieces that the folder held before.
    assert after.num_duplicates > before.num_duplicates
    assert faults_of(shards) == []


def test_progress_counts_every_piece(chorale_shards: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert faults_of(chorale_shards, on_progress=lambda *done: seen.append(done)) == []
    num_pieces = load_manifest(chorale_shards).num_pieces
    assert seen[-1] == (num_pieces, num_pieces)


def test_the_plain_library_webdataset_reads_the_same_pieces(chorale_shards: Path) -> None:
    assert list(differences_from_webdataset(ShardFolder.open(chorale_shards))) == []


def test_every_piece_read_by_offset_equals_what_any_tar_reader_sees(chorale_shards: Path) -> None:
    folder = ShardFolder.open(chorale_shards)
    for split in SPLITS:
        index = folder.split(split)
        for shard, entry in enumerate(folder.manifest.splits[split]):
            plain_pieces = list(read_tar(chorale_shards / entry.file))
            pieces = index.pieces_of_shard(shard)
            assert len(plain_pieces) == len(pieces) == entry.pieces
            for piece, plain in zip(pieces, plain_pieces, strict=True):
                assert plain.key == index.key(piece)
                assert plain.facts == index.facts(piece)
                assert np.array_equal(plain.ids, index.read(piece))


def test_a_flipped_byte_anywhere_in_a_tar_is_found_and_named(shards: Path) -> None:
    tar = shards / f"{SHARD}.tar"
    before = tar.read_bytes()
    for position in (0, 600, len(before) // 2, len(before) - 1):
        flip_a_byte(tar, position)
        assert any(f"{SHARD}.tar: found sha256" in fault for fault in faults_of(shards))
        tar.write_bytes(before)


@pytest.mark.parametrize("suffix", ["index.npz", "signatures.npy"])
@pytest.mark.parametrize("position", [3, 300, -1])
def test_a_flipped_byte_beside_a_tar_is_found_and_named(
    shards: Path, suffix: str, position: int
) -> None:
    flip_a_byte(shards / f"{SHARD}.{suffix}", position)
    [fault] = faults_of(shards)
    assert f"{SHARD}.{suffix}: found sha256" in fault


def test_everything_that_is_wrong_is_named_not_only_the_first(shards: Path) -> None:
    (shards / "train/shard-000000.tar").unlink()
    (shards / "train/shard-000000.signatures.npy").unlink()
    with (shards / "valid/shard-000000.index.npz").open("ab") as file:
        file.write(b"more")
    flip_a_byte(shards / "test/shard-000000.tar", 700)
    (shards / "train" / "notes.txt").write_text("mine")
    faults = "\n".join(faults_of(shards))
    for found in (
        "train/shard-000000.tar: found no such file",
        "train/shard-000000.signatures.npy: found no such file",
        "valid/shard-000000.index.npz: found",
        "test/shard-000000.tar: found sha256",
        "train/notes.txt: found a file that the manifest does not list",
    ):
        assert found in faults
    assert faults.count("train/shard-000000.tar: found no such file") == 1


def test_a_shard_that_no_manifest_lists_is_found(shards: Path) -> None:
    shutil.copy(shards / f"{SHARD}.tar", shards / "train/shard-000099.tar")
    [fault] = faults_of(shards)
    assert "train/shard-000099.tar: found a file that the manifest does not list" in fault


def test_pieces_in_the_wrong_split_are_found(shards: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        splits = data["splits"]
        splits["train"], splits["valid"] = splits["valid"], splits["train"]

    edit_manifest(shards, swap)
    faults = "\n".join(faults_of(shards))
    assert "found in split train, expected valid" in faults
    assert "found in split valid, expected train" in faults


def test_a_cluster_across_the_splits_is_found(shards: Path) -> None:
    [other, *_] = read_tar(shards / "valid/shard-000000.tar")
    edit_facts(
        shards / f"{SHARD}.tar", 2, lambda facts: facts.update(cluster=other.facts["cluster"])
    )
    make_sums_fit(shards)
    assert any(
        f"cluster {other.facts['cluster']}: found in train and valid" in fault
        for fault in faults_of(shards)
    )


def test_a_cluster_that_no_piece_names_is_found(shards: Path) -> None:
    edit_facts(shards / f"{SHARD}.tar", 2, lambda facts: facts.update(cluster="ab" * 12))
    make_sums_fit(shards)
    assert any(
        f"cluster {'ab' * 12}: the piece that names it is not among its 1 pieces" in fault
        for fault in faults_of(shards)
    )


def test_near_copies_that_the_manifest_does_not_count_are_found(shards: Path) -> None:
    edit_manifest(shards, lambda data: data["near_copies"].update(clusters=400, pieces=900))
    card, clusters, pieces = faults_of(shards)
    assert "README.md: found" in card
    assert "near_copies: found clusters = 400, its pieces give" in clusters
    assert "near_copies: found pieces = 900, its pieces give" in pieces


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_notes", 1),
        ("instruments", ["#P7"]),
        ("metres", ["5/8"]),
        ("tempo_bpm", [60.0, 61.0]),
        ("duration_seconds", 0.5),
        ("key", "F# minor"),
        ("tune", "0" * 16),
        ("tune", None),
        ("cluster", "no key"),
        ("num_bars", "many"),
    ],
)
def test_a_fact_that_the_notes_deny_is_found(shards: Path, name: str, value: object) -> None:
    tar = shards / f"{SHARD}.tar"
    edit_facts(tar, 1, lambda facts: facts.update({name: value}))
    make_sums_fit(shards)
    key = list(read_tar(tar))[1].key
    assert any(f"piece {key}" in fault and name in fault for fault in faults_of(shards))


def test_a_piece_that_does_not_hold_what_its_index_says_is_found(shards: Path) -> None:
    """A tar whose sums were made to fit, but whose piece is another."""
    entry = load_manifest(shards).splits["train"][0]
    with np.load(shards / entry.index_file) as index:
        offset, num_tokens = int(index["ids_offset"][0]), int(index["num_tokens"][0])
        key = index["keys"][0].decode()
    # The last VELOCITY before EOS becomes a neighbour of it: another piece, still grammatical.
    flip_a_byte(shards / entry.file, offset + 2 * (num_tokens - 2))
    make_sums_fit(shards)
    faults = faults_of(shards)
    assert any("key by its notes" in fault for fault in faults)
    assert any("in the index: crc32" in fault for fault in faults)
    assert all(key in fault for fault in faults)


def test_tokens_that_break_the_grammar_are_found(shards: Path) -> None:
    entry = load_manifest(shards).splits["train"][0]
    with np.load(shards / entry.index_file) as index:
        offset = int(index["ids_offset"][0])
    flip_a_byte(shards / entry.file, offset + 1)  # another first token, far away
    make_sums_fit(shards)
    assert any("its tokens do not decode" in fault for fault in faults_of(shards))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        ("ids_offset", "its tokens do not lie where the index says"),
        ("facts_offset", "its facts do not lie where the index says"),
        ("facts_size", "its facts do not lie where the index says"),
        ("bar_starts", "its bars do not start where the index says"),
        ("ids_crc32", "in the index: crc32"),
        ("num_tokens", "in the index: tokens"),
        ("num_notes", "in the index: notes"),
        ("prefix_length", "in the index: prefix"),
    ],
)
def test_every_array_of_an_index_is_checked(shards: Path, array: str, found: str) -> None:
    def edit(arrays: dict[str, np.ndarray]) -> None:
        arrays[array][0] += 1

    edit_arrays(shards / f"{SHARD}.index.npz", edit)
    make_sums_fit(shards)
    assert any(found in fault for fault in faults_of(shards))


def test_a_key_of_the_index_that_is_not_that_of_the_piece_is_found(shards: Path) -> None:
    def edit(arrays: dict[str, np.ndarray]) -> None:
        arrays["keys"][0] = b"f" * 24

    edit_arrays(shards / f"{SHARD}.index.npz", edit)
    make_sums_fit(shards)
    assert any("in the index: key: found ffff" in fault for fault in faults_of(shards))


@pytest.mark.parametrize(("field", "value"), [("tune", 1), ("cluster", b"f" * 24)])
def test_signatures_that_belong_to_other_pieces_are_found(
    shards: Path, field: str, value: object
) -> None:
    def edit(rows: np.ndarray) -> None:
        rows[field][0] = value

    edit_copies(shards / f"{SHARD}.signatures.npy", edit)
    make_sums_fit(shards)
    [fault] = faults_of(shards)
    assert "the file of signatures gives it another tune or cluster" in fault


def test_counts_of_a_shard_that_its_pieces_do_not_add_up_to_are_found(shards: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        shard = data["splits"]["train"]["shards"][1]
        shard.update({name: shard[name] + 1 for name in ("bars", "notes", "tokens")})
        shard.update(longest_piece=1, longest_bar=1)

    edit_manifest(shards, edit)
    faults = "\n".join(faults_of(shards))
    for name in ("bars", "notes", "tokens", "longest_piece", "longest_bar"):
        assert f"{SHARD}.tar: found {name} =" in faults


def test_a_longest_bar_that_is_stated_too_long_is_found(shards: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["splits"]["train"]["shards"][1]["longest_bar"] += 1

    edit_manifest(shards, edit)
    [fault] = faults_of(shards)
    assert f"{SHARD}.tar: found longest_bar =" in fault


def test_a_piece_that_stands_twice_is_found(shards: Path) -> None:
    first, second = "train/shard-000000", "train/shard-000001"
    for suffix in (".tar", ".index.npz", ".signatures.npy"):
        shutil.copy(shards / (first + suffix), shards / (second + suffix))

    def edit(data: dict[str, Any]) -> None:
        of_train = data["splits"]["train"]["shards"]
        for name in ("pieces", "bars", "notes", "tokens", "longest_piece", "longest_bar"):
            of_train[1][name] = of_train[0][name]

    edit_manifest(shards, edit)
    make_sums_fit(shards)
    again = [fault for fault in faults_of(shards) if f"in {first}.tar and in {second}.tar" in fault]
    assert len(again) == load_manifest(shards).splits["train"][0].pieces


def test_a_piece_that_cannot_be_read_hides_none_behind_it(shards: Path) -> None:
    """Facts that are no JSON, and behind them facts that the notes deny."""
    tar = shards / f"{SHARD}.tar"
    edit_facts(tar, 3, lambda facts: facts.update(key="F# minor"))
    with np.load(shards / f"{SHARD}.index.npz") as index:
        flip_a_byte(tar, int(index["facts_offset"][1]))
    first, second = (all_members(tar)[2 * number].split(".")[0] for number in (1, 3))
    faults = [fault for fault in faults_of(shards) if f"{SHARD}.tar: piece" in fault]
    assert any(f"piece {first} cannot be read" in fault for fault in faults)
    assert any(f"piece {second}: fact key: found F# minor" in fault for fault in faults)


@pytest.mark.parametrize(
    ("suffix", "found"),
    [(".npy", ": can be read up to piece 2 of 8"), (".json", ", without its facts")],
)
def test_a_header_that_ends_a_tar_early_is_one_fault_and_not_one_of_each_sum(
    shards: Path, suffix: str, found: str
) -> None:
    tar = shards / f"{SHARD}.tar"
    with tarfile.open(tar) as opened:
        [_, _, third] = [member for member in opened if member.name.endswith(suffix)][:3]
    flip_a_byte(tar, third.offset)
    assert load_manifest(shards).splits["train"][1].pieces == 8
    damaged, ends, not_compared = faults_of(shards)
    assert f"{SHARD}.tar: found sha256" in damaged
    assert f"{SHARD}.tar" in ends
    assert found in ends
    assert "not compared" in not_compared


def test_what_is_missing_in_a_shard_is_not_told_again_of_what_leans_on_it(shards: Path) -> None:
    with (shards / f"{SHARD}.tar").open("r+b") as file:
        file.truncate(10_000)
    damaged, not_compared = faults_of(shards)
    assert f"{SHARD}.tar: found 10000 bytes, expected" in damaged
    assert "not compared, since 1 of" in not_compared


def test_one_split_alone_is_checked_where_only_it_is_asked_for(shards: Path) -> None:
    flip_a_byte(shards / f"{SHARD}.tar", 700)
    (shards / "notes.txt").write_text("mine")
    assert faults_of(shards, splits=("valid",)) == []
    assert faults_of(shards, splits=("train",))


def test_a_tar_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(b"no tar at all")
    with pytest.raises(ShardError, match="cannot be read as a shard"):
        list(read_tar(tmp_path / "shard.tar"))


def test_a_tar_that_holds_other_things_is_a_fault_among_others(shards: Path) -> None:
    (shards / f"{SHARD}.tar").write_bytes(b"no tar at all")
    make_sums_fit(shards)
    assert any("cannot be read as a shard" in fault for fault in faults_of(shards))


def test_the_tune_of_every_piece_is_that_of_its_notes(chorale_shards: Path) -> None:
    for plain in read_tar(chorale_shards / "valid/shard-000000.tar"):
        assert plain.facts["tune"] == f"{tune_hash(decode(plain.ids)):016x}"
