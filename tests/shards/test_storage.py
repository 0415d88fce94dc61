"""Shard files come from a folder or a URL alike; what the disk keeps is not asked for again."""

import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError, ShardError
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.download import Patience
from meloformer.shards.storage import (
    LocalFolder,
    RemoteFolder,
    Storage,
    StoredFile,
    open_file,
    open_storage,
)
from tests.shards.faulty_server import FaultyServer

NUM_BYTES = 300_000
# Quick to ask again, and in no hurry for an answer: requests are counted.
QUICK = Patience(
    first_pause_seconds=0.002, longest_pause_seconds=0.01, opening_failures=3, request_seconds=240
)
LIMIT_SECONDS = 300
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder with some files in it."""
    folder = tmp_path / "served"
    (folder / "train").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for number in range(4):
        data = np.random.default_rng(number).bytes(NUM_BYTES)
        (folder / "train" / f"shard-{number}").write_bytes(data)
    return folder


@pytest.fixture
def server(served: Path) -> Iterator[FaultyServer]:
    with FaultyServer(served) as server:
        yield server


@pytest.fixture
def remote(server: FaultyServer, tmp_path: Path) -> Storage:
    return open_storage(server.url, CacheConfig(cache_dir=tmp_path / "cache"), QUICK)


def stored(served: Path, number: int = 0) -> StoredFile:
    file = f"train/shard-{number}"
    data = (served / file).read_bytes()
    return StoredFile(file, len(data), hashlib.sha256(data).hexdigest())


def fetch(storage: Storage, wanted: StoredFile) -> Path:
    return storage.fetch(wanted.file, num_bytes=wanted.num_bytes, sha256=wanted.sha256)


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.01)


def test_a_local_folder_is_read_in_place(served: Path) -> None:
    for data in (served, str(served)):
        storage = open_storage(data)
        assert isinstance(storage, LocalFolder) and storage.name == str(served)
        assert fetch(storage, stored(served)) == served / "train" / "shard-0"
        assert storage.read_bytes("manifest.json") == b"{}"
        storage.prefetch([stored(served)])


def test_local_faults_are_said_as_ever(served: Path) -> None:
    storage, wanted = open_storage(served), stored(served)
    (served / wanted.file).write_bytes(b"cut")
    with pytest.raises(ShardError, match=f"shard-0: found 3 bytes, expected {NUM_BYTES} bytes"):
        fetch(storage, wanted)
    (served / wanted.file).unlink()
    with pytest.raises(
        ShardError, match=r"shard-0: found no such file, expected .*make shard-data"
    ):
        open_file(storage, wanted)
    (served / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"is no shard folder: found no manifest.json .*make sha"):
        storage.read_bytes("manifest.json")


def test_a_remote_file_is_fetched_once_and_then_kept(
    served: Path, server: FaultyServer, remote: Storage
) -> None:
    wanted = stored(served)
    for storage in (remote, pickle.loads(pickle.dumps(remote)), remote):
        with open_file(storage, wanted) as file:
            assert file.read() == (served / wanted.file).read_bytes()
    assert len(server.requests_of(wanted.file)) == 1


def test_the_manifest_is_fresh_each_time_and_kept_for_when_no_server_answers(
    served: Path, server: FaultyServer, remote: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    assert remote.read_bytes("manifest.json") == b"{}"
    (served / "manifest.json").write_text("{1}")
    assert remote.read_bytes("manifest.json") == b"{1}"
    server.faults.fails_every = 1
    with caplog.at_level(logging.WARNING):
        assert remote.read_bytes("manifest.json") == b"{1}"
    assert "going on with the copy" in caplog.text
    with pytest.raises(ShardError, match="503"):
        remote.read_bytes("other.json")
    server.faults.fails_with = 403
    with pytest.raises(ShardError, match="403"):
        remote.read_bytes("manifest.json")


def test_a_url_without_a_manifest_is_no_shard_folder(server: FaultyServer, remote: Storage) -> None:
    with pytest.raises(ShardError, match=f"{server.url} is no shard folder: found no rejected"):
        remote.read_bytes("rejected.jsonl")


def test_a_port_where_nobody_listens_ends_in_one_message(tmp_path: Path) -> None:
    remote = open_storage("http://127.0.0.1:9", CacheConfig(cache_dir=tmp_path), QUICK)
    with pytest.raises(ShardError, match=r"http://127.0.0.1:9/manifest.json: .*after 3 requests"):
        remote.read_bytes("manifest.json")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://no-such-host.invalid/shards", "no-such-host"),
        ("http://127.0.0.1:99999/shards", "Port"),
        ("http:///shards", "http:"),
        ("https://{server}/shards", "(?i)ssl"),
    ],
)
def test_a_mistyped_url_is_refused_at_once(
    server: FaultyServer, tmp_path: Path, url: str, said: str
) -> None:
    patience = replace(QUICK, first_pause_seconds=600, longest_pause_seconds=600)
    url = url.format(server=server.url.removeprefix("http://"))
    remote = open_storage(url, CacheConfig(cache_dir=tmp_path / "cache"), patience)
    with pytest.raises(ShardError, match=rf"{said}.*check the URL"):
        remote.read_bytes("manifest.json")


def test_a_host_whose_name_is_lost_in_mid_run_is_asked_again(tmp_path: Path) -> None:
    remote = open_storage(
        "http://no-such-host.invalid", CacheConfig(cache_dir=tmp_path), replace(QUICK, failures=3)
    )
    with pytest.raises(ShardError, match="after 3 requests in a row"):
        remote.fetch("train/shard-0", num_bytes=5, sha256="0" * 64)


def test_a_file_evicted_before_it_is_opened_is_fetched_again(served: Path) -> None:
    class Evicting(LocalFolder):
        times = 3

        def fetch(self, file: str, *, num_bytes: int, sha256: str) -> Path:
            path = super().fetch(file, num_bytes=num_bytes, sha256=sha256)
            self.times -= 1
            return path if self.times < 0 else path.with_name("evicted")

    storage = Evicting(served)
    with open_file(storage, stored(served)) as file:
        assert len(file.read()) == NUM_BYTES
    storage.times = 1000
    with pytest.raises(ShardError, match="--cache_gigabytes"):
        open_file(storage, stored(served))


def test_what_was_prefetched_is_not_asked_for_again(
    served: Path, server: FaultyServer, remote: Storage, tmp_path: Path
) -> None:
    wanted = [stored(served, number) for number in range(4)]
    missing = StoredFile("train/none", 5, "0" * 64)
    remote.prefetch([missing, *wanted])
    wait_until(lambda: len(list((tmp_path / "cache").glob("*.shard"))) == 4)
    for one in wanted:
        fetch(remote, one)
        assert len(server.requests_of(one.file)) == 1
    with pytest.raises(ShardError, match="train/none: found no such file"):
        fetch(remote, missing)


def test_a_forked_process_prefetches_for_itself(
    served: Path, remote: Storage, tmp_path: Path
) -> None:
    fetch(remote, stored(served, 0))  # threads of the parent are running
    remote.prefetch([stored(served, 1)])

    def work() -> None:
        remote.prefetch([stored(served, 2)])
        wait_until(lambda: len(list((tmp_path / "cache").glob("*.shard"))) == 3)
        fetch(remote, stored(served, 3))

    process = FORK.Process(target=work)
    process.start()
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 0


def test_processes_that_want_the_same_files_download_each_once(
    served: Path, server: FaultyServer, remote: Storage
) -> None:
    server.faults.bytes_per_second = 3_000_000
    files = [stored(served, number) for number in range(4)]

    def work() -> None:
        for one in files:
            assert fetch(remote, one).read_bytes() == (served / one.file).read_bytes()

    processes = [FORK.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.sent_bytes == len(files) * NUM_BYTES


def test_a_process_killed_in_mid_download_harms_nobody(
    served: Path, server: FaultyServer, remote: Storage, tmp_path: Path
) -> None:
    server.faults.bytes_per_second = 1_000  # the kill comes in the middle, however late
    process = FORK.Process(target=fetch, args=[remote, stored(served)])
    process.start()
    wait_until(lambda: server.sent_bytes)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list((tmp_path / "cache").glob("*.part"))
    server.faults.bytes_per_second = 0
    data = fetch(remote, stored(served)).read_bytes()
    assert data == (served / "train" / "shard-0").read_bytes()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_name_without_credentials_is_all_that_a_storage_says(tmp_path: Path) -> None:
    config = CacheConfig(cache_dir=tmp_path)
    storage = open_storage("https://me:secret@host/shards/?signature=1", config)
    assert isinstance(storage, RemoteFolder) and storage.name == "https://host/shards"


def test_other_protocols_are_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(ConfigError, match=r"--data ftp://host/a: found protocol ftp, .*s3://, gs:"):
        open_storage("ftp://me:secret@host/a")


def test_a_missing_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"--data gs://bucket/shards: .*`pip install gcsfs`"):
        open_storage("gs://bucket/shards", CacheConfig(cache_dir=tmp_path))
