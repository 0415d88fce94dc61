"""Real shards behind real servers, good and bad, read exactly as from the disk."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards import download
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder
from tests.shards.faulty_server import Faults, FaultyServer

ROOT = Path(__file__).resolve().parents[2]
BAD = {
    "good": Faults(),
    "half of the requests fail": Faults(fails_every=2),
    "connections break": Faults(cut_bytes=70_000),
    "a byte is wrong": Faults(wrong_bytes=2),
    "slow": Faults(bytes_per_second=2_000_000),
    "all at once": Faults(
        fails_every=2, cut_bytes=70_000, wrong_bytes=1, bytes_per_second=4_000_000
    ),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for; what is tried and when it ends stay as they are."""
    patience = download.Patience

    def quick_patience() -> download.Patience:
        return replace(patience(), first_pause_seconds=0.002, longest_pause_seconds=0.01)

    monkeypatch.setattr("meloformer.shards.storage.Patience", quick_patience)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of a real S3 server with an empty bucket `music`."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, chorale_shards: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shards in S3; endpoint and credentials stand in the environment, as users give them."""
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # failures reach us
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = fsspec.filesystem("s3")
    bucket.mkdirs("music", exist_ok=True)
    if not bucket.exists("music/chorales/manifest.json"):
        bucket.put(f"{chorale_shards}/", "music/chorales/", recursive=True)
    return "s3://music/chorales"


def assert_same(found: ShardFolder, expected: ShardFolder) -> None:
    """Manifest, pieces and facts, all of them."""
    assert found.manifest == expected.manifest
    assert found.manifest_sha256 == expected.manifest_sha256
    for name in SPLITS:
        ours, theirs = found.split(name), expected.split(name)
        assert ours.num_pieces == theirs.num_pieces > 0
        for piece in range(ours.num_pieces):
            assert np.array_equal(ours.read(piece), theirs.read(piece))
            assert np.array_equal(ours.bar_starts(piece), theirs.bar_starts(piece))
            assert ours.facts(piece) == theirs.facts(piece)


@pytest.mark.parametrize("faults", BAD.values(), ids=BAD.keys())
def test_shards_behind_http_are_those_on_the_disk(
    faults: Faults, chorale_shards: Path, tmp_path: Path
) -> None:
    config = CacheConfig(cache_dir=tmp_path)
    with FaultyServer(chorale_shards, replace(faults)) as server:
        assert_same(ShardFolder.open(server.url, config), ShardFolder.open(chorale_shards))


@contextmanager
def spoiled_s3(endpoint: str, faults: Faults) -> Iterator[FaultyServer]:
    """The S3 server behind one that spoils its answers."""
    import fsspec

    with FaultyServer(endpoint, replace(faults)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("faults", BAD.values(), ids=BAD.keys())
def test_shards_in_s3_are_those_on_the_disk(
    faults: Faults, s3_url: str, s3_server: str, chorale_shards: Path, tmp_path: Path
) -> None:
    config = CacheConfig(cache_dir=tmp_path)
    with spoiled_s3(s3_server, faults) as server:
        assert_same(ShardFolder.open(s3_url, config), ShardFolder.open(chorale_shards))
        assert server.requests_of("music/chorales/manifest.json")


def test_a_bucket_without_shards_and_wrong_bytes_in_s3_end_in_one_message(
    s3_url: str, s3_server: str, tmp_path: Path
) -> None:
    config = CacheConfig(cache_dir=tmp_path)
    with pytest.raises(ShardError, match="s3://music/none is no shard folder"):
        ShardFolder.open("s3://music/none", config)
    split = ShardFolder.open(s3_url, config).split("train")
    # botocore may notice first: servers state a sum of their own.
    wrong = r"s3://music/chorales/train/.*(found sha256|[cC]hecksum).*copy the file to the server"
    spoiled = spoiled_s3(s3_server, Faults(wrong_bytes=10**6))
    with spoiled, pytest.raises(ShardError, match=wrong):
        split.read(0)


def test_a_cache_too_small_for_the_split_is_enough_to_read_it(
    chorale_shards: Path, tmp_path: Path
) -> None:
    expected = ShardFolder.open(chorale_shards)
    largest = max(shard.bytes for shard in expected.manifest.shards())
    config = CacheConfig(cache_dir=tmp_path, cache_gigabytes=1.5 * largest / 1e9)
    with FaultyServer(chorale_shards) as server:
        assert_same(ShardFolder.open(server.url, config), expected)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= config.max_bytes
    config = CacheConfig(cache_dir=tmp_path / "other", cache_gigabytes=0.9 * largest / 1e9)
    with FaultyServer(chorale_shards) as server, pytest.raises(ShardError, match="give a larger"):
        assert_same(ShardFolder.open(server.url, config), expected)


def test_what_was_read_is_read_again_without_the_server(
    chorale_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CacheConfig(cache_dir=tmp_path)
    expected = ShardFolder.open(chorale_shards)
    with FaultyServer(chorale_shards) as server:
        assert_same(ShardFolder.open(server.url, config), expected)
        url = server.url
    assert_same(ShardFolder.open(url, config), expected)
    assert "going on with the copy" in caplog.text


@pytest.mark.slow
def test_a_run_trains_from_a_url_and_writes_no_credentials(
    chorale_shards: Path, tmp_path: Path
) -> None:
    with FaultyServer(chorale_shards, Faults(fails_every=5)) as server:
        url = server.url.replace("http://", "http://me:secret@") + "/?signature=hidden"
        flags = (
            f"--data {url} --cache_dir {tmp_path}/cache --output {tmp_path}/run --model_size tiny "
            "--max_seq_len 512 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 2 "
            "--max_steps 2 --device cpu"
        )
        outcome = subprocess.run(
            [sys.executable, "launch/train.py", *flags.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert outcome.returncode == 0, outcome.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["settings"]["data"] == server.url + "/" or server.url in str(facts["settings"])
    sums = hashlib.sha256((chorale_shards / "manifest.json").read_bytes()).hexdigest()
    assert facts["manifest_sha256"] == sums
    said = [outcome.stdout, outcome.stderr]
    said += [
        path.read_text(errors="replace")
        for path in (tmp_path / "run").rglob("*.*")
        if path.is_file()
    ]
    assert not any(word in text for text in said for word in ("secret", "hidden"))
