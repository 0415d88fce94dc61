"""What several test suites share: real shards, made once, and the corpora beside the project."""

import atexit
import fcntl
import hashlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from meloformer import interrupts
from meloformer.midi.default_corpus import default_corpus_paths
from meloformer.shards.build import build_shards
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import score_source
from meloformer.tokens import vocabulary

# A slow machine is no fault of an example. `make test` has the same examples every time, so that
# it never fails by chance; `make test-all` looks for new ones.
settings.register_profile(
    "explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / ".cache" / "tests"
NUM_CHORALES = 40


# A shell lets what it starts in its background ignore Ctrl-C, and that is inherited: tests would
# wait for ever for what they have sent.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed_torch(20_011)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed_torch(20_029)


def _seed_torch(seed: int) -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _sum_of_sources() -> str:
    """Changes with every line that can change a shard."""
    digest = hashlib.sha256(vocabulary.fingerprint().encode())
    for stage in ("midi", "tokens", "shards"):
        for path in sorted((REPOSITORY / "meloformer" / stage).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def chorale_folder() -> Path:
    """A shard folder of real chorales: several shards, and no split is empty."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"chorales-{_sum_of_sources()}"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once make them once
        if not folder.exists():
            chorales = [path for path in default_corpus_paths() if path.parent.name == "bach"]
            settings = ShardSettings(valid_share=0.15, test_share=0.1, pieces_per_shard=8)
            source = score_source(chorales[:NUM_CHORALES])
            build_shards(source, folder, settings, run=local_engine(2))
    shards = ShardFolder.open(folder)
    assert all(shards.split(split).num_pieces for split in ("train", "valid", "test"))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _nobody_listens_here() -> Iterator[None]:
    """A listener ends its process with a status of its own: failed tests would go unseen."""
    yield
    atexit.unregister(interrupts._end_without_teardown)
    assert "signals" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="session")
def chorale_shards() -> Path:
    """The same for tests."""
    return chorale_folder()


@pytest.fixture(scope="session")
def shared_corpora() -> Path:
    """Folder of real corpora, one .tar.gz each; skips where it is not there."""
    folder = REPOSITORY.parent / "shared" / "corpora"
    if not folder.is_dir():
        pytest.skip("needs the corpora in ../shared/corpora, which are not part of the project")
    return folder
