"""Small heads on text states: which attributes a text says, and what it says of them.

Each attribute has a gate, whether the text speaks of it at all, and a value. What a text does not
say stays free. Shape suffixes as in `text_encoder`, with A attributes and F the heads' width.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from meloformer.bridge.bridge_folder import HEADS_NAME
from meloformer.bridge.text_encoder import TextStates
from meloformer.errors import CheckpointError, TokenError
from meloformer.midi.grid import DRUMS
from meloformer.model.tensor_file import write_tensors
from meloformer.tokens import vocabulary
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.vocabulary import BLOCK_SIZES, NUM_KEYS, Kind

FORMAT_VERSION = 1

# Attributes of one value, and how many values each can have.
NUM_VALUES: dict[str, int] = {
    "metre": BLOCK_SIZES[Kind.METRE],
    "tempo": BLOCK_SIZES[Kind.TEMPO],
    "key": NUM_KEYS,
    "length": BLOCK_SIZES[Kind.LENGTH],
    "density": BLOCK_SIZES[Kind.DENSITY],
    "drums": 2,
}
# Values that are numbers: of a word such as "fast" the middle of its spread is the best guess.
ORDERED = ("tempo", "length", "density")
# Every gate; `all_instruments`: those that are named are all that play.
GATES = (*NUM_VALUES, "instruments", "all_instruments")
NUM_INSTRUMENTS = BLOCK_SIZES[Kind.INSTRUMENT]


@dataclass(frozen=True)
class SaidAttributes:
    """What a text says.

    Args:
        attributes: in the words of a prefix; None or () where nothing is said.
        are_all_instruments: the instruments named are all that play; else others may join.
        has_drums: whether drums play; None where nothing is said.
    """

    attributes: Attributes
    are_all_instruments: bool = False
    has_drums: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AttributeHeadsConfig:
    """Settings of the heads.

    Args:
        text_width: W of the states.
        encoder_fingerprint: of the encoder whose states they read.
        width: F.
        num_looks: places of a text that each attribute can look at.
        dropout: in training.
    """

    text_width: int
    encoder_fingerprint: str
    width: int = 256
    num_looks: int = 2
    dropout: float = 0.1


@dataclass(frozen=True)
class HeadLogits:
    """What the heads answer.

    Args:
        gates_BA: in the order of GATES.
        values: (B, values) of each attribute of one value.
        instruments_BI: of each instrument, that it is named.
    """

    gates_BA: torch.Tensor
    values: Mapping[str, torch.Tensor]
    instruments_BI: torch.Tensor


class AttributeHeads(nn.Module):
    """The heads.

    An attribute looks at the tokens that speak of it, by attention with a learned query, and reads
    the pooled and the mean state besides. Of an instrument every token says for itself whether it
    names it, and their evidence is added up.
    """

    def __init__(self, config: AttributeHeadsConfig) -> None:
        super().__init__()
        self.config = config
        width, num_attributes = config.width, len(NUM_VALUES) + 1
        self.inward = nn.Linear(config.text_width, width)
        self.looks = nn.Linear(width, num_attributes * config.num_looks)
        self.whole = nn.Linear(2 * config.text_width, width)
        self.mix = nn.ModuleList(
            nn.Linear((config.num_looks + 1) * width, width) for _ in range(num_attributes)
        )
        self.values = nn.ModuleDict(
            {name: nn.Linear(width, count) for name, count in NUM_VALUES.items()}
        )
        self.value_gates = nn.ModuleList(nn.Linear(width, 1) for _ in NUM_VALUES)
        self.instrument_gates = nn.Linear(width, 2)
        self.naming = nn.Linear(width, NUM_INSTRUMENTS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: TextStates) -> HeadLogits:
        """Logits of B texts, each computed for itself."""
        mask_BL1 = states.mask_BL[..., None]
        # Without parameters: encoders differ by orders of magnitude in the size of their states.
        normed_BLW = F.layer_norm(states.states_BLW.float(), (self.config.text_width,))
        normed_BLW = normed_BLW.masked_fill(~mask_BL1, 0.0)
        mean_BW = normed_BLW.sum(1) / mask_BL1.sum(1)
        pooled_BW = F.layer_norm(states.pooled_BW.float(), (self.config.text_width,))
        whole_BF = F.gelu(self.whole(torch.cat([pooled_BW, mean_BW], -1)))

        inner_BLF = self.dropout(F.gelu(self.inward(normed_BLW)))
        looks_BLQ = self.looks(inner_BLF).masked_fill(~mask_BL1, -torch.inf).softmax(1)
        seen_BQF = torch.einsum("blq,blf->bqf", looks_BLQ, inner_BLF)
        seen_BAK = seen_BQF.reshape(len(states), len(self.mix), -1)
        mixed = [
            self.dropout(F.gelu(mix(torch.cat([seen_BAK[:, index], whole_BF], -1))))
            for index, mix in enumerate(self.mix)
        ]
        naming_BLI = self.naming(inner_BLF).masked_fill(~mask_BL1, -torch.inf)
        gates = [gate(mixed[index]) for index, gate in enumerate(self.value_gates)]
        return HeadLogits(
            torch.cat([*gates, self.instrument_gates(mixed[-1])], -1),
            {name: head(mixed[i]) for i, (name, head) in enumerate(self.values.items())},
            naming_BLI.logsumexp(1),
        )

    @torch.no_grad()
    def predict(self, states: TextStates) -> list[SaidAttributes]:
        """What each of B texts says.

        Args:
            states: from the encoder that the heads were trained on.
        """
        was_training = self.training
        self.eval()
        logits = self(states.to(next(self.parameters()).device))
        self.train(was_training)
        values = {name: most_likely(name, found) for name, found in logits.values.items()}
        return [
            self._said(
                dict(zip(GATES, (logits.gates_BA[row] > 0).tolist(), strict=True)),
                {name: int(found[row]) for name, found in values.items()},
                logits.instruments_BI[row],
            )
            for row in range(len(states))
        ]

    @staticmethod
    def _said(
        is_said: dict[str, bool], values: dict[str, int], naming_I: torch.Tensor
    ) -> SaidAttributes:
        said = {name: value if is_said[name] else None for name, value in values.items()}
        drums = said.pop("drums")
        named: set[int] = set()
        if is_said["instruments"]:
            # The gate has heard a name: where none is clear, the clearest one.
            named = set((naming_I > 0).nonzero().flatten().tolist()) or {int(naming_I.argmax())}
        if drums is not None:
            named = named | {DRUMS} if drums else named - {DRUMS}
        return SaidAttributes(
            Attributes(**said, instruments=tuple(sorted(named))),
            are_all_instruments=bool(named) and is_said["all_instruments"],
            has_drums=None if drums is None else bool(drums),
        )


def most_likely(name: str, logits_BV: torch.Tensor) -> torch.Tensor:
    """(B,) the value to take: the middle of the spread of a number, else the likeliest.

    >>> logits = torch.tensor([[0.32, 0.25, 0.20, 0.23]]).log()
    >>> most_likely("tempo", logits).tolist(), most_likely("key", logits).tolist()
    ([1], [0])
    """
    if name not in ORDERED:
        return logits_BV.argmax(-1)
    reached_BV = logits_BV.float().softmax(-1).cumsum(-1)
    # Rounding may leave the whole sum below one, never near a half.
    return (reached_BV >= 0.5).int().argmax(-1)


def save_heads(folder: Path, heads: AttributeHeads) -> None:
    """Write heads.safetensors; its header holds the settings.

    Args:
        folder: of a bridge, whole but for this.
        heads: trained.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    header = {
        "format": "pt",
        "heads_format": str(FORMAT_VERSION),
        "config": json.dumps(asdict(heads.config)),
        "vocabulary": vocabulary.fingerprint(),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}
    unfinished = folder / f".{HEADS_NAME}.{os.getpid()}.unfinished"
    write_tensors(unfinished, state, header)
    unfinished.replace(folder / HEADS_NAME)


