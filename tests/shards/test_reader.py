"""The reader against folders written by hand: no MIDI and no encoder takes part."""

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards import reader
from meloformer.shards.manifest import (
    SPLITS,
    InputEntry,
    Manifest,
    ShardEntry,
    ShardSettings,
)
from meloformer.shards.reader import ShardFolder
from meloformer.shards.tars import COPY_RECORD, StoredPiece, ids_to_npy, write_shard
from meloformer.tokens import vocabulary

PIECES_PER_SHARD = 5
NUM_SHARDS = 4
NUM_PIECES = NUM_SHARDS * PIECES_PER_SHARD + 1


def made_up_ids(piece: int) -> np.ndarray:
    return np.random.default_rng(piece).integers(0, 1000, 40 + 7 * piece).astype(np.uint16)


def made_up_piece(piece: int) -> StoredPiece:
    ids = made_up_ids(piece)
    return StoredPiece(
        key=f"{piece:024x}",
        ids_npy=ids_to_npy(ids),
        facts_json=json.dumps({"piece": piece, "name": "夜想曲"}).encode(),
        num_tokens=len(ids),
        num_notes=piece,
        bar_starts=np.array([6, 6 + piece, 39], dtype=np.int32),
    )


def copies_of(pieces: list[StoredPiece]) -> np.ndarray:
    return np.zeros(len(pieces), dtype=COPY_RECORD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A train split of several shards, an empty valid, a test split of one piece."""
    splits: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    for shard in range(NUM_SHARDS):
        first = shard * PIECES_PER_SHARD
        pieces = [made_up_piece(p) for p in range(first, first + PIECES_PER_SHARD)]
        splits["train"].append(
            write_shard(tmp_path, f"train/shard-{shard:06d}", pieces, copies_of(pieces))
        )
    pieces = [made_up_piece(99)]
    splits["test"].append(write_shard(tmp_path, "test/shard-000000", pieces, copies_of(pieces)))
    Manifest(
        settings=ShardSettings(),
        inputs=(InputEntry(name="made up", fingerprint="0", files=NUM_PIECES),),
        num_in=NUM_PIECES,
        num_duplicates=0,
        rejected={},
        quantised={},
        num_clusters=0,
        num_near_copies=0,
        splits={split: tuple(entries) for split, entries in splits.items()},
        tokenizer_fingerprint=vocabulary.fingerprint(),
    ).save(tmp_path)
    return tmp_path


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_every_piece_comes_back_by_its_number(folder: Path) -> None:
    train = ShardFolder.open(folder).split("train")
    assert train.num_pieces == NUM_SHARDS * PIECES_PER_SHARD
    for piece in np.random.default_rng(0).permutation(train.num_pieces).tolist():
        ids = train.read(piece)
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, made_up_ids(piece))
        assert train.facts(piece) == {"piece": piece, "name": "夜想曲"}
        assert train.bar_starts(piece).tolist() == [6, 6 + piece, 39]
        assert train.key(piece) == f"{piece:024x}"


def test_counts_of_pieces_and_of_shards_are_those_of_what_was_written(folder: Path) -> None:
    train = ShardFolder.open(folder).split("train")
    for piece in range(train.num_pieces):
        assert train.sizes(piece) == (len(made_up_ids(piece)), 2, piece, 6)
    assert train.keys() == [train.key(piece) for piece in range(train.num_pieces)]
    assert train.num_tokens == sum(train.sizes(p).tokens for p in range(train.num_pieces))
    for shard in range(train.num_shards):
        of_shard = train.pieces_of_shard(shard)
        assert len(of_shard) == PIECES_PER_SHARD
        tokens, bars = train.lengths(shard)
        assert tokens.tolist() == [train.sizes(piece).tokens for piece in of_shard]
        assert bars.tolist() == [2] * PIECES_PER_SHARD
        longest = max(6 + np.diff(train.bar_starts(piece)).max() for piece in of_shard)
        assert longest <= train.longest_bar(shard) <= longest + 3
    assert train.pieces_of_shard(train.num_shards - 1).stop == train.num_pieces
    with pytest.raises(IndexError):
        train.read(train.num_pieces)


def test_an_index_is_read_when_its_shard_is_asked_for_and_few_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_INDEX_CACHE", 2)
    train = ShardFolder.open(folder).split("train")
    assert train.num_pieces == NUM_SHARDS * PIECES_PER_SHARD and not train._indices.kept
    for piece in (0, 5, 0, 10):
        train.bar_starts(piece)
    assert list(train._indices.kept) == [0, 2]


def test_what_was_read_outlives_its_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_INDEX_CACHE", 1)
    train = ShardFolder.open(folder).split("train")
    kept = [train.lengths(shard)[0] for shard in range(train.num_shards)]
    expected = [len(made_up_ids(piece)) for piece in range(train.num_pieces)]
    assert np.concatenate(kept).tolist() == expected


def test_an_empty_split_has_no_pieces_and_an_unknown_one_is_refused(folder: Path) -> None:
    shards = ShardFolder.open(folder)
    assert (shards.split("valid").num_pieces, shards.split("valid").num_shards) == (0, 0)
    with pytest.raises(ShardError, match="no split 'dev'; there are train, valid, test"):
        shards.split("dev")


def test_the_reader_survives_pickling_and_maps_for_itself(folder: Path) -> None:
    train = ShardFolder.open(folder).split("train")
    train.read(0)
    size_before = len(pickle.dumps(train))
    copy = pickle.loads(pickle.dumps(train))
    assert not copy._tars.kept and not copy._indices.kept
    assert np.array_equal(copy.read(7), made_up_ids(7))
    assert size_before < sum(entry.bytes for entry in train.entries)


def test_no_more_tars_stay_mapped_than_the_cache_allows(folder: Path) -> None:
    train = ShardFolder.open(folder).split("train", shard_cache=2)
    for piece in (0, 5, 0, 10):
        train.read(piece)
        assert len(train._tars.kept) <= 2
    # Shard 1 was used before shard 0 was used again, so shard 1 made room for shard 2.
    assert list(train._tars.kept) == [0, 2]


def test_a_copy_of_what_was_read_does_not_change_the_shard(folder: Path) -> None:
    train = ShardFolder.open(folder).split("train")
    train.read(3)[:] = 0
    assert np.array_equal(train.read(3), made_up_ids(3))


def test_shards_are_plain_tars_without_traces_of_the_machine(folder: Path) -> None:
    with tarfile.open(folder / "train/shard-000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:2]] == [f"{5:024x}.npy", f"{5:024x}.json"]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname) == ("", "")


def test_the_same_pieces_give_the_same_bytes(tmp_path: Path) -> None:
    pieces = [made_up_piece(piece) for piece in range(3)]
    entries = [
        write_shard(tmp_path / name, "train/shard-000000", pieces, copies_of(pieces))
        for name in ("first", "second")
    ]
    assert entries[0] == entries[1]


def test_a_flipped_byte_of_a_piece_is_noticed_when_it_is_read(folder: Path) -> None:
    path = folder / "train/shard-000002.tar"
    train = ShardFolder.open(folder).split("train")
    data = bytearray(path.read_bytes())
    data[int(train._indices[2].arrays.ids_offset[2]) + 5] ^= 1
    path.write_bytes(data)
    train = ShardFolder.open(folder).split("train")
    train.read(11)
    with pytest.raises(ShardError, match=r"shard-000002.tar.*found crc32.*expected.*copy the"):
        train.read(12)


def test_a_flipped_byte_of_an_index_is_noticed_when_it_is_read(folder: Path) -> None:
    path = folder / "train/shard-000001.index.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    train = ShardFolder.open(folder).split("train")
    train.key(4)
    with pytest.raises(ShardError, match=r"shard-000001.index.npz.*found sha256.*expected.*copy"):
        train.key(5)


@pytest.mark.parametrize("name", ["train/shard-000003.tar", "test/shard-000000.index.npz"])
def test_a_missing_file_is_named_with_what_was_expected(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ShardError, match=rf"{name}: found no such file, expected \d+ bytes; copy"):
        ShardFolder.open(folder)


def test_a_cut_shard_is_named_with_both_sizes(folder: Path) -> None:
    path = folder / "train/shard-000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ShardError, match=r"shard-000000.tar: found 1000 bytes, expected \d+"):
        ShardFolder.open(folder)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_end_of_the_process(
    folder: Path,
) -> None:
    split = ShardFolder.open(folder).split("train")
    before = split.read(0)
    tar = folder / "train/shard-000000.tar"
    whole = tar.read_bytes()
    with tar.open("r+b") as file:
        file.truncate(512)
    with pytest.raises(ShardError, match=rf"shard-000000.tar: found 512 .* expected {len(whole)}"):
        split.read(PIECES_PER_SHARD - 1)
    with tar.open("r+b") as file:
        file.write(whole)
    assert np.array_equal(split.read(0), before)


def test_shards_of_another_vocabulary_are_refused(folder: Path) -> None:
    change_manifest(folder, lambda data: data["tokenizer"].update(fingerprint="ab" * 32))
    with pytest.raises(ShardError, match=r"found tokenizer fingerprint abab.*expected.*make the"):
        ShardFolder.open(folder)


def test_shards_of_another_format_version_are_refused(folder: Path) -> None:
    change_manifest(folder, lambda data: data.update(format_version=999))
    with pytest.raises(ShardError, match=r"found format version 999, expected 2; make the shards"):
        ShardFolder.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.clear(), "found format None"),
        (lambda data: data["counts"].update({"in": 3}), "found in = 3, expected pieces"),
        (lambda data: data["counts"].update(pieces=3), "found counts"),
        (lambda data: data["settings"].update(tempo=3), "an entry is missing or wrong"),
        (lambda data: data["splits"].pop("valid"), "an entry is missing or wrong"),
        (lambda data: data["splits"].update(valid=None), "an entry is missing or wrong"),
    ],
)
def test_a_manifest_that_was_meddled_with_is_refused(
    folder: Path, change: Callable[[dict], None], message: str
) -> None:
    change_manifest(folder, change)
    with pytest.raises(ShardError, match=message):
        ShardFolder.open(folder)


def test_a_manifest_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ShardError, match="cannot be read as JSON"):
        ShardFolder.open(tmp_path)


def test_a_folder_that_is_none_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"is no shard folder: found no manifest.json.*make shard"):
        ShardFolder.open(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="cannot be read as JSON"):
        ShardFolder.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match="found format 'list'"):
        ShardFolder.open(tmp_path)
