"""From texts, or from pieces that lend their summaries, to what a model is given to write from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from meloformer.bridge.attribute_heads import SaidAttributes
from meloformer.bridge.bridges import BridgeWeights, LoadedBridge, load_bridge
from meloformer.bridge.flow import row_seed
from meloformer.bridge.summarising import summaries_of_piece
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import FlowConfig, encoder_of, summaries_of_texts
from meloformer.command_line import changed_flags
from meloformer.errors import GenerationError, MidiError
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.injecting import Injecting, InjectingConfig
from meloformer.generation.said_length import said_bars
from meloformer.generation.steering import (
    CROSSFADE_BARS,
    Section,
    agreed,
    mixed,
    parse_course,
    parse_texts,
    section_weights,
)
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.model.injection import Injection
from meloformer.model.museformer import MuseFormer
from meloformer.plurals import counted
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.hid import encode

# Flags that nobody reads without a text, beside those of the flow.
_OF_TEXTS = ("bridge_weights", "text_encoder", "attributes", "crossfade")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Flags that steer a piece by text, or by the summaries of other pieces.

    Args:
        text: what the music is to be like; several of these flags make several pieces, unless each
            says its bars: --text '0-15: calm piano' --text '16-47: full rock band' is one piece.
        prompts: file with a text a line.
        bridge: run folder of a Q-Former or a Diffusion Bridge that was trained for the model.
        bridge_weights: those of its last step, their average, or the average where there is one.
        text_encoder: another place of the bridge's encoder, such as a folder.
        attributes: write what a text says of tempo, metre, key, density and instruments into the
            prefix, and as many bars as it says; without, the summaries alone say it. Flags of the
            user's own come first.
        strict: keep what a text says of tempo, metre and instruments by force, and that there are
            no drums.
        crossfade: bars over which one section fades into the next.
        summaries_from: MIDI file whose summaries the piece takes, in place of a text.
        mix: two MIDI files; the piece goes from the first one's summaries to the second one's.
        at: where it does: bar:share pairs, such as 0:0,64:1.
        injecting: what they do to the model's own.
        flow: how a Diffusion Bridge is asked.
    """

    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    prompts: Path | None = None
    bridge: Path | None = None
    bridge_weights: BridgeWeights = "auto"
    text_encoder: str | None = None
    attributes: bool = True
    strict: bool = False
    crossfade: int = CROSSFADE_BARS
    summaries_from: Path | None = None
    mix: tuple[Path, ...] = ()
    at: str | None = None
    injecting: InjectingConfig = field(default_factory=InjectingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self) -> None:
        ways = {
            "--text": bool(self.text),
            "--prompts": self.prompts is not None,
            "--summaries_from": self.summaries_from is not None,
            "--mix": bool(self.mix),
        }
        if sum(ways.values()) > 1:
            given = " and ".join(flag for flag, is_given in ways.items() if is_given)
            raise GenerationError(f"{given} at once: allowed: one of {', '.join(ways)}")
        if (self.text or self.prompts) and self.bridge is None:
            raise GenerationError(
                "--text without --bridge: allowed: the run of a bridge that was trained for the "
                "model; train one with launch/train_qformer.py"
            )
        if self.bridge is not None and not (self.text or self.prompts):
            raise GenerationError("--bridge without a text: allowed: --text or --prompts beside it")
        if self.strict and not (self.attributes and self.bridge):
            raise GenerationError(
                "--strict with nothing to be strict about: allowed: beside a text whose attributes "
                "are read, without --no_attributes"
            )
        if any(not text.strip() for text in self.text):
            raise GenerationError("--text '': found an empty text; allowed: a few words or more")
        if self.mix and (len(self.mix) != 2 or self.at is None):
            where = "no --at" if self.at is None else f"--at {self.at}"
            raise GenerationError(
                f"--mix with {counted(len(self.mix), 'file')} and {where}: allowed: two MIDI files "
                "and where the piece goes from one to the other, such as --at 0:0,64:1"
            )
        if self.at is not None and not self.mix:
            raise GenerationError(
                f"--at {self.at} without --mix: allowed: two MIDI files beside it"
            )
        if self.crossfade < 0:
            raise GenerationError(f"--crossfade {self.crossfade}: allowed 0 or more bars")
        self._check_is_read()

    def _check_is_read(self) -> None:
        """Refuse flags of what steers a piece, where nothing does."""
        if not self.is_given and (names := changed_flags(self.injecting)):
            raise GenerationError(
                f"--{names[0]} with nothing to inject: allowed: beside --text, --prompts, "
                "--summaries_from or --mix"
            )
        names = [name for name in changed_flags(self) if name.removeprefix("no_") in _OF_TEXTS]
        names += changed_flags(self.flow)
        if names and not (self.text or self.prompts):
            raise GenerationError(
                f"--{names[0]} without a text: allowed: beside --text or --prompts"
            )

    @property
    def is_given(self) -> bool:
        """Whether anything steers the piece."""
        return bool(self.text or self.prompts or self.summaries_from or self.mix)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """MIDI files that are read, by flag."""
        lender = () if self.summaries_from is None else (self.summaries_from,)
        return {"--summaries_from": lender, "--mix": self.mix}

    def texts(self) -> tuple[str, ...]:
        """Those of the flags, or the lines of the file.

        Raises:
            GenerationError: the file cannot be read, or holds no text.
        """
        if self.prompts is None:
            return self.text
        try:
            lines = self.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"--prompts {self.prompts}: cannot be read ({error})") from error
        if not (texts := tuple(line.strip() for line in lines if line.strip())):
            raise GenerationError(f"--prompts {self.prompts}: found no text; allowed: one a line")
        return texts


