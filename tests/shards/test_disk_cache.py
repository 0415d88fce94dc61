"""One folder, many processes: the limit holds, one writes a file, who is killed harms nobody."""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from meloformer.errors import ConfigError, ShardError
from meloformer.shards.disk_cache import BYTES_PER_GIGABYTE, CacheConfig, DiskCache

FILE_BYTES = 1000
LIMIT_SECONDS = 300
# As data workers start: forked from a process that has threads and locks.
FORK = multiprocessing.get_context("fork")


def cache_of(folder: Path, num_files: float = 3.5) -> DiskCache:
    """A cache with room for so many files."""
    gigabytes = num_files * FILE_BYTES / BYTES_PER_GIGABYTE
    return DiskCache(CacheConfig(cache_dir=folder, cache_gigabytes=gigabytes))


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def content_of(number: int) -> bytes:
    return bytes([number % 256]) * FILE_BYTES


def add(cache: DiskCache, number: int, before: Callable[[], object] = lambda: None, **how) -> Path:
    """Add a file; `before` runs when its writing begins."""

    def write(target: BinaryIO) -> None:
        before()
        target.write(content_of(number))

    path = cache.add(name_of(number), FILE_BYTES, write, what=f"file {number}", **how)
    assert path is None or path.name.startswith(name_of(number))
    return path


def held_bytes(folder: Path) -> int:
    """Sum of the sizes at one moment: under the lock without which none is added or renamed."""
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sizes = []
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sum(sizes)


def numbers_in(cache: DiskCache) -> set[int]:
    names = {path.stem for path in cache.folder.iterdir()}
    return {number for number in range(100) if name_of(number) in names}


def run_together(*functions: Callable[[], object]) -> None:
    """Each in a process of its own, all at once; none may fail or hang."""
    processes = [FORK.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_SECONDS)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for number in (1, 2, 3):
        add(cache, number)
    assert cache.find(name_of(1), FILE_BYTES)  # a use
    add(cache, 4)
    assert numbers_in(cache) == {1, 3, 4}
    add(cache, 3)  # another use
    add(cache, 5)
    add(cache, 6)
    assert numbers_in(cache) == {3, 5, 6}


