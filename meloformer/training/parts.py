"""The parts of a checkpoint: each rank writes what it holds, any number of ranks reads it.

    parts/rank-00003.safetensors
      weight/<parameter>      a run of elements of the flattened fp32 weight
      exp_avg/<parameter>     the same run of each state of the optimizer
      ema/<parameter>         and of the moving average, where the run keeps one
      __metadata__            where each run starts, the whole shape, what is counted

A reader asks for a run of a parameter and gets it out of as many parts as hold some of it: neither
the number of ranks nor the stage that wrote them matters. Nothing here can be made to run code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from meloformer.errors import CheckpointError
from meloformer.model.tensor_file import FileSum, write_tensors
from meloformer.training.ema import AVERAGE
from meloformer.training.partitions import WEIGHT, Partition, Partitions

_FRAGMENTS = "fragments"
_REMEDY = "take another checkpoint (--resume PATH)"


@dataclass(frozen=True)
class Part:
    """What one rank writes: runs of elements, on the host.

    Args:
        tensors: by `<kind>/<parameter>`.
        fragments: by parameter: start, shape, what the optimizer counts, and updates averaged.
    """

    tensors: dict[str, torch.Tensor]
    fragments: dict[str, dict[str, Any]]

    def write(self, path: Path) -> FileSum:
        """Write the part, synced.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        return write_tensors(path, self.tensors, {_FRAGMENTS: json.dumps(self.fragments)})


def part_name(rank: int) -> str:
    """File of a rank within the folder of parts."""
    return f"rank-{rank:05}.safetensors"


def cut_part(
    partition: Partition, host: Mapping[str, torch.Tensor], scalars: Mapping[str, float]
) -> Part:
    """The runs of one partition.

    Args:
        partition: what lies where.
        host: its tensors by kind, on the host.
        scalars: what its optimizer counts.
    """
    tensors, fragments = {}, {}
    for run in partition.fragments:
        fragments[run.name] = {
            "start": run.start,
            "shape": list(run.shape),
            "scalars": dict(scalars),
        }
        if partition.average is not None:
            fragments[run.name]["num_averaged"] = partition.num_averaged
        for kind, flat in host.items():
            tensors[f"{kind}/{run.name}"] = flat[run.offset : run.offset + run.length]
    return Part(tensors, fragments)


def join_parts(parts: list[Part]) -> Part:
    """One part for all partitions of a rank."""
    tensors: dict[str, torch.Tensor] = {}
    fragments: dict[str, dict[str, Any]] = {}
    for part in parts:
        tensors |= part.tensors
        fragments |= part.fragments
    return Part(tensors, fragments)


class PartsReader:
    """All parts of a checkpoint, mapped into memory.

    Args:
        folder: with the parts.

    Raises:
        CheckpointError: no part, or one that is no part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Any] = []
        self._keys: list[set[str]] = []
        # By parameter: index of the file and start of its run, in order of the runs.
        self._runs: dict[str, list[tuple[int, int]]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._kinds: dict[str, set[str]] = {}
        paths = sorted(folder.glob("rank-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder}: found no parts, expected one per rank; {_REMEDY}")
        for index, path in enumerate(paths):
            try:
                file = safe_open(path, framework="pt")
                fragments = json.loads((file.metadata() or {})[_FRAGMENTS])
                for name, facts in fragments.items():
                    self._runs.setdefault(name, []).append((int(facts["start"]), index))
                    self._facts[name] = facts
            except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
                raise CheckpointError(
                    f"{path}: found no part of a checkpoint ({e}), expected safetensors of this "
                    f"format; {_REMEDY}"
                ) from e
            keys = set(file.keys())
            for key in keys:
                kind, _, name = key.partition("/")
                self._kinds.setdefault(name, set()).add(kind)
            self._files.append(file)
            self._keys.append(keys)
        for runs in self._runs.values():
            runs.sort()

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse parts of another model.

        Raises:
            CheckpointError: names the first parameter that differs.
        """
        for name in sorted(shapes.keys() | self._runs.keys()):
            found = tuple(self._facts[name]["shape"]) if name in self._facts else None
            if found != shapes.get(name):
                raise CheckpointError(
                    f"{self._folder}: found {name} of shape {found or 'none'}, expected "
                    f"{shapes.get(name, 'none')}; resume with the settings that wrote it"
                )

    def states(self, name: str) -> set[str]:
        """Kinds of tensors that the optimizer keeps of a parameter."""
        return self._kinds.get(name, set()) - {WEIGHT, AVERAGE}

    def scalars(self, name: str) -> dict[str, float]:
        """What the optimizer counts for a parameter."""
        return dict(self._facts[name]["scalars"])

    def num_averaged(self, name: str) -> int:
        """Updates that the average of a parameter is of.

        Raises:
            CheckpointError: no average was kept.
        """
        try:
            return int(self._facts[name]["num_averaged"])
        except KeyError as error:
            raise CheckpointError(
                f"{self._folder}: found no averaged weights of {name}, expected those of --ema; "
                "resume with the settings that wrote it"
            ) from error

    def read(self, kind: str, name: str, start: int, target: torch.Tensor) -> None:
        """Copy a run of a parameter to where it belongs.

        Args:
            kind: `weight`, or a state of the optimizer.
            name: of the parameter.
            start: first element of the flattened parameter.
            target: (N,) on any device; filled.

        Raises:
            CheckpointError: the parts do not hold all of the run.
        """
        end, position = start + target.numel(), start
        for begin, index in self._runs.get(name, []):
            if position == end or f"{kind}/{name}" not in self._keys[index]:
                break
            run = self._files[index].get_slice(f"{kind}/{name}")
            stop = begin + run.get_shape()[0]
            if begin <= position < stop:
                count = min(end, stop) - position
                piece = run[position - begin : position - begin + count]
                target[position - start : position - start + count].copy_(piece)
                position += count
        if position != end:
            raise CheckpointError(
                f"{self._folder}: found elements {start} to {position} of {kind}/{name}, expected "
                f"up to {end}: a part is missing; {_REMEDY}"
            )


def load_parts(partitions: Partitions, folder: Path) -> None:
    """Read this rank's partitions, then share the weights; collective.

    Args:
        partitions: of the engine that goes on, cut as its own ranks and stage ask for.
        folder: with the parts.

    Raises:
        CheckpointError: the parts are damaged, not all there, or of another model.
    """
    reader = PartsReader(folder)
    reader.check(partitions.shapes())
    for partition in partitions.all():
        tensors = {WEIGHT: partition.weights.detach()}
        if partition.optimizer is not None:
            # Of the whole group: a rank that holds nothing but padding of it must count steps too.
            kinds = set().union(*map(reader.states, partition.names))
            tensors |= partition.new_state(kinds, reader.scalars(partition.names[0]))
        if partition.average is not None:
            assert partitions.average is not None
            partitions.average.num_updates = reader.num_averaged(partition.names[0])
            tensors[AVERAGE] = partition.average
        for run in partition.fragments:
            for kind in tensors.keys() & ({WEIGHT, AVERAGE} | reader.states(run.name)):
                target = tensors[kind][run.offset : run.offset + run.length]
                reader.read(kind, run.name, run.start, target)
    partitions.refresh()
