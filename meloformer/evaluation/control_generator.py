"""What the judge hears: a MuseFormer that writes through a bridge, from texts or from summaries."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meloformer.bridge.attribute_heads import SaidAttributes
from meloformer.bridge.bridge_folder import model_type_of
from meloformer.bridge.bridges import BridgeWeights, LoadedBridge, load_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import FlowConfig, encoder_of, summaries_of_texts
from meloformer.evaluation.control_rows import Generated, Request
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.grid import DRUMS, METRES, TEMPOS_BPM
from meloformer.model.injection import Injection, Strategy
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import (
    Weights,
    find_model_folder,
    load_model,
    model_fingerprint,
    model_metadata,
)
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.vocabulary import (
    DENSITY_BIN_NOTES_PER_QUARTER,
    check_fingerprint,
    key_name,
)


@dataclass(frozen=True, kw_only=True)
class BridgeGenerator:
    """A `Generator` of control_rows.

    Args:
        model: in evaluation mode.
        bridge: trained for it.
        encoder: of the bridge.
        flow: how a Diffusion Bridge is asked.
        sampling: how bold the choice of a token is.
        strategy: what injected summaries do to the closed ones.
        alpha: their weight in `blend`.
    """

    model: MuseFormer
    bridge: LoadedBridge
    encoder: TextEncoder
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    strategy: Strategy = "blend"
    alpha: float = 0.7

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """See `Generator`; requests of one kind are sampled as one batch."""
        told = [self._told(request) for request in requests]
        controls = [
            controls_of(said, request.num_bars)
            for request, said in zip(requests, told, strict=True)
        ]
        batches: dict[object, list[int]] = {}
        for number, (request, wishes) in enumerate(zip(requests, controls, strict=True)):
            batches.setdefault((wishes, request.way, is_steered(request)), []).append(number)
        written: dict[int, Generated] = {}
        for numbers in batches.values():
            chosen = [requests[number] for number in numbers]
            pieces = generate(
                self.model,
                controls[numbers[0]],
                self.sampling,
                num_samples=len(numbers),
                seed=chosen[0].seed,
                injection=self._injection(chosen),
            )
            for number, ids in zip(numbers, pieces, strict=True):
                written[number] = Generated(ids=ids, said=understood(told[number]))
        return [written[number] for number in range(len(requests))]

    def summaries(self, sections: Sequence[tuple[str, int]], *, seed: int) -> Tensor:
        """(bars, D) in the base's own scale, of texts that hold one after the other.

        Args:
            sections: a text and its bars each.
            seed: of the noise.
        """
        parts = [
            summaries_of_texts(self.bridge, self.encoder, [text], bars, self.flow, seed=seed)[0]
            for text, bars in sections
        ]
        return torch.cat(parts)

    def inject(self, summaries_BSD: Tensor, mask_BS: Tensor) -> Injection:
        """Summaries as this generator injects them."""
        return Injection(
            summaries_BSD=summaries_BSD, mask_BS=mask_BS, strategy=self.strategy, alpha=self.alpha
        )

    def _told(self, request: Request) -> SaidAttributes | None:
        if request.way == "summaries":
            return None
        if request.attributes is not None:
            return SaidAttributes(request.attributes, are_all_instruments=True)
        if not request.sections:
            return None
        states = self.encoder.encode([request.sections[0][0]])
        said: list[SaidAttributes] = self.bridge.heads.predict(states)
        return said[0]

    def _injection(self, requests: Sequence[Request]) -> Injection | None:
        """What is injected into pieces of one kind; None where nobody says anything."""
        if not is_steered(requests[0]):
            return None
        rows = [
            self.summaries(request.sections, seed=request.seed)
            if request.summaries_SD is None
            else request.summaries_SD[: request.num_bars]
            for request in requests
        ]
        device = self.model.token_embedding.weight.device
        summaries_BSD = torch.stack([row_SD.float().to(device) for row_SD in rows])
        everywhere_BS = torch.ones(summaries_BSD.shape[:2], dtype=torch.bool, device=device)
        return self.inject(summaries_BSD, everywhere_BS)

    def describe(self) -> dict[str, Any]:
        """What decides the figures besides the pieces: models, encoder, versions."""
        config = self.model.config
        return {
            "model": f"{config.num_layers} layers, width {config.width}, "
            f"{str(self.bridge.base['fingerprint'])[:12]}",
            "open_summary_rate": config.open_summary_rate,
            "bridge": f"{model_type_of(self.bridge.model)}, {self.bridge.weights} weights",
            "encoder": Path(self.encoder.name).name,
            "flow": asdict(self.flow),
            "injection": f"{self.strategy}, alpha {self.alpha:g}",
            "device": str(self.model.token_embedding.weight.device),
            "torch": torch.__version__,
        }


def load_generator(
    checkpoint: Path,
    bridge: Path,
    *,
    device: str,
    weights: Weights = "raw",
    bridge_weights: BridgeWeights = "auto",
    text_encoder: str | None = None,
    flow: FlowConfig | None = None,
    sampling: SamplingConfig | None = None,
    strategy: Strategy = "blend",
    alpha: float = 0.7,
) -> BridgeGenerator:
    """Load a model and a bridge that belong together, with the bridge's encoder.

    Args:
        checkpoint: run folder, step folder or model folder of the MuseFormer.
        bridge: run folder or model folder of the bridge.
        device: where they run.
        weights: of the MuseFormer.
        bridge_weights: of the bridge.
        text_encoder: another place of the same encoder.
        flow: see `BridgeGenerator`.
        sampling: see `BridgeGenerator`.
        strategy: see `BridgeGenerator`.
        alpha: see `BridgeGenerator`.

    Raises:
        CheckpointError: one is missing or damaged, or they do not belong together.
        ConfigError: the encoder cannot be found.
        TokenError: a model of another vocabulary.
    """
    folder = find_model_folder(checkpoint, weights)
    check_fingerprint(model_metadata(folder).get("tokenizer", "none"), str(folder))
    loaded = load_bridge(bridge, device, bridge_weights)
    loaded.check_base(model_fingerprint(folder))
    return BridgeGenerator(
        model=load_model(folder, device),
        bridge=loaded,
        encoder=encoder_of(loaded, text_encoder, device),
        flow=flow or FlowConfig(),
        sampling=sampling or SamplingConfig(),
        strategy=strategy,
        alpha=alpha,
    )


def is_steered(request: Request) -> bool:
    """Whether summaries come from somewhere."""
    return request.summaries_SD is not None or bool(request.sections)


def understood(said: SaidAttributes | None) -> Attributes | None:
    """What a text is taken to ask for; instruments only where they are all that shall play."""
    if said is None:
        return None
    if said.are_all_instruments:
        return said.attributes
    return replace(said.attributes, instruments=())


def controls_of(said: SaidAttributes | None, num_bars: int) -> ControlConfig:
    """Wishes of a piece as generation takes them."""
    if said is None:
        return ControlConfig(bars=num_bars)
    attributes = said.attributes
    instruments = attributes.instruments if said.are_all_instruments else ()
    return ControlConfig(
        bars=num_bars,
        tempo=None if attributes.tempo is None else float(TEMPOS_BPM[attributes.tempo]),
        time_signature=None
        if attributes.metre is None
        else "{}/{}".format(*METRES[attributes.metre]),
        key=None if attributes.key is None else key_name(attributes.key),
        instruments=tuple("drums" if i == DRUMS else str(i - 1) for i in instruments),
        density=None if attributes.density is None else density_of_bin(attributes.density),
    )


def density_of_bin(index: int) -> float:
    """Notes per quarter that fall into a bin.

    >>> from meloformer.tokens.vocabulary import density_bin
    >>> [density_bin(density_of_bin(index)) for index in (0, 7, 15)]
    [0, 7, 15]
    """
    edges = DENSITY_BIN_NOTES_PER_QUARTER
    return edges[index] if index < len(edges) else 2 * edges[-1]