def test_a_smaller_limit_holds_from_the_next_start(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        add(cache_of(tmp_path), number)
    cache_of(tmp_path, num_files=1.5)
    assert numbers_in(cache_of(tmp_path)) == {3}


def test_files_that_are_not_ours_stay_and_do_not_count(tmp_path: Path) -> None:
    names = ["notes.txt", name_of(7), "x.part", f"{name_of(7)}.shard.bak"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(10 * FILE_BYTES))
    cache = cache_of(tmp_path)
    for number in range(1, 6):
        add(cache, number)
    assert all((tmp_path / name).stat().st_size == 10 * FILE_BYTES for name in names)
    assert {3, 4, 5} <= numbers_in(cache)


def test_the_limit_holds_at_every_moment_whatever_many_processes_do(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache")
    most = tmp_path / "most"
    most.mkdir()

    def churn(seed: int) -> None:
        for step in range(40):
            number = (step * 7 + seed * 5) % 13

            def look() -> None:
                held = held_bytes(cache.folder)
                (most / f"{seed}-{held}").touch()

            path = add(cache, number, look)
            with contextlib.suppress(FileNotFoundError):  # evicted by another
                assert path.read_bytes() == content_of(number)

    run_together(*(lambda seed=seed: churn(seed) for seed in range(4)))
    seen = [int(path.name.partition("-")[2]) for path in most.iterdir()]
    assert max(seen) <= cache.max_bytes and len(seen) >= 4


def test_a_file_waits_for_room_that_others_are_writing_into(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, num_files=1.5)

    def slowly(number: int) -> None:
        def note() -> None:
            assert held_bytes(cache.folder) <= cache.max_bytes
            time.sleep(0.1)

        add(cache, number, note)

    run_together(*(lambda number=number: slowly(number) for number in (1, 2, 3)))
    assert len(numbers_in(cache)) == 1


def test_of_several_processes_that_want_a_file_one_writes_it(tmp_path: Path) -> None:
    cache, log = cache_of(tmp_path / "cache"), tmp_path / "log"

    def note() -> None:
        with log.open("a") as file:
            file.write("written\n")
        time.sleep(0.2)

    def want() -> None:
        assert add(cache, 1, note).read_bytes() == content_of(1)

    run_together(*[want] * 4)
    assert log.read_text() == "written\n"


def test_of_several_threads_that_want_a_file_one_writes_it(tmp_path: Path) -> None:
    cache, written, paths = cache_of(tmp_path), [], []

    def note() -> None:
        written.append(1)
        time.sleep(0.1)

    threads = [threading.Thread(target=lambda: paths.append(add(cache, 1, note))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [1] and [path.read_bytes() for path in paths] == [content_of(1)] * 4


def test_who_does_not_wait_is_told_that_another_writes(tmp_path: Path) -> None:
    cache, told = cache_of(tmp_path), []
    add(cache, 1, lambda: told.append(add(cache, 1, wait=False)))
    assert told == [None]
    assert add(cache, 1, wait=False)


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_killed_process_left_is_swept_and_blocks_nobody(tmp_path: Path, number: int) -> None:
    cache = cache_of(tmp_path, num_files=1.5)

    def die() -> None:
        add(cache, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))

    process = FORK.Process(target=die)
    process.start()
    process.join(LIMIT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("*.part")), "it was killed in the middle"
    assert add(cache, number).read_bytes() == content_of(number)
    assert numbers_in(cache) == {number} and not list(tmp_path.glob("*.part"))


def test_a_worker_forked_during_a_download_does_not_keep_the_file_locked(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    workers = []

    def fork() -> None:
        worker = FORK.Process(target=time.sleep, args=[3600])
        worker.start()
        workers.append(worker)

    add(cache, 1, fork).unlink()
    assert add(cache, 1, wait=False), "nobody writes it any more"
    workers[0].kill()
    workers[0].join()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)

    def fail() -> None:
        raise ShardError("found another sum")

    with pytest.raises(ShardError, match="another sum"):
        add(cache, 1, fail)
    assert not numbers_in(cache) and held_bytes(tmp_path) == 0
    assert add(cache, 1).read_bytes() == content_of(1)


def test_a_file_of_another_size_is_written_anew(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    add(cache, 1).write_bytes(b"cut")
    assert add(cache, 1).read_bytes() == content_of(1)


def test_an_evicted_file_stays_readable_for_who_has_mapped_it(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, num_files=1.5)
    with add(cache, 1).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    add(cache, 2)
    assert numbers_in(cache) == {2} and mapped[:] == content_of(1)


def test_content_may_be_replaced_under_its_name(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for content in (b"old", b"old", b"newer"):
        cache.put(name_of(1), content, what="manifest")
        found = cache.find(name_of(1))
        assert found and found.read_bytes() == content


def test_a_file_larger_than_the_limit_is_refused_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"file 1: found 1,000 bytes, --cache_gigabytes allows 500"
    ):
        add(cache_of(tmp_path, num_files=0.5), 1)


def test_a_full_disk_is_said_with_the_remedy(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ShardError, match=r"file 1: no room on the disk .* smaller --cache_gig"):
        add(cache_of(tmp_path), 1, full)
    assert held_bytes(tmp_path) == 0


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--cache_dir .*file/cache: cannot be written"):
        cache_of(tmp_path / "file" / "cache")
    for gigabytes in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--cache_gigabytes"):
            CacheConfig(cache_gigabytes=gigabytes)


def test_the_folder_lies_in_the_cache_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert CacheConfig().folder == tmp_path / ".cache" / "meloformer" / "shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert CacheConfig().folder == tmp_path / ".cache" / "meloformer" / "shards"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert CacheConfig().folder == tmp_path / "mine" / "meloformer" / "shards"
    assert CacheConfig(cache_dir=Path("~/other")).folder == tmp_path / "other"


def test_who_looks_for_parts_of_the_dead_takes_none_of_the_living(tmp_path: Path) -> None:
    cache, is_done = cache_of(tmp_path, num_files=1000), threading.Event()

    def look() -> None:
        while not is_done.is_set():
            DiskCache(CacheConfig(cache_dir=tmp_path))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        # Nobody else wants them, so each is written without waiting for anyone.
        paths = [add(cache, number, wait=False) for number in range(200)]
        for number in range(200):
            cache.put(name_of(1000 + number), content_of(number), what="manifest.json")
    finally:
        is_done.set()
        looking.join()
    assert None not in paths
    assert all(cache.find(name_of(1000 + number)) for number in range(200))
