"""What summaries do to the likelihood of real music: a piece's own must help, another's must hurt.

Teacher-forced: the notes are given, the model says how likely it finds each one, once without
injection and once with each kind of summaries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.batches.collate import collate_rows
from meloformer.bridge.summarising import summaries_of_windows
from meloformer.evaluation.control_intervals import Interval, difference, groups_of, interval
from meloformer.evaluation.likelihood import row_length
from meloformer.model.attention import build_plan
from meloformer.model.injection import Injection
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import ATTRIBUTE_KINDS, drop_attributes
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.tokens.windows import bar_starts

# Summaries (B, S, D) and the slots that have one (B, S) to what is injected.
Inject = Callable[[Tensor, Tensor], Injection]

_KEEP_NOTHING = np.zeros(len(ATTRIBUTE_KINDS), dtype=bool)
# Windows scored at once.
_ROWS = 8


def bare_bars(ids: np.ndarray, max_bars: int) -> np.ndarray:
    """The first bars of a sequence that starts a piece, with no attribute in its prefix.

    Args:
        ids: (T,) from BOS.
        max_bars: bars that are kept.
    """
    starts = bar_starts(ids)
    if len(starts) - 1 > max_bars:
        ids = ids[: starts[max_bars]]
    return drop_attributes(ids, _KEEP_NOTHING)


def true_summaries(model: MuseFormer, windows: Sequence[np.ndarray]) -> list[Tensor]:
    """(bars, D) of each window, in the model's own scale."""
    return summaries_of_windows(model, windows, batch_size=_ROWS)


def nats_per_note(
    model: MuseFormer,
    windows: Sequence[np.ndarray],
    summaries: Sequence[Tensor] | None,
    inject: Inject | None = None,
) -> np.ndarray:
    """Negative log likelihood of each window, all its tokens but the first, per note.

    Args:
        model: in evaluation mode; scored on its device.
        windows: token ids, each a sequence that decodes alone and holds a note.
        summaries: (bars, D) to inject into each; None injects nothing.
        inject: how they enter; as `Injection` does if not told otherwise.

    Returns:
        (N,) nats per note.
    """
    rule, device = rule_of(model.config.rule), model.token_embedding.weight.device
    found = np.full(len(windows), np.nan)
    in_order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
    for first in range(0, len(in_order), _ROWS):
        numbers = in_order[first : first + _ROWS]
        chosen = [windows[number] for number in numbers]
        batch = collate_rows([[ids] for ids in chosen], row_length(chosen)).to(device)
        layout, injection = batch.layout, None
        if summaries is not None:
            injection = injection_of(
                [summaries[number] for number in numbers], layout.piece_BS >= 0, inject
            )
            layout = injection.layout(layout)
        with torch.no_grad():
            logits_BTV = model(batch.ids_BT, layout, build_plan(layout, rule), injection)
        nats_B = F.cross_entropy(
            logits_BTV.transpose(1, 2).float(),
            batch.targets_BT,
            ignore_index=IGNORE_INDEX,
            reduction="none",
        ).sum(dim=1)
        for number, nats in zip(numbers, nats_B.tolist(), strict=True):
            num_notes = int((KIND_OF[windows[number]] == Kind.PITCH).sum())
            found[number] = nats / num_notes if num_notes else np.nan
    return found


def injection_of(
    summaries: Sequence[Tensor], has_bar_BS: Tensor, inject: Inject | None = None
) -> Injection:
    """Summaries of several pieces in the slots of a batch's bars.

    Another piece's summaries are laid over as many bars as there are: the first ones again where
    it is shorter.

    Args:
        summaries: (bars, D) of each row.
        has_bar_BS: bool, the slots that hold a bar; each row's come first.
        inject: see `nats_per_note`.
    """
    rows = []
    for of_row, has_bar_S in zip(summaries, has_bar_BS, strict=True):
        num_bars, num_slots = int(has_bar_S.sum()), len(has_bar_S)
        laid_SD = of_row[torch.arange(num_bars) % len(of_row)]
        rows.append(F.pad(laid_SD, (0, 0, 0, num_slots - num_bars)))
    summaries_BSD = torch.stack(rows).to(has_bar_BS.device)
    if inject is not None:
        return inject(summaries_BSD, has_bar_BS)
    return Injection(summaries_BSD=summaries_BSD, mask_BS=has_bar_BS)


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How well a text finds its piece among others.

    Args:
        group_size: pieces among which each is looked for.
        first: share of texts whose own piece comes first.
        first_five: share whose own piece is among the first five.
        mean_rank: of the own piece, 1 the best.
    """

    group_size: int
    first: Interval
    first_five: Interval
    mean_rank: Interval


def retrieve(predicted_PD: Tensor, true_PD: Tensor, *, group_size: int, seed: int) -> Retrieval:
    """Rank the true pieces of a group by the cosine of their pooled summaries to a text's.

    Args:
        predicted_PD: mean over bars of what a bridge makes of each text, normalised.
        true_PD: mean over bars of each piece's own summaries, normalised alike.
        group_size: pieces of a group; all of them in one where there are fewer.
        seed: of groups and intervals.

    Ties count against the text: what is the same for every piece finds none.
    """
    predicted_PD, true_PD = (F.normalize(x.double(), dim=1) for x in (predicted_PD, true_PD))
    groups = groups_of(len(true_PD), group_size, seed)
    ranks = []
    for group in groups:
        cosine = predicted_PD[group] @ true_PD[group].T
        own = cosine.diagonal()[:, None]
        ranks += (cosine >= own - 1e-12).sum(dim=1).tolist()
    ranks_P = np.array(ranks, np.float64)
    return Retrieval(
        group_size=len(groups[0]),
        first=interval(ranks_P <= 1, seed=seed),
        first_five=interval(ranks_P <= 5, seed=seed),
        mean_rank=interval(ranks_P, seed=seed, is_share=False),
    )


def likelihood_differences(nats: dict[str, np.ndarray], *, seed: int) -> dict[str, Interval]:
    """Nats per note with each kind of summaries less those without any, piece by piece.

    Args:
        nats: (P,) of each kind; `none` is there.
        seed: of the intervals.
    """
    return {
        kind: difference(values, nats["none"], seed=seed)
        for kind, values in nats.items()
        if kind != "none"
    }
