"""Builds as the tests of shards make them, undisturbed or killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from meloformer.shards.build import BuildOptions, build_shards
from meloformer.shards.manifest import SPLITS, Manifest, ShardSettings
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.shards.verify import find_faults

SETTINGS = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4)


def build(
    midi: Path,
    output: Path,
    *,
    settings: ShardSettings = SETTINGS,
    num_workers: int = 1,
    overwrite: bool = False,
    append: bool = False,
) -> Manifest:
    manifest = build_shards(
        open_source(str(midi)),
        output,
        settings,
        run=local_engine(num_workers),
        options=BuildOptions(overwrite=overwrite, append=append),
    )
    assert manifest is not None
    return manifest


def all_bytes(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def facts_by_source(folder: Path) -> dict[str, tuple[str, dict]]:
    """Split and facts of every piece."""
    shards = ShardFolder.open(folder)
    found = {}
    for split in SPLITS:
        index = shards.split(split)
        for piece in range(index.num_pieces):
            facts = index.facts(piece)
            found[facts["source"]] = (split, facts)
    return found


def keys_of(folder: Path) -> dict[str, list[str]]:
    shards = ShardFolder.open(folder)
    return {split: shards.split(split).keys() for split in SPLITS}


def find_faults_of(folder: Path) -> list[str]:
    opened = ShardFolder.open(folder)
    return list(find_faults(opened.storage, opened.manifest))


def start_build(midi: Path, output: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The command of `built`, in its own process group, so that it can be killed whole."""
    recipe = Path(__file__).resolve().parents[2] / "launch/shard_data.py"
    command = [sys.executable, str(recipe), "--midi", str(midi), "--output", str(output)]
    command += ["--valid_share", "0.2", "--test_share", "0.2", "--pieces_per_shard", "4"]
    return subprocess.Popen(
        [*command, "--num_workers", "1", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def staging_of(output: Path) -> Path:
    return output.parent / f".{output.name}.building"


def states_of(output: Path) -> Iterator[int]:
    """How far a build is: files in its folder, as they come."""
    staging = staging_of(output)
    while True:
        # Not rglob, which fails where a folder goes away under it.
        yield sum(len(files) for _, _, files in os.walk(staging))
        time.sleep(0.001)


def kill_after(process: subprocess.Popen[bytes], output: Path, num_files: int) -> None:
    """SIGKILL to the build and its workers as soon as so many files lie in its folder."""
    stop_after(process, output, num_files, signal.SIGKILL)


def stop_after(
    process: subprocess.Popen[bytes], output: Path, num_files: int, number: signal.Signals
) -> str:
    """Likewise any signal; what the build said on stderr."""
    for found in states_of(output):
        if found >= num_files or process.poll() is not None:
            break
    if process.poll() is None:
        os.killpg(process.pid, number)
    return process.communicate()[1].decode()


def stopped_build(
    midi: Path, output: Path, num_files: int, *flags: str, number: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """A build of the command that a signal stops once so many files lie in its folder.

    Where the signal comes too late, since the machine stood still for us and not for the build,
    all is put back and the build begins again.

    Returns:
        The code that it ended with, and what it said on stderr.
    """
    staging = staging_of(output)
    assert not staging.exists()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        if output.exists():
            shutil.copytree(output, before)
        for _ in range(100):
            process = start_build(midi, output, *flags)
            said = stop_after(process, output, num_files, number)
            assert process.returncode in (0, -number, 128 + number), said
            if staging.exists() and not (staging / "manifest.json").exists():
                return process.returncode, said
            for path in (output, *output.parent.glob(f".{output.name}.*")):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            if before.exists():
                shutil.copytree(before, output)
    raise AssertionError("every signal came when the build was over")
