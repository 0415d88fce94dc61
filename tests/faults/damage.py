"""Rows of the table of faults: files that are no longer what was written."""

import shutil
from collections.abc import Callable
from pathlib import Path

from meloformer.shards.reader import ShardFolder
from meloformer.training.checkpoint import step_folder
from tests.faults.rows import AGAIN, SAVE_EVERY, Drill, FaultRow, fault
from tests.training.launching import python

NEWEST = 2 * SAVE_EVERY
EXIT_REFUSED = 2


@fault("a checkpoint's file is cut short", ranks=2)
def checkpoint_is_truncated(drill: Drill) -> FaultRow:
    """Passed over by --resume auto, refused by --resume PATH."""
    return _damage_checkpoint(drill, _truncate)


@fault("a bit of a checkpoint's file is flipped", ranks=2)
def checkpoint_bit_is_flipped(drill: Drill) -> FaultRow:
    """Passed over by --resume auto, refused by --resume PATH."""
    return _damage_checkpoint(drill, _flip_a_bit)


def _damage_checkpoint(drill: Drill, damage: Callable[[Drill, Path], None]) -> FaultRow:
    folder = _stopped_run(drill)
    newest = step_folder(folder, NEWEST)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    victim = drill.draws.choice(files)
    damage(drill, victim)
    before = (folder / "run.json").read_bytes()
    with drill.start(2, "--resume", str(newest), launcher=python(), folder=folder) as run:
        status = run.wait_for_end()
        complaints = [
            "" if status == EXIT_REFUSED else f"--resume PATH ended with {status}",
            *run.says_at_the_end(f"^error: .*{victim.name}"),
            "" if (folder / "run.json").read_bytes() == before else "a refused start left traces",
        ]
    with drill.start(2, *AGAIN, folder=folder) as run:
        struck = run.strike()
        run.wait_for_words(f"passed over .*{newest.name}")
        detected = struck.seconds()
        recovered = run.wait_for_recovery(struck)
        if (begun := run.starts()[-1]["step"]) != SAVE_EVERY:
            complaints.append(f"it went on after step {begun}")
        run.wait_for_end()
        return drill.judge(
            run, struck, detected_s=detected, recovered_s=recovered, complaints=complaints
        )


def _stopped_run(drill: Drill) -> Path:
    """A copy of a run that was killed after its second checkpoint; made once for all rows."""
    made = drill.output.parent / "stopped"
    if not (made / "run").exists():
        aside = drill.output.parent / "stopping"
        shutil.rmtree(aside, ignore_errors=True)
        with Drill(drill.shards, aside, drill.undisturbed, drill.seed).start(2) as run:
            run.wait_for_step(NEWEST + 1)
            run.wait_until(step_folder(run.folder, NEWEST).exists, "second checkpoint")
        aside.rename(made)
    return Path(shutil.copytree(made / "run", drill.output / "run"))


@fault("a shard is cut short before the start", ranks=2)
def shard_is_truncated(drill: Drill) -> FaultRow:
    """Refused before anything is made; whole again, the run is as if nothing had been."""
    shards, tar = _own_shards(drill)
    whole = tar.read_bytes()
    _truncate(drill, tar)
    with drill.start(2, launcher=python(), data=shards) as run:
        struck = run.strike()
        status = run.wait_for_end()
        detected = struck.seconds()
        complaints = [
            "" if status == EXIT_REFUSED else f"the start ended with {status}",
            *run.says_at_the_end(f"^error: .*{tar.name}"),
            "a refused start made checkpoints" if (run.folder / "checkpoints").exists() else "",
        ]
    tar.write_bytes(whole)
    return drill.go_on(struck, data=shards, detected_s=detected, complaints=complaints)


@fault("bits of a shard are flipped under a running run", ranks=2)
def shard_is_flipped(drill: Drill) -> FaultRow:
    """One in each piece: the piece is named; whole again, the run goes on."""
    return _damage_shard(drill, _flip_every_piece, "piece .* is damaged: found crc32")


@fault("a shard is cut short under a running run", ranks=2)
def shard_is_cut(drill: Drill) -> FaultRow:
    """What is mapped and no longer there must not end a process without a word."""

    def cut(shards: Path, tar: Path) -> None:
        with tar.open("r+b") as file:
            file.truncate(0)

    return _damage_shard(drill, cut, "found 0 bytes, expected")


def _damage_shard(drill: Drill, damage: Callable[[Path, Path], None], reason: str) -> FaultRow:
    shards, tar = _own_shards(drill)
    whole = tar.read_bytes()
    with drill.start(2, data=shards) as run:
        run.wait_for_step(SAVE_EVERY + 1)
        damage(shards, tar)
        struck = run.strike()
        detected, complaints = run.end_by_fault(struck, f"error: .*{tar.name}: {reason}")
        reached = max(run.losses())
    tar.write_bytes(whole)
    return drill.go_on(
        struck, data=shards, detected_s=detected, reached=reached, complaints=complaints
    )


def _own_shards(drill: Drill) -> tuple[Path, Path]:
    """A copy of the shard folder, and one of its tars."""
    shards = Path(shutil.copytree(drill.shards, drill.output / "shards"))
    return shards, drill.draws.choice(sorted((shards / "train").glob("*.tar")))


def _flip_every_piece(shards: Path, tar: Path) -> None:
    """Change one bit in the ids of each piece of a shard, in place."""
    split = ShardFolder.open(shards).split("train")
    content, found = bytearray(tar.read_bytes()), 0
    for piece in range(split.num_pieces):
        if f"/{tar.name}:" in split.describe(piece).replace("train/", "/"):
            place = content.find(split.read(piece).tobytes())
            content[place] ^= 1
            found += 1
    assert found
    with tar.open("r+b") as file:
        file.write(content)


def _truncate(drill: Drill, path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(drill.draws.randrange(size))


def _flip_a_bit(drill: Drill, path: Path) -> None:
    place = drill.draws.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << drill.draws.randrange(8)]))


ROWS = [
    checkpoint_is_truncated,
    checkpoint_bit_is_flipped,
    shard_is_truncated,
    shard_is_flipped,
    shard_is_cut,
]
