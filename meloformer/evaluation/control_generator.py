"""What the judge hears: a MuseFormer that writes through a bridge, from texts or from summaries."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meloformer.bridge.attribute_heads import SaidAttributes
from meloformer.bridge.bridge_folder import model_type_of
from meloformer.bridge.bridges import BridgeWeights, LoadedBridge, load_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import FlowConfig, encoder_of
from meloformer.errors import CheckpointError
from meloformer.evaluation.control_rows import Generated, Request
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.generate import Sample, generate_batch
from meloformer.generation.injecting import Injecting, InjectingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.steering import CROSSFADE_BARS, Section, section_weights
from meloformer.generation.text import long_summaries, understood
from meloformer.model.injection import Injection
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import (
    Weights,
    find_model_folder,
    load_model,
    model_fingerprint,
    model_metadata,
)
from meloformer.plurals import counted
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.vocabulary import check_fingerprint


@dataclass(frozen=True, kw_only=True)
class BridgeGenerator:
    """A `Generator` of control_rows.

    Args:
        model: in evaluation mode.
        bridge: trained for it.
        encoder: of the bridge.
        flow: how a Diffusion Bridge is asked.
        sampling: how bold the choice of a token is.
        injecting: what injected summaries do to the closed ones.
    """

    model: MuseFormer
    bridge: LoadedBridge
    encoder: TextEncoder
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    injecting: Injecting = field(default_factory=Injecting)
    # Of texts that have been asked for: rows share them.
    _summaries: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, init=False)
    _heard: dict[str, SaidAttributes] = field(default_factory=dict, init=False)

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """See `Generator`; all requests are sampled side by side."""
        told = [self._told(request) for request in requests]
        pieces = generate_batch(
            self.model,
            [self._sample(request, said) for request, said in zip(requests, told, strict=True)],
            self.sampling,
        )
        return [
            Generated(ids=ids, said=None if said == NOTHING else said)
            for ids, said in zip(pieces, told, strict=True)
        ]

    def _sample(self, request: Request, told: Attributes) -> Sample:
        controls = ControlConfig(bars=request.num_bars)
        if request.way == "strict":
            heard = self._hears(request)
            controls = controls.keeping(told, drums=heard is None or heard.has_drums is not False)
        return Sample(
            controls=controls,
            told=told,
            injection=self._injection(request),
            seed=request.seed,
        )

    def summaries(self, sections: Sequence[tuple[str, int]], *, seed: int) -> Tensor:
        """(bars, D) in the base's own scale, of texts that hold one after the other.

        Args:
            sections: a text and its bars each.
            seed: of the noise.
        """
        ends = list(accumulate(bars for _, bars in sections))
        parts = [
            Section(end - bars, end, text) for end, (text, bars) in zip(ends, sections, strict=True)
        ]
        weights = section_weights(parts, CROSSFADE_BARS)
        whole = [
            weight_S[:, None] * self._of_text(part.text, ends[-1], seed)
            for part, weight_S in zip(parts, weights, strict=True)
        ]
        return torch.stack(whole).sum(dim=0)

    def _of_text(self, text: str, num_bars: int, seed: int) -> Tensor:
        asked = (text, num_bars, seed)
        if asked not in self._summaries:
            made_BSD = long_summaries(self.bridge, self.encoder, text, num_bars, self.flow, [seed])
            self._summaries[asked] = made_BSD[0].cpu()
        return self._summaries[asked]

    def inject(self, summaries_BSD: Tensor, mask_BS: Tensor) -> Injection:
        """Summaries as this generator injects them."""
        return self.injecting.injection(summaries_BSD, mask_BS)

    def _told(self, request: Request) -> Attributes:
        """What the prefix says; a text's attributes as they are understood."""
        if request.way == "summaries":
            return NOTHING
        if request.attributes is not None:
            return request.attributes
        heard = self._hears(request)
        return NOTHING if heard is None else understood(heard)

    def _hears(self, request: Request) -> SaidAttributes | None:
        """What the heads hear in a text; None where nobody says anything, or others than a text."""
        if request.attributes is not None or not request.sections:
            return None
        text = request.sections[0][0]
        if text not in self._heard:
            (self._heard[text],) = self.bridge.heads.predict(self.encoder.encode([text]))
        return self._heard[text]

    def _injection(self, request: Request) -> Injection | None:
        """What is injected; None where nobody says anything."""
        if request.summaries_SD is not None:
            summaries_SD = request.summaries_SD[: request.num_bars]
        elif request.sections:
            summaries_SD = self.summaries(request.sections, seed=request.seed)
        else:
            return None
        device = self.model.token_embedding.weight.device
        return self.injecting.injection(summaries_SD[None].float().to(device))

    def describe(self) -> dict[str, Any]:
        """What decides the figures besides the pieces: models, encoder, versions."""
        config = self.model.config
        return {
            "model": f"{counted(config.num_layers, 'layer')}, width {config.width}, "
            f"{str(self.bridge.base['fingerprint'])[:12]}",
            "open_summary_rate": config.open_summary_rate,
            "bridge": f"{model_type_of(self.bridge.model)}, {self.bridge.weights} weights",
            "encoder": Path(self.encoder.name).name,
            "flow": asdict(self.flow),
            "injection": self.injecting.describe(),
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
    injecting: InjectingConfig | None = None,
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
        injecting: what injected summaries do to the closed ones.

    Raises:
        CheckpointError: one is missing or damaged, or they do not belong together.
        ConfigError: the encoder cannot be found.
        TokenError: a model of another vocabulary.
    """
    folder = find_model_folder(checkpoint, weights)
    check_fingerprint(model_metadata(folder).get("tokenizer", "none"), str(folder))
    loaded = load_bridge(bridge, device, bridge_weights)
    fingerprint = model_fingerprint(folder)
    loaded.check_base(fingerprint)
    model = load_model(folder, device)
    if model.config.open_summary_rate == 0:
        raise CheckpointError(
            f"{folder}: found a model that was trained with --open_summary_rate 0, which has never "
            "read an injected summary; allowed: one trained with a rate above 0"
        )
    return BridgeGenerator(
        model=model,
        bridge=loaded,
        encoder=encoder_of(loaded, text_encoder, device),
        flow=flow or FlowConfig(),
        sampling=sampling or SamplingConfig(),
        injecting=(injecting or InjectingConfig()).load(fingerprint, device, loaded),
    )
