"""What a comparison of attention rules trains: presets, other groupings, files, the dense twin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.block_plans import build_blocks
from meloformer.batches.collate import as_tensors
from meloformer.errors import ConfigError
from meloformer.model.attention import Backend
from meloformer.model.masks import BLOCK_SIZE, NEAR_BARS, HeadGroup, Rule, rule_of
from meloformer.model.rules import describe_rule, load_rule

DENSE_TWIN = "dense_twin"

_INSTRUMENT = HeadGroup(True, (), "instrument")
_NEAR = HeadGroup(False, NEAR_BARS)
# What is tried beside the presets: near bars alone, the parts of halves in other shares, and with
# a third part for far bars. Shares add up to 1, 2 or 4, so that few heads serve all.
GROUPINGS: dict[str, Rule] = {
    "near": (_NEAR,),
    "split_1_3": (_INSTRUMENT, replace(_NEAR, share=3)),
    "split_1_2_far_1": (
        _INSTRUMENT,
        replace(_NEAR, share=2),
        HeadGroup(False, (0, 8, 12, 16, 24, 32)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is trained.

    Args:
        name: in tables.
        rule: preset or head groups.
        summaries: False is the dense twin.
    """

    name: str
    rule: str | Rule
    summaries: bool = True

    def describe(self) -> str:
        """What stands behind a name that is no preset."""
        return "full, no summaries" if not self.summaries else describe_rule(rule_of(self.rule))

    def prepare(self, batch: Batch, backend: Backend, block_size: int = BLOCK_SIZE) -> Batch:
        """A batch as this candidate reads it: with no slots for summaries that it does not have,
        and with the block lists of its rule where the backend wants them.
        """
        layout, open_seeds = batch.layout, batch.open_seeds
        if not self.summaries:
            layout, open_seeds = layout.without_summaries(), ()
        blocks = None
        if backend == "flex":
            arrays = layout.map(Tensor.numpy)
            blocks = as_tensors(build_blocks(arrays, rule_of(self.rule), block_size))
        return replace(batch, layout=layout, blocks=blocks, open_seeds=open_seeds)


def find_candidates(names: Sequence[str]) -> list[Candidate]:
    """What `--rules` names.

    Raises:
        ConfigError: a name is unknown or stands twice, or none is given.
    """
    found: dict[str, Candidate] = {}
    for name in (part for given in names for part in given.split(",") if part):
        if name == DENSE_TWIN:
            candidate = Candidate(name=name, rule="full", summaries=False)
        elif name in GROUPINGS:
            candidate = Candidate(name=name, rule=GROUPINGS[name])
        else:
            try:
                rule = load_rule(name)
            except ConfigError as error:
                others = ", ".join((*GROUPINGS, DENSE_TWIN))
                raise ConfigError(f"--rules: {error}; here also: {others}") from error
            stem = name.removesuffix(".json").rsplit("/", 1)[-1]
            candidate = Candidate(name=rule if isinstance(rule, str) else stem, rule=rule)
        if candidate.name in found:
            raise ConfigError(
                f"--rules: found {candidate.name} twice, allowed: each once; rename the file"
            )
        found[candidate.name] = candidate
    if not found:
        raise ConfigError("--rules: found none; allowed: one or more")
    return list(found.values())