def load_heads(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    encoder_fingerprint: str | None = None,
) -> AttributeHeads:
    """Load the heads of a bridge's folder, in evaluation mode.

    Args:
        folder: with heads.safetensors.
        device: where they compute.
        encoder_fingerprint: whose states they have to read; any encoder's if not given.

    Raises:
        CheckpointError: missing, damaged, of another vocabulary or of another encoder.
    """
    path = folder / HEADS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        vocabulary.check_fingerprint(header["vocabulary"], str(path))
        if header["heads_format"] != str(FORMAT_VERSION):
            raise CheckpointError(
                f"{path}: found heads of format {header['heads_format']}, expected "
                f"{FORMAT_VERSION}; load them with the release that wrote them"
            )
        config = AttributeHeadsConfig(**json.loads(header["config"]))
        heads = AttributeHeads(config)
        heads.load_state_dict(state)
    except TokenError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); expected attribute "
            "heads; train them again, or remove the file to do without"
        ) from error
    if encoder_fingerprint not in (None, config.encoder_fingerprint):
        raise CheckpointError(
            f"{path}: found heads for the text encoder {config.encoder_fingerprint[:12]}, expected "
            f"{str(encoder_fingerprint)[:12]}; train them on the states of this encoder"
        )
    return heads.to(device).eval().requires_grad_(False)
