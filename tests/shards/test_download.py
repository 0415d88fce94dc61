"""A file arrives whole and right whatever the server does, or one message says what it did."""

import gc
import hashlib
import io
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards.download import (
    Download,
    Patience,
    UnreachableError,
    without_credentials,
)
from tests.shards.faulty_server import FaultyServer

NUM_BYTES = 1_500_000
# Quick to ask again, and in no hurry for an answer: requests are counted.
QUICK = Patience(first_pause_seconds=0.002, longest_pause_seconds=0.01, request_seconds=240)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = tmp_path / "served"
    (folder / "train").mkdir(parents=True)
    data = np.random.default_rng(0).bytes(NUM_BYTES)
    (folder / "train" / "shard").write_bytes(data)
    with FaultyServer(folder) as server:
        yield server


def content(server: FaultyServer) -> bytes:
    assert isinstance(server.source, Path)
    return (server.source / "train" / "shard").read_bytes()


def download(server: FaultyServer, patience: Patience = QUICK, *, more_bytes: int = 0) -> bytes:
    """The bytes that arrive."""
    target = io.BytesIO()
    Download(server.url, patience).write(
        "train/shard",
        target,
        num_bytes=NUM_BYTES + more_bytes,
        sha256=hashlib.sha256(content(server)).hexdigest(),
    )
    return target.getvalue()


def test_a_good_server_sends_each_byte_once(server: FaultyServer) -> None:
    assert download(server) == content(server)
    assert server.sent_bytes == NUM_BYTES


@pytest.mark.parametrize("status", [500, 503, 429])
def test_half_of_the_requests_may_fail(server: FaultyServer, status: int) -> None:
    server.faults.fails_every, server.faults.fails_with = 2, status
    for _ in range(3):
        assert download(server) == content(server)
    assert len(server.requests) <= 6, "a refusal says nothing against large ranges"


def test_broken_connections_do_not_begin_a_file_anew(server: FaultyServer) -> None:
    server.faults.cut_bytes = 100_000
    assert download(server) == content(server)
    starts = [
        int(r.removeprefix("bytes=").split("-")[0]) for r in server.requests_of("train/shard")
    ]
    assert starts == sorted(starts), "it never goes back"
    assert server.sent_bytes < 2 * NUM_BYTES


@pytest.mark.parametrize("ranges", ["ignored", "refused"])
def test_a_server_without_ranges_serves_all_the_same(server: FaultyServer, ranges: str) -> None:
    server.faults.ranges = ranges  # type: ignore[assignment]
    server.faults.fails_every = 2
    assert download(server) == content(server)


def test_a_server_that_likes_to_compress_is_told_not_to(server: FaultyServer) -> None:
    server.faults.compresses = True
    assert download(server) == content(server)


def test_a_slow_server_gets_smaller_ranges_and_more_time(server: FaultyServer) -> None:
    server.faults.bytes_per_second = 2_000_000
    patience = Patience(first_pause_seconds=0.002, request_seconds=0.2)
    assert download(server, patience) == content(server)


def test_a_request_without_an_answer_ends_and_is_made_again(server: FaultyServer) -> None:
    server.faults.hangs = 2
    patience = Patience(first_pause_seconds=0.002, request_seconds=0.2)
    assert download(server, patience) == content(server)
    assert len(server.requests) > 2


def test_a_wrong_byte_that_comes_once_is_fetched_again(
    server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.wrong_bytes = 1
    with caplog.at_level(logging.WARNING):
        assert download(server) == content(server)
    assert "found sha256" in caplog.text and "fetching it again" in caplog.text


def test_wrong_bytes_that_stay_are_refused_with_url_found_and_expected(
    server: FaultyServer,
) -> None:
    server.faults.wrong_bytes = 1000
    expected = hashlib.sha256(content(server)).hexdigest()[:16]
    with pytest.raises(ShardError, match=f"{server.url}/train/shard: found sha256 .*{expected}"):
        download(server)


@pytest.mark.parametrize("ranges", ["answered", "ignored", "refused"])
def test_a_file_shorter_than_stated_is_refused_with_both_sizes(
    server: FaultyServer, ranges: str
) -> None:
    server.faults.ranges = ranges  # type: ignore[assignment]
    patience = replace(QUICK, failures=4)
    with pytest.raises(ShardError, match=f"found {NUM_BYTES} bytes, expected {NUM_BYTES + 5}"):
        download(server, patience, more_bytes=5)


def test_a_file_longer_than_stated_is_never_taken(server: FaultyServer) -> None:
    with pytest.raises(ShardError, match="found sha256"):
        download(server, more_bytes=-5)


def test_a_missing_file_and_a_forbidden_one_are_refused_at_once(server: FaultyServer) -> None:
    server.faults.fails_every, server.faults.fails_with = 1, 404
    with pytest.raises(ShardError, match="train/shard: found no such file, expected 1500000"):
        download(server)
    server.faults.fails_with = 403
    with pytest.raises(ShardError, match=r"403.*credentials"):
        download(server)
    assert len(server.requests) == 2


def test_a_dead_server_is_given_up_after_the_stated_failures(server: FaultyServer) -> None:
    server.faults.fails_every = 1
    patience = replace(QUICK, failures=4)
    with pytest.raises(UnreachableError, match=r"503.*after 4 requests in a row"):
        download(server, patience)
    assert len(server.requests) == 4


def test_credentials_open_the_server_and_stand_in_no_message(server: FaultyServer) -> None:
    url = server.url.replace("http://", "http://me:secret@") + "?signature=abc"
    files = Download(url, replace(QUICK, failures=1))
    server.faults.fails_every = 1
    with pytest.raises(UnreachableError) as caught:
        files.write("train/shard", io.BytesIO(), num_bytes=5, sha256="")
    assert server.url in str(caught.value)
    assert not any(word in str(caught.value) for word in ("me:", "secret", "signature", "abc"))
    assert files.url_of("train/shard").endswith("/train/shard?signature=abc")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data_shards/pop?909", "data_shards/pop?909"),
        ("s3://bucket/shards", "s3://bucket/shards"),
        ("https://me@host:81/a@b/c", "https://host:81/a@b/c"),
        ("https://me:p%40ss@host/a?token=1#x then", "https://host/a then"),
        ("--data=http://u:p@h/a", "--data=http://h/a"),
    ],
)
def test_a_url_is_said_without_its_credentials(typed: str, said: str) -> None:
    assert without_credentials(typed) == said


def test_a_download_passes_into_another_process(server: FaultyServer) -> None:
    files = pickle.loads(pickle.dumps(Download(server.url, QUICK)))
    assert files.read_bytes("train/shard") == content(server)


def test_a_forked_process_takes_no_connection_from_its_parent(server: FaultyServer) -> None:
    download(server)  # leaves a connection that the next request will use
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(told, 1)
        Download(server.url, QUICK)  # as a data worker does, with connections of its own
        gc.collect()
        os._exit(0)
    server.faults.bytes_per_second = NUM_BYTES // 2  # longer than the child takes to let go
    server.sent_bytes = 0
    arrived: list[bytes] = []
    thread = threading.Thread(target=lambda: arrived.append(download(server)))
    thread.start()
    while not server.sent_bytes:
        time.sleep(0.001)
    os.write(tell, b".")
    os.waitpid(child, 0)
    thread.join()
    assert arrived == [content(server)]
    assert server.sent_bytes == NUM_BYTES, "no request is asked twice"
