"""What a frozen MuseFormer thinks of a bridge's summaries: its own token loss, through injection.

A regression weighs all directions of a summary alike; the layers above the injection do not. Their
loss says which errors matter, and its gradient reaches the bridge through frozen weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from meloformer.batches.collate import collate_rows
from meloformer.bridge.summarising import bare_window, count_bars, row_length
from meloformer.bridge.targets import TargetWindow
from meloformer.errors import ConfigError
from meloformer.model.attention import Backend, build_plan
from meloformer.model.injection import Injection
from meloformer.model.masks import Rule, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.training.graphs import limit_graphs
from meloformer.training.loss import token_nats

# Summaries (B, S, D) in the base's own scale and the slots that have one (B, S), to an injection.
Inject = Callable[[Tensor, Tensor], Injection]


class WindowTokens:
    """Tokens of the windows of targets, read from the shards that those were extracted from.

    Args:
        data: the shard folder.
        shards_manifest_sha256: of the folder that the targets were extracted from.
        split: of the windows.

    Raises:
        ConfigError: the targets are of other shards.
    """

    def __init__(self, data: Path | str, shards_manifest_sha256: str, split: str) -> None:
        folder = ShardFolder.open(data)
        if folder.manifest_sha256 != shards_manifest_sha256:
            raise ConfigError(
                f"--data {data}: found shards {folder.manifest_sha256[:12]}, the summaries of "
                f"--targets are of {shards_manifest_sha256[:12]}; give the shards that they were "
                "extracted from"
            )
        self._index = folder.split(split)
        self._pieces = {key: piece for piece, key in enumerate(self._index.keys())}

    def read(self, window: TargetWindow) -> np.ndarray:
        """Token ids (T,) of a window, all optional attributes absent, as its summaries saw it."""
        piece = self._pieces[window.key]
        ids, starts = self._index.read(piece), self._index.bar_starts(piece)
        return bare_window(ids, starts, window.first_bar, window.last_bar)


def num_graphs(rule: Rule) -> int:
    """Attention graphs of one shape of batch, whatever is trained through a frozen base.

    Without gradients SUMMARIZE, UPDATE and UPDATE with open summaries. In training the first two
    below the injection, where nothing has a gradient; above it SUMMARIZE, and UPDATE with open
    summaries twice, since the queries of the first layer there have none yet.

    Args:
        rule: head groups, each of which is an UPDATE of its own.

    >>> num_graphs(rule_of("halves"))
    13
    """
    return 3 + 5 * len(rule)


class TokenLoss:
    """Nats per token of windows, given the summaries of a bridge.

    Args:
        model: the base; frozen here, and used in evaluation mode.
        mean_D: what undoes normalising the summaries that are handed over.
        std_D: likewise.
        one_shape: rows as long as the base takes, and batches of as many rows as the largest before
            had, since the kernel of a GPU is compiled anew for every shape; on CUDA if not given.
    """

    def __init__(
        self, model: MuseFormer, mean_D: Tensor, std_D: Tensor, *, one_shape: bool | None = None
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        device = model.token_embedding.weight.device
        self._mean_D, self._std_D = mean_D.to(device), std_D.to(device)
        self._backend: Backend = "flex" if device.type == "cuda" else "dense"
        self._one_shape = device.type == "cuda" if one_shape is None else one_shape
        self._most_rows = 0
        if self._backend == "flex":
            # torch stops at fewer by itself. Twice: a window of very many bars has a longer row.
            limit_graphs(2 * num_graphs(rule_of(model.config.rule)))

    def __call__(
        self,
        predicted_BSD: Tensor,
        tokens: Sequence[np.ndarray],
        world_size: int,
        inject: Inject,
    ) -> tuple[Tensor, Tensor]:
        """Share of these rows in the mean over the global batch; collective.

        Args:
            predicted_BSD: normalised summaries of each row's bars.
            tokens: of each row's window.
            world_size: ranks that share the global batch.
            inject: how the summaries enter.

        Returns:
            What the ranks' mean of is the nats per token of the global batch, with a gradient into
            the summaries; and the same detached.
        """
        nats, num_targets = self.nats(predicted_BSD, tokens, inject)
        of_all = torch.tensor(float(num_targets), device=nats.device)
        if world_size > 1:
            dist.all_reduce(of_all)
        share = nats * (world_size / of_all)
        return share, share.detach()

    def nats(
        self,
        predicted_BSD: Tensor | None,
        tokens: Sequence[np.ndarray],
        inject: Inject,
    ) -> tuple[Tensor, int]:
        """Nats of all tokens of these rows, and how many tokens that are.

        Args:
            predicted_BSD: normalised summaries of each row's bars; None injects nothing.
            tokens: of each row's window.
            inject: how the summaries enter.
        """
        model = self._model
        rule = rule_of(model.config.rule)
        rows: list[list[np.ndarray]] = [[ids] for ids in tokens]
        longest, most_bars = max(map(len, tokens)), max(map(count_bars, tokens))
        if self._one_shape:
            longest = max(longest, model.config.max_seq_len)
            self._most_rows = max(self._most_rows, len(rows))
            rows += [[]] * (self._most_rows - len(rows))
        batch = collate_rows(
            rows,
            row_length(longest, most_bars),
            rule if self._backend == "flex" else None,
            open_seeds=None if predicted_BSD is None else [0] * len(rows),
        ).to(model.token_embedding.weight.device)
        injection = None
        if predicted_BSD is not None:
            assert batch.layout.open_BS is not None
            is_open_BS = batch.layout.open_BS >= 0
            injection = inject(self._laid(predicted_BSD, is_open_BS), is_open_BS)
        plan = build_plan(batch.layout, rule, self._backend, batch.blocks)
        logits_BTV = model(batch.ids_BT, batch.layout, plan, injection)
        return token_nats(logits_BTV, batch.targets_BT).sum(), batch.num_targets

    def _laid(self, predicted_BSD: Tensor, is_open_BS: Tensor) -> Tensor:
        """Summaries in the base's own scale, in the slots of a batch: a window's bars come first.

        Slots are as many as a row has room for, rows as many as the batch has.
        """
        in_scale_BSD = predicted_BSD.float() * self._std_D + self._mean_D
        num_rows, num_slots = is_open_BS.shape
        missing = (max(num_slots - in_scale_BSD.shape[1], 0), num_rows - len(in_scale_BSD))
        return F.pad(in_scale_BSD, (0, 0, 0, missing[0], 0, missing[1]))[:, :num_slots]
