"""The adapter's own flags, its objective, and what they make of its training."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from meloformer.bridge.adapter import SummaryAdapter, SummaryAdapterConfig, bridge_facts
from meloformer.bridge.bridges import BridgeBatch, BridgeWeights, LoadedBridge, load_bridge
from meloformer.bridge.text_to_summaries import FlowConfig
from meloformer.bridge_training.config import BridgeTrainConfig
from meloformer.bridge_training.objectives import Metrics, Objective
from meloformer.bridge_training.prepare import BridgeKind, PreparedBridge, prepare
from meloformer.bridge_training.token_loss import Inject, TokenLoss
from meloformer.errors import ConfigError
from meloformer.model.injection import Injection, Strategy
from meloformer.model.weights import find_model_folder, load_model, model_fingerprint
from meloformer.training.ranks import Ranks
from meloformer.training.schedule import ScheduleConfig

# What --text_encoder is if not given: the encoder that the bridge names.
_OF_BRIDGE = "auto"


@dataclass(frozen=True, kw_only=True)
class AdapterTrainConfig(BridgeTrainConfig):
    """Flags of launch/train_adapter.py.

    Args:
        bridge: run folder, step folder or model folder of the bridge whose summaries it learns to
            take in; frozen.
        bridge_weights: those of its last step, their average, or the average where there is one.
        checkpoint: run of the MuseFormer that the bridge was trained for; frozen.
        data: shards that the targets were extracted from.
        text_encoder: another place of the bridge's encoder, such as a folder; auto takes the one
            that the bridge names.
        hidden_width: of the adapter's layer.
        alpha: weight of the injected summaries in the blend that it begins as; if not given, what
            the bridge was trained with, and 0.7 where it was trained with none.
        validation_windows: that a validation looks at, evenly spread; 0 for all.
        batch_size: rows per rank at the first start, each a forward and a backward pass of the
            MuseFormer; later starts follow the number of ranks.
        flow: how a Diffusion Bridge is asked for the summaries to learn from.
    """

    bridge: Path
    bridge_weights: BridgeWeights = "auto"
    # Else the class that is extended would lend its None.
    checkpoint: Path = field()
    data: str
    text_encoder: str = _OF_BRIDGE
    hidden_width: int = SummaryAdapterConfig.hidden_width
    alpha: float | None = None
    validation_windows: int = 256
    batch_size: int = 8
    epochs: int = 3
    # It hears no text.
    heads: Annotated[Literal["off"], tyro.conf.Suppress] = "off"
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(learning_rate=1e-3))
    flow: FlowConfig = field(default_factory=lambda: FlowConfig(steps=4))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_windows < 0:
            raise ConfigError(
                f"--validation_windows {self.validation_windows}: allowed: 1 or more, 0 for all"
            )
        self.model_config(summary_width=1)

    def model_config(self, summary_width: int) -> SummaryAdapterConfig:
        """Shape of the adapter for summaries of a width."""
        return SummaryAdapterConfig(
            summary_width=summary_width,
            hidden_width=self.hidden_width,
            alpha=SummaryAdapterConfig.alpha if self.alpha is None else self.alpha,
        )


class AdapterObjective(Objective):
    """Nats per token of the frozen base, with a frozen bridge's summaries taken in by the adapter.

    Args:
        adapter: to be trained.
        bridge: which answers the texts.
        flow: how it is asked.
        token_loss: of the base.
        world_size: ranks that share the global batch.
    """

    over_tokens = frozenset({"loss", "nats_none", "nats_blend", "nats_adapter"})

    def __init__(
        self,
        adapter: SummaryAdapter,
        bridge: LoadedBridge,
        flow: FlowConfig,
        token_loss: TokenLoss,
        *,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        # The name that checkpoints are written by. The frozen models are no modules of this one:
        # neither trained, nor part of a checkpoint, nor cut up by an engine.
        self.bridge = adapter
        self._answering, self._flow, self._token_loss = bridge, flow, token_loss
        self._world_size = world_size

    def forward(self, batch: BridgeBatch) -> tuple[Tensor, Metrics]:
        """Loss of this rank's rows; the mean over ranks is that of the global batch.

        In validation the means are those of these rows alone, beside what the same windows cost
        without summaries and with the blend that the adapter began as.
        """
        states = batch.states
        answers_BSD = self._answering.model.sample(
            states,
            batch.mask_BS.shape[1],
            seed=batch.row_seeds,
            steps=self._flow.steps,
            guidance=self._flow.guidance,
            solver=self._flow.solver,
            mask_BS=batch.mask_BS,
        )
        adapted = self._inject("adapter")
        if self.training:
            loss, said = self._token_loss(answers_BSD, batch.tokens, self._world_size, adapted)
            return loss, {"nats_adapter": said}
        metrics = {}
        for name, summaries_BSD, inject in (
            ("nats_none", None, adapted),
            ("nats_blend", answers_BSD, self._inject("blend")),
            ("nats_adapter", answers_BSD, adapted),
        ):
            nats, num_targets = self._token_loss.nats(summaries_BSD, batch.tokens, inject)
            metrics[name] = nats / num_targets
        return metrics["nats_adapter"], metrics

    def _inject(self, strategy: Strategy) -> Inject:
        def inject(summaries_BSD: Tensor, mask_BS: Tensor) -> Injection:
            return Injection(
                summaries_BSD=summaries_BSD,
                mask_BS=mask_BS,
                strategy=strategy,
                alpha=self.bridge.config.alpha,
                adapter=self.bridge if strategy == "adapter" else None,
                layer=self._answering.layer,
            )

        return inject


def prepare_adapter(flags: AdapterTrainConfig, command: list[str] | None = None) -> PreparedBridge:
    """Settle every setting and refuse what cannot be, on all ranks together.

    Args:
        flags: as typed.
        command: for run.json; that of this process if not given.

    Raises:
        MeloFormerError: anything that a user can get wrong.
    """
    bridge = load_bridge(flags.bridge, "cpu", flags.bridge_weights)
    bridge.check_base(model_fingerprint(find_model_folder(flags.checkpoint)))
    facts = bridge_facts(bridge)
    if facts["model_type"] == "qformer" and flags.flow.guidance != 1:
        raise ConfigError(
            f"--guidance {flags.flow.guidance:g} with --bridge {flags.bridge}: found a Q-Former, "
            "which has no unconditional answer to go away from; allowed: 1"
        )
    if flags.text_encoder == _OF_BRIDGE:
        flags = replace(flags, text_encoder=bridge.encoder["name"])
    if flags.alpha is None:
        flags = replace(flags, alpha=bridge.token_loss_alpha)
    prepared = prepare(flags, kind_of(flags, bridge), command)
    bridge.check_encoder(prepared.facts.encoder["fingerprint"])
    return prepared


def kind_of(flags: AdapterTrainConfig, bridge: LoadedBridge) -> BridgeKind:
    """What the common training has to know of an adapter to a bridge.

    Args:
        flags: its settings.
        bridge: on the CPU, of the base that the flags name.
    """
    facts = bridge_facts(bridge)

    def build(text_width: int, summary_width: int) -> SummaryAdapter:
        return SummaryAdapter(flags.model_config(summary_width), bridge.mean_D, bridge.std_D)

    def objective(adapter: SummaryAdapter, ranks: Ranks) -> Objective:
        model = load_model(find_model_folder(flags.checkpoint), str(ranks.device))
        if ranks.device.type == "cuda":
            model = model.bfloat16()
        answering = load_bridge(flags.bridge, ranks.device, flags.bridge_weights)
        return AdapterObjective(
            adapter,
            answering,
            flags.flow,
            TokenLoss(model, bridge.mean_D, bridge.std_D),
            world_size=ranks.world_size,
        )

    return BridgeKind(
        build=build,
        objective=objective,
        objective_settings={"bridge": facts["fingerprint"], "flow": asdict(flags.flow)},
        most_bars=bridge.trained_bars,
        tokens_from=flags.data,
        layer=bridge.layer,
        statistics=lambda targets: (bridge.mean_D, bridge.std_D),
        most_valid=flags.validation_windows or None,
        extra={"bridge": facts},
    )
