"""Rules as data: attention rules in JSON, so that others than the presets need no new code.

A file holds a list of head groups, each with the fields of `masks.HeadGroup`:

    [{"same_instrument": true, "bar_distances": [], "order": "instrument", "share": 1},
     {"same_instrument": false, "bar_distances": [0, 1, 2, 4], "order": "bar", "share": 3}]

`order` and `share` may be left out. Everywhere else a rule that is a preset goes by its name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from meloformer.errors import ConfigError
from meloformer.model.masks import RULES, HeadGroup, Order, Rule

# No row has as many bars; the kernel's labels count in 32 bits.
MAX_BAR_DISTANCE = 4096

_FIELDS = tuple(field.name for field in dataclasses.fields(HeadGroup))
_REQUIRED = ("same_instrument", "bar_distances")
_ORDERS = get_args(Order)


def load_rule(attention: str) -> str | Rule:
    """What `--attention` names.

    Args:
        attention: name of a preset, or path of a .json file.

    Returns:
        The name, also where a file says what a preset says; the head groups otherwise.

    Raises:
        ConfigError: neither a preset nor a file that holds a rule.
    """
    if attention in RULES:
        return attention
    path = Path(attention)
    if path.suffix != ".json" or not path.is_file():
        found = "no such file" if path.suffix == ".json" else "no rule of that name"
        raise ConfigError(
            f"--attention {attention}: found {found}; allowed: {', '.join(RULES)}, or the path of "
            "a .json file with a list of head groups"
        )
    try:
        value = json.loads(path.read_text())
    # Text that nests too deeply for the parser, or that is no text, is damaged too.
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--attention {attention}: cannot be read ({error}); allowed: JSON, a list of head "
            f"groups such as {_example()}"
        ) from error
    return parse_rule(value, f"--attention {attention}")


def parse_rule(value: Any, source: str) -> str | Rule:
    """A rule from plain data, as `rule_to_json` gives it.

    Args:
        value: name of a preset, or a list of objects with the fields of `HeadGroup`.
        source: where it comes from, for messages.

    Returns:
        The name where it is a preset, the head groups otherwise.

    Raises:
        ConfigError: names the group, what was found and what is allowed.
    """
    if isinstance(value, str):
        if value not in RULES:
            raise ConfigError(f"{source}: found rule {value!r}; allowed: {', '.join(RULES)}")
        return value
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _shown(value)
        raise ConfigError(
            f"{source}: found {found}; allowed: a list of one or more head groups such as "
            f"{_example()}"
        )
    rule = tuple(_parse_group(group, f"{source}, group {i + 1}") for i, group in enumerate(value))
    return next((name for name, preset in RULES.items() if preset == rule), rule)


def rule_to_json(rule: str | Rule) -> str | list[dict[str, Any]]:
    """Plain data of a rule: the name of a preset as it is, head groups as JSON gives them back."""
    if isinstance(rule, str):
        return rule
    return [
        {name: list(v) if isinstance(v, tuple) else v for name, v in vars(group).items()}
        for group in rule
    ]


def describe_rule(rule: str | Rule) -> str:
    """A rule in a few words.

    >>> describe_rule("halves")
    'halves'
    >>> describe_rule((HeadGroup(True, (0, 4), share=3), HeadGroup(False, None)))
    '3 x same instrument and bars 0 4, 1 x every bar'
    """
    if isinstance(rule, str):
        return rule
    return ", ".join(f"{group.share} x {_describe_group(group)}" for group in rule)


def _describe_group(group: HeadGroup) -> str:
    if group.bar_distances is None:
        return "every bar"
    words = ["same instrument"] if group.same_instrument else []
    if group.bar_distances:
        words.append("bars " + " ".join(map(str, group.bar_distances)))
    return " and ".join(words) or "summaries alone"


def _parse_group(value: Any, source: str) -> HeadGroup:
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: found {_shown(value)}; allowed: an object like {_example()}")
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        raise ConfigError(
            f"{source}: found the unknown key {', '.join(unknown)}; allowed: {', '.join(_FIELDS)}"
        )
    missing = [name for name in _REQUIRED if name not in value]
    if missing:
        raise ConfigError(
            f"{source}: found no {' and no '.join(missing)}; allowed: an object like {_example()}"
        )
    same_instrument, order = value["same_instrument"], value.get("order", "bar")
    distances, share = value["bar_distances"], value.get("share", 1)
    _check(isinstance(same_instrument, bool), source, "same_instrument", same_instrument, "a bool")
    _check(order in _ORDERS, source, "order", order, " or ".join(_ORDERS))
    _check(_is_count(share) and share > 0, source, "share", share, "1, 2, 3, ...")
    _check(
        distances is None
        or (
            isinstance(distances, list)
            and all(map(_is_count, distances))
            and len(set(distances)) == len(distances)
            and max(distances, default=0) <= MAX_BAR_DISTANCE
        ),
        source,
        "bar_distances",
        distances,
        f"a list of different whole numbers from 0 (own bar) to {MAX_BAR_DISTANCE}, or null for "
        "every bar",
    )
    if distances is None and same_instrument:
        raise ConfigError(
            f"{source}: found same_instrument true with bar_distances null, which reads every bar "
            "anyway; allowed: one of the two; write false, or list the distances"
        )
    bars = None if distances is None else tuple(sorted(distances))
    return HeadGroup(same_instrument, bars, order, share)


def _check(is_right: bool, source: str, name: str, found: Any, allowed: str) -> None:
    if not is_right:
        raise ConfigError(f"{source}: {name} {_shown(found)}; allowed: {allowed}")


def _is_count(value: Any) -> bool:
    """A whole number from 0 on; JSON's true is no number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _example() -> str:
    return json.dumps(rule_to_json(RULES["halves"][1:]))
