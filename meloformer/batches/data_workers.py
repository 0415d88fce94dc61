"""Data workers: the processes that make the batches of a rank, in the order of what it asks for."""

import logging
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.share import MicroBatchSpec
from meloformer.errors import MeloFormerError

logger = logging.getLogger(__name__)

# Micro-batches that each worker keeps ready.
_PREFETCH = 2


class _SpecSampler(Sampler[MicroBatchSpec]):
    """Hands specs to the loader as if they were indices."""

    def __init__(self, specs: Iterator[MicroBatchSpec] | Sequence[MicroBatchSpec]) -> None:
        self._specs = specs

    def __iter__(self) -> Iterator[MicroBatchSpec]:
        return iter(self._specs)


class _Batches(Dataset[Batch | MeloFormerError]):
    """Collates inside a worker; an error of ours travels back as it is, not as a traceback."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __getitem__(self, spec: MicroBatchSpec) -> Batch | MeloFormerError:
        try:
            return self._collator(spec)
        except MeloFormerError as error:
            return error


def load(
    specs: Iterator[MicroBatchSpec] | Sequence[MicroBatchSpec],
    collator: Collator,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Batches of specs in their order, made in `num_workers` processes, or here if there are none.

    Raises:
        MeloFormerError: what a worker raised.
    """
    if num_workers:
        _raise_file_limit()
    loader = DataLoader(
        _Batches(collator),
        batch_size=None,
        sampler=_SpecSampler(specs),
        collate_fn=_unchanged,
        num_workers=num_workers,
        prefetch_factor=_PREFETCH if num_workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        # Its own generator: starting a loader must not advance the random numbers of the run.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, MeloFormerError):
            raise item
        yield item


def _unchanged(item: Any) -> Any:
    return item


def _raise_file_limit() -> None:
    """Let this process, and the workers it starts, open as many files as the system allows.

    Every tensor that comes from a worker holds a file descriptor as long as it lives. Where many
    micro-batches make a step, those of one step pass the usual soft limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.warning("%d open files allowed, and the limit cannot be raised", soft)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
