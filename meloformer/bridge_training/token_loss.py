"""What a frozen MuseFormer thinks of a bridge's summaries: its own token loss, through injection.

A regression weighs all directions of a summary alike; the layers above the injection do not. Their
loss says which errors matter, and its gradient reaches the bridge through frozen weights.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from meloformer.batches.collate import collate_rows
from meloformer.bridge.summarising import bare_window, count_bars, row_length
from meloformer.bridge.targets import TargetWindow
from meloformer.errors import ConfigError
from meloformer.model.attention import Backend, build_plan
from meloformer.model.injection import Injection
from meloformer.model.masks import num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.training.loss import token_nats


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


class TokenLoss:
    """Nats per token of windows, given the summaries of a bridge.

    Args:
        model: the base; frozen here, and used in evaluation mode.
        mean_D: of its summaries.
        std_D: their deviation.
    """

    def __init__(self, model: MuseFormer, mean_D: torch.Tensor, std_D: torch.Tensor) -> None:
        self._model = model.eval().requires_grad_(False)
        device = model.token_embedding.weight.device
        self._mean_D, self._std_D = mean_D.to(device), std_D.to(device)
        self._backend: Backend = "flex" if device.type == "cuda" else "dense"

    def __call__(
        self, predicted_BSD: torch.Tensor, tokens: Sequence[np.ndarray], world_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of these rows in the mean over the global batch.

        Args:
            predicted_BSD: normalised summaries of each row's bars.
            tokens: of each row's window.
            world_size: ranks that share the global batch.

        Returns:
            What the ranks' mean of is the nats per token of the global batch, with a gradient into
            the summaries; and the same detached.
        """
        model, device = self._model, predicted_BSD.device
        rule = rule_of(model.config.rule)
        longest = max(map(len, tokens))
        bars = [count_bars(ids) for ids in tokens]
        # The kernel of a GPU is compiled anew for every length.
        length = row_length(
            max(longest, model.config.max_seq_len) if self._backend == "flex" else longest,
            max(bars),
        )
        batch = collate_rows(
            [[ids] for ids in tokens],
            length,
            rule if self._backend == "flex" else None,
            open_seeds=[0] * len(tokens),
        ).to(device)
        assert batch.layout.open_BS is not None
        is_open_BS = batch.layout.open_BS >= 0
        in_scale_BSD = predicted_BSD.float() * self._std_D + self._mean_D
        # Slots of summaries are as many as the row has room for; a window's bars stand first.
        missing = num_summaries(length) - in_scale_BSD.shape[1]
        injected_BSD = torch.nn.functional.pad(in_scale_BSD, (0, 0, 0, max(missing, 0)))
        injection = Injection(
            summaries_BSD=injected_BSD[:, : num_summaries(length)], mask_BS=is_open_BS
        )
        plan = build_plan(batch.layout, rule, self._backend, batch.blocks)
        logits_BTV = model(batch.ids_BT, batch.layout, plan, injection)
        nats = token_nats(logits_BTV, batch.targets_BT).sum()
        num_targets = torch.tensor(float(batch.num_targets), device=device)
        if world_size > 1:
            dist.all_reduce(num_targets)
        share = nats * (world_size / num_targets)
        return share, share.detach()