@dataclass(frozen=True, kw_only=True)
class Order:
    """A piece that was asked for, of which several samples may be taken.

    Args:
        title: in words.
        controls: what the grammar keeps.
        told: what the prefix says besides.
        injection: summaries of each sample; None lets the model write freely.

    Raises:
        ConfigError: wishes that no piece of its bars can fulfil.
    """

    title: str
    controls: ControlConfig
    told: Attributes = NOTHING
    injection: Injection | None = None

    def __post_init__(self) -> None:
        # Refused before anything is sampled, also where a text has said how long the piece is.
        _ = self.controls.wishes


def orders_of(
    config: TextConfig,
    controls: ControlConfig,
    model: MuseFormer,
    fingerprint: str,
    *,
    num_samples: int = 1,
    seed: int = 0,
) -> list[Order]:
    """What is to be written: one piece per text, or the one that the flags describe.

    Args:
        config: what steers.
        controls: the user's own wishes.
        model: in evaluation mode.
        fingerprint: of its weights.
        num_samples: of each piece; a Diffusion Bridge draws each one's summaries anew.
        seed: of those draws.

    Raises:
        MeloFormerError: a bridge of another model, a text or a file that cannot be read.
    """
    if not config.is_given:
        return [Order(title=controls.describe(), controls=controls)]
    check_reads_summaries(model)
    device = model.token_embedding.weight.device
    if not config.bridge or not (texts := config.texts()):
        return [_borrowed(config, config.injecting.load(fingerprint, device), controls, model)]
    bridge = load_bridge(config.bridge, device, config.bridge_weights)
    bridge.check_base(fingerprint)
    injecting = config.injecting.load(fingerprint, device, bridge)
    encoder = encoder_of(bridge, config.text_encoder, device)
    seeds = [row_seed(seed, number) for number in range(num_samples)]
    return [
        order_of_sections(config, injecting, controls, bridge, encoder, sections, seeds)
        for sections in parse_texts(texts, controls.bars)
    ]


def order_of_sections(
    config: TextConfig,
    injecting: Injecting,
    controls: ControlConfig,
    bridge: LoadedBridge,
    encoder: TextEncoder,
    sections: Sequence[Section],
    seeds: Sequence[int],
) -> Order:
    """A piece of one text or of several.

    Args:
        config: how they are heard and asked.
        injecting: what the summaries do.
        controls: the user's own wishes.
        bridge: of the model that will write.
        encoder: of the bridge.
        sections: `parse_texts` of the texts, of one piece.
        seeds: of the summaries of each sample.

    Raises:
        GenerationError: --strict, where nobody reads what a text says.
        ConfigError: a text that the encoder cannot read.
    """
    texts = [part.text for part in sections]
    heard = _heard(config, bridge, encoder, texts)
    told = agreed([understood(said) for said in heard]) if heard else NOTHING
    has_drums = not heard or any(said.has_drums is not False for said in heard)
    num_bars = sections[-1].last or said_bars(texts[0], told.length) or controls.num_bars
    sections = [Section(part.first, part.last or num_bars, part.text) for part in sections]
    weights = section_weights(sections, config.crossfade)
    summaries_BSD = sum(
        weight_S[:, None].to(bridge.mean_D.device)
        * long_summaries(bridge, encoder, text, num_bars, config.flow, seeds)
        for text, weight_S in zip(texts, weights, strict=True)
    )
    assert isinstance(summaries_BSD, Tensor)
    own = replace(controls, bars=num_bars)
    return Order(
        title="; ".join(texts),
        controls=own.keeping(told, drums=has_drums) if config.strict else own,
        told=told,
        injection=injecting.injection(summaries_BSD),
    )


