import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards.manifest import SPLITS, sha256_of
from meloformer.shards.reader import ShardFolder
from meloformer.shards.verify import differences_from_webdataset, find_faults, read_tar


@pytest.fixture
def shards(chorale_shards: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(chorale_shards, tmp_path / "shards"))


def flip_a_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_whole_shards_have_no_faults(chorale_shards: Path) -> None:
    assert list(find_faults(ShardFolder.open(chorale_shards))) == []


def test_the_plain_library_webdataset_reads_the_same_pieces(chorale_shards: Path) -> None:
    assert list(differences_from_webdataset(ShardFolder.open(chorale_shards))) == []


def test_every_piece_read_by_offset_equals_what_any_tar_reader_sees(chorale_shards: Path) -> None:
    folder = ShardFolder.open(chorale_shards)
    for split in SPLITS:
        index = folder.split(split)
        for shard, entry in enumerate(index.entries):
            plain_pieces = list(read_tar(chorale_shards / entry.file))
            pieces = index.pieces_of_shard(shard)
            assert len(plain_pieces) == len(pieces) == entry.pieces
            for piece, plain in zip(pieces, plain_pieces, strict=True):
                assert plain.key == index.key(piece)
                assert plain.facts == index.facts(piece)
                assert np.array_equal(plain.ids, index.read(piece))


def test_a_flipped_byte_anywhere_in_a_tar_is_found_and_named(shards: Path) -> None:
    tar = shards / "train/shard-000001.tar"
    for position in (600, tar.stat().st_size // 2, tar.stat().st_size - 1):
        before = tar.read_bytes()
        flip_a_byte(tar, position)
        faults = list(find_faults(ShardFolder.open(shards)))
        assert any("train/shard-000001.tar: found sha256" in fault for fault in faults)
        tar.write_bytes(before)


def test_a_flipped_byte_of_an_index_is_found(shards: Path) -> None:
    flip_a_byte(shards / "valid/shard-000000.index.npz", 300)
    [fault] = find_faults(ShardFolder.open(shards))
    assert "valid/shard-000000.index.npz is damaged" in fault


def test_pieces_in_the_wrong_split_are_found(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    splits = manifest["splits"]
    splits["train"], splits["valid"] = splits["valid"], splits["train"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    faults = list(find_faults(ShardFolder.open(shards)))
    assert any("found in split train, expected valid" in fault for fault in faults)
    assert any("found in split valid, expected train" in fault for fault in faults)


def test_a_piece_that_does_not_hold_what_its_index_says_is_found(shards: Path) -> None:
    """A tar whose sums were made to fit, but whose piece is another."""
    manifest = json.loads((shards / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    tar = shards / entry["file"]
    index = ShardFolder.open(shards).split("train")
    # The last VELOCITY before EOS becomes a neighbour of it: another piece, still grammatical.
    flip_a_byte(tar, int(index._ids_offset[0]) + 2 * (int(index.num_tokens[0]) - 2))
    entry["sha256"] = sha256_of(tar)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    faults = list(find_faults(ShardFolder.open(shards)))
    assert faults
    assert all(index.key(0) in fault for fault in faults)


def test_a_rejected_file_that_is_not_counted_is_found(shards: Path) -> None:
    with (shards / "rejected.jsonl").open("a") as file:
        file.write(json.dumps({"path": "x.mid", "reason": "no_notes"}) + "\n")
    [fault] = find_faults(ShardFolder.open(shards))
    assert fault.endswith("rejected.jsonl: found 1 no_notes, expected 0")


def test_a_tar_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(b"no tar at all")
    with pytest.raises(ShardError, match="cannot be read as a shard"):
        list(read_tar(tmp_path / "shard.tar"))
