"""Which weights stay as they are: --freeze, by the names of modules and parameters.

    embedding            all that ends in _embedding; the head is the token embedding, and stays too
    layers.1-6           the first six layers: they count from 1, as everywhere a user sees them
    layers.*.ffn_in      a module of every layer
    *norm*               any shell-style pattern; what it names is frozen with everything below it

What is frozen has neither gradient nor optimizer state. Where embeddings and the first layers are
frozen together, nothing of those is kept for the backward pass, which ends above them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile

from torch import nn

from meloformer.errors import ConfigError
from meloformer.model.museformer import MuseFormer

_WORDS = {"embedding": "*_embedding"}
_LAYER = re.compile(r"^layers\.(\d+)")
_RANGE = re.compile(r"^layers\.(\d+)-(\d+)(.*)$")


def freeze(model: MuseFormer, patterns: Sequence[str]) -> None:
    """Keep the optimizer off what the patterns name.

    Args:
        model: changed in place.
        patterns: as --freeze takes them; none freezes nothing.

    Raises:
        ConfigError: a pattern names nothing, or all of them everything.
    """
    if not patterns:
        return
    frozen = frozen_names([name for name, _ in model.named_parameters()], patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    note_frozen(model)


def note_frozen(model: MuseFormer) -> None:
    """Tell a model what of it is frozen, so that it computes no gradient for nothing."""
    model.is_partly_frozen = not all(p.requires_grad for p in model.parameters())
    inputs = [
        p for name, p in model.named_parameters() if not name.startswith(("layers.", "final"))
    ]
    below: Iterable[nn.Module] = [] if _is_trained(inputs) else model.layers
    model.num_frozen_layers = len(
        list(takewhile(lambda layer: not _is_trained(layer.parameters()), below))
    )


def _is_trained(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def frozen_names(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Parameters that some patterns name.

    Args:
        names: of all parameters, as the model has them.
        patterns: as --freeze takes them.

    Raises:
        ConfigError: a pattern names nothing, or all of them everything.

    >>> sorted(frozen_names(["layers.0.query.weight", "layers.1.query.weight"], ["layers.1"]))
    ['layers.0.query.weight']
    """
    frozen: set[str] = set()
    for pattern in patterns:
        _check_range(pattern, names)
        wanted = list(_expanded(pattern))
        found = {
            name
            for name in names
            if any(fnmatchcase(part, one) for part in _modules_of(name) for one in wanted)
        }
        if not found:
            raise ConfigError(
                f"--freeze {pattern}: names nothing of this model; allowed: "
                f"{', '.join(_known(names))}, layers.1-N or a pattern of such names with * and ?"
            )
        frozen |= found
    if frozen == set(names):
        raise ConfigError(
            f"--freeze {' '.join(patterns)}: freezes all {len(names)} parameters; allowed: to "
            "leave some to train"
        )
    return frozen


def _check_range(pattern: str, names: Sequence[str]) -> None:
    """Refuse a range that goes beyond the layers: what is not there would be taken for frozen."""
    span, layers = (
        _RANGE.match(pattern),
        {int(found[1]) for found in map(_LAYER.match, names) if found},
    )
    if span and layers and not 1 <= int(span[1]) <= int(span[2]) <= max(layers) + 1:
        raise ConfigError(
            f"--freeze {pattern}: found layers {span[1]} to {span[2]}; allowed: 1 to "
            f"{max(layers) + 1}, the lower number first"
        )


def _expanded(pattern: str) -> Iterator[str]:
    """The shell-style patterns that one of --freeze stands for."""
    if span := _RANGE.match(pattern):
        for layer in range(int(span[1]), int(span[2]) + 1):
            yield f"layers.{layer}{span[3]}"
    else:
        yield _WORDS.get(pattern, pattern)


def _modules_of(name: str) -> Iterator[str]:
    """A parameter and all modules around it, their layers counted from 1."""
    words = _LAYER.sub(lambda found: f"layers.{int(found[1]) + 1}", name).split(".")
    for count in range(1, len(words) + 1):
        yield ".".join(words[:count])


def _known(names: Sequence[str]) -> list[str]:
    """Names to choose from, those of all layers as one."""
    known = {word: None for word in _WORDS}
    for name in names:
        known[_LAYER.sub("layers.*", name).removesuffix(".weight")] = None
    return list(known)


def describe_trained(trained: int, parameters: int) -> str:
    """How much is trained, in words."""
    return f"{trained:,} trained ({trained / parameters:.1%}), {parameters - trained:,} frozen"


def describe_frozen(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """A line on what --freeze has come to; none where nothing is frozen."""
    trained, parameters = count_parameters(model)
    if not patterns:
        return []
    return [f"--freeze {' '.join(patterns)}: parameters: {describe_trained(trained, parameters)}"]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    # Under ZeRO stage 3 a rank has no more of a parameter than its size.
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(count for count, is_trained in counts if is_trained), sum(n for n, _ in counts)