def _heard(
    config: TextConfig, bridge: LoadedBridge, encoder: TextEncoder, texts: Sequence[str]
) -> list[SaidAttributes]:
    """What each text says; nothing where nobody asks, or the bridge cannot read it."""
    if config.strict and bridge.heads is None:
        raise GenerationError(
            f"--strict with --bridge {bridge.folder}: found no attribute heads, so nobody reads "
            "what a text says; allowed: a bridge that was trained with them"
        )
    if not config.attributes or bridge.heads is None:
        return []
    heard: list[SaidAttributes] = bridge.heads.predict(encoder.encode(texts))
    return heard


def understood(said: SaidAttributes) -> Attributes:
    """What the prefix says for a text; instruments only where those named are all that play."""
    if said.are_all_instruments:
        return said.attributes
    return replace(said.attributes, instruments=())


def long_summaries(
    bridge: LoadedBridge,
    encoder: TextEncoder,
    text: str,
    num_bars: int,
    flow: FlowConfig,
    seeds: Sequence[int],
) -> Tensor:
    """(B, S, D) summaries of a text in the base's own scale, for each seed.

    More bars than the bridge was trained on at once come as windows that are joined.
    """
    return summaries_of_texts(bridge, encoder, [text] * len(seeds), num_bars, flow, seed=seeds)


def _borrowed(
    config: TextConfig, injecting: Injecting, controls: ControlConfig, model: MuseFormer
) -> Order:
    """A piece on the summaries of others."""
    if config.summaries_from is not None:
        lent_SD = _summaries_of_file(model, "--summaries_from", config.summaries_from)
        title = f"after {config.summaries_from.name}"
        return order_of_summaries(injecting, controls, lent_SD, title)
    assert config.at is not None
    first_SD, second_SD = (_summaries_of_file(model, "--mix", path) for path in config.mix)
    num_bars = controls.bars or min(len(first_SD), len(second_SD))
    between_SD = mixed(first_SD, second_SD, parse_course(config.at, num_bars))
    title = f"from {config.mix[0].name} to {config.mix[1].name}"
    return order_of_summaries(injecting, controls, between_SD, title)


def _summaries_of_file(model: MuseFormer, flag: str, path: Path) -> Tensor:
    try:
        ids = encode(quantise(read_midi(path)))
    except MidiError as error:
        raise GenerationError(f"{flag} {path}: {error}; allowed: a MIDI file") from error
    return summaries_of_piece(model, ids)


def order_of_summaries(
    injecting: Injecting, controls: ControlConfig, summaries_SD: Tensor, title: str
) -> Order:
    """A piece on summaries that are there already.

    Args:
        injecting: what they do.
        controls: the user's own wishes; as many bars as there are summaries if they name none.
        summaries_SD: one a bar, in the base's own scale.
        title: of the piece.

    Raises:
        GenerationError: more bars than summaries.
    """
    if controls.bars is not None and controls.bars > len(summaries_SD):
        raise GenerationError(
            f"--bars {controls.bars}: found summaries of {len(summaries_SD)} bars; allowed: up to "
            "that"
        )
    num_bars = controls.bars or len(summaries_SD)
    return Order(
        title=title,
        controls=replace(controls, bars=num_bars),
        injection=injecting.injection(summaries_SD[None, :num_bars]),
    )


def check_reads_summaries(model: MuseFormer) -> None:
    """Refuse a model to which an injected summary would say nothing.

    Raises:
        GenerationError: it was trained without open summaries.
    """
    if model.config.open_summary_rate == 0:
        raise GenerationError(
            "--checkpoint: found a model that was trained with --open_summary_rate 0, which has "
            "never read an injected summary; allowed: one trained with a rate above 0"
        )
