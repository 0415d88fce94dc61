"""The model's settings and the four sizes."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meloformer.errors import CheckpointError, ConfigError
from meloformer.model import masks
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.rules import describe_rule, parse_rule, rule_to_json

Precision = Literal["auto", "bf16", "fp32"]
# How a run trains and not what the weights compute: no part of config.json.
Checkpointing = Literal["none", "ffn", "layer"]


@dataclass(frozen=True, kw_only=True)
class MuseFormerConfig:
    """Everything that decides the function which the weights compute.

    Args:
        vocab_size: tokens V.
        num_onsets: grid steps in the longest bar, plus nothing: onset 0 serves tokens without one.
        num_instruments: instruments of the grid; header tokens and the prefix come on top.
        max_seq_len: context length in tokens that the model was trained for.
        rule: who reads whom: the name of a preset of masks.RULES, or the head groups of another
            rule (see model/rules.py).
        rotary_base: wave-length base of both halves of the rotary pairs.
        summaries: False is the dense twin that the others are measured against: no summary stream,
            tokens read tokens alone; its rule is `full`.
        open_summary_rate: share of the rows of training that have open summaries too, see
            model/injection.py.
        fill_rate: share of the windows of training that were filled, see tokens/filling.py; 0 is a
            model that has never read what comes after what it writes.
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    ffn_width: int
    vocab_size: int
    num_onsets: int
    num_instruments: int
    max_seq_len: int = 8192
    rule: str | masks.Rule = "halves"
    rotary_base: float = 10_000.0
    summaries: bool = True
    open_summary_rate: float = 0.0
    fill_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.head_width % 4:
            raise ConfigError(
                f"width {self.width} over {self.num_heads} heads: found head width "
                f"{self.width / self.num_heads:g}, allowed multiples of 4 (rotary pairs, half by "
                "bar and half by index)"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads over {self.num_kv_heads} key/value heads: allowed "
                "are divisors of the query heads"
            )
        rule = masks.rule_of(self.rule)
        masks.split_heads(rule, self.num_kv_heads)
        if not self.summaries and rule != masks.RULES["full"]:
            raise ConfigError(
                f"a model without summaries under rule {describe_rule(self.rule)}: allowed: full, "
                "since what a sparse rule leaves out would be out of reach; keep the summaries"
            )
        if not 0 <= self.open_summary_rate <= 1:
            raise ConfigError(
                f"open_summary_rate {self.open_summary_rate:g}: allowed 0 to 1, a share of the rows"
            )
        if not 0 <= self.fill_rate <= 1:
            raise ConfigError(f"fill_rate {self.fill_rate:g}: allowed 0 to 1, a share of windows")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def num_open_layers(self) -> int:
        """Layers that have open summaries in training: those above the injection layer, or none."""
        has_any = self.summaries and self.open_summary_rate > 0
        return max(self.num_layers - INJECTION_LAYER, 0) if has_any else 0

    def save(self, folder: Path) -> None:
        """Write config.json; it holds the rule itself where that is no preset."""
        values = {**dataclasses.asdict(self), "rule": rule_to_json(self.rule)}
        text = json.dumps({"model_type": "museformer", **values}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> "MuseFormerConfig":
        """Read config.json.

        Raises:
            CheckpointError: no such file, or not a MuseFormer's.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; expected a folder with a MuseFormer model"
            )
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); expected JSON; take another checkpoint"
            ) from error
        if not isinstance(values, dict) or values.pop("model_type", None) != "museformer":
            raise CheckpointError(f"{path}: model_type is not museformer; expected one of ours")
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) - known:
            raise CheckpointError(
                f"{path}: unknown settings {sorted(set(values) - known)}; allowed {sorted(known)}; "
                "was it written by a newer version?"
            )
        try:
            values["rule"] = parse_rule(values.get("rule", cls.rule), f"{path}, rule")
            return cls(**values)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        except TypeError as error:
            raise CheckpointError(
                f"{path}: settings are missing ({error}); take another checkpoint"
            ) from error


@dataclass(frozen=True)
class Size:
    """Depth and widths of a preset."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    ffn_width: int


SIZES: dict[str, Size] = {
    "tiny": Size(4, 128, 2, 2, 384),
    "small": Size(8, 512, 8, 8, 1408),
    "base": Size(12, 768, 12, 12, 2048),
    "large": Size(24, 1024, 16, 16, 4096),
}
