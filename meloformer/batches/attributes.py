"""Attribute dropout: which statements of a prefix a window keeps in training."""

from dataclasses import dataclass

import numpy as np

from meloformer.errors import ConfigError
from meloformer.tokens.attributes import ATTRIBUTE_KINDS
from meloformer.tokens.vocabulary import Kind


@dataclass(frozen=True, kw_only=True)
class AttributeDropout:
    """How often attributes are left out, so that a model can be asked with any of them or none.

    Args:
        keep_all: probability that a window keeps every attribute.
        drop_all: probability that it keeps none.
        drop_each: otherwise, probability that each attribute is left out, independently.
    """

    keep_all: float = 0.25
    drop_all: float = 0.1
    drop_each: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"attribute dropout {name} {value}: allowed 0..1")
        if self.keep_all + self.drop_all > 1:
            raise ConfigError(
                f"attribute dropout keep_all {self.keep_all} and drop_all {self.drop_all}: "
                "together allowed at most 1"
            )

    def keep(self, random: np.random.Generator) -> np.ndarray:
        """Draw the flags of one window: (6,) bool in the order of ATTRIBUTE_KINDS."""
        fate, *each = random.random(1 + len(ATTRIBUTE_KINDS))
        if fate < self.keep_all:
            return np.ones(len(ATTRIBUTE_KINDS), dtype=bool)
        if fate < self.keep_all + self.drop_all:
            return np.zeros(len(ATTRIBUTE_KINDS), dtype=bool)
        return np.array(each) >= self.drop_each


def keep_length_alone(random: np.random.Generator) -> np.ndarray:
    """Flags of a window that says how long it is, as generation does, or nothing: (6,) bool."""
    flags = np.zeros(len(ATTRIBUTE_KINDS), dtype=bool)
    flags[ATTRIBUTE_KINDS.index(Kind.LENGTH)] = random.random() < 0.5
    return flags


ALL_ATTRIBUTES = AttributeDropout(keep_all=1, drop_all=0)
NO_ATTRIBUTES = AttributeDropout(keep_all=0, drop_all=1)
