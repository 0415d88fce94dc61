"""The data card of a shard folder: its README.md, as people and the Hugging Face hub read it.

It follows from the manifest alone, so it repeats byte for byte.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from meloformer.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    Manifest,
    ShardSettings,
    flat_settings,
)

# Licences by the names that the hub knows; anything else is `other`.
_HUB_LICENCES = (
    *("cc0-1.0", "mit", "apache-2.0", "mpl-2.0", "bsd", "unlicense", "unknown"),
    *("gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"),
    *(
        f"cc-{terms}-{version}"
        for terms in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
        for version in ("2.0", "2.5", "3.0", "4.0")
    ),
)
_UNVERSIONED = {"cc0": "cc0-1.0", "cc": "cc"}
_HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_TOTALS = ("pieces", "bars", "notes", "tokens")
_COMPARED_LISTS = ("license", "size_categories")  # people may add tags


def data_card(manifest: Manifest) -> str:
    """Text of the README.md that lies beside a manifest.

    Args:
        manifest: of the folder; nothing else is read.
    """
    names = " + ".join(_code(entry.name) for entry in manifest.inputs)
    sections = (
        _front_matter(manifest),
        f"# {' + '.join(_plain(entry.name) for entry in manifest.inputs)}, as shards\n\n"
        f"{_size(manifest)} for training MeloFormer, made from "
        f"{names}: MIDI on a grid, as token ids, in plain WebDataset tars.",
        _counts(manifest),
        _inputs(manifest),
        _near_copies(manifest),
        _command(manifest),
        _reading(manifest),
        _versions(manifest),
    )
    return "\n\n".join(sections) + "\n"


def differences_from_card(text: str, manifest: Manifest) -> Iterator[str]:
    """What a card states otherwise than the manifest, or not at all, one line each.

    Figures, licences and inputs are compared. Words are not, and what people have added to the
    card is theirs, so that a card may be written on.

    Args:
        text: of the card.
        manifest: of the folder.
    """
    lines = text.splitlines()
    for name, values in _lists_of(data_card(manifest)).items():
        found = _lists_of(text).get(name, [])
        if name in _COMPARED_LISTS and found != values:
            yield f"found {name} {', '.join(found) or 'none'}, expected {', '.join(values)}"
    for line in data_card(manifest).split("\n---\n", 1)[1].splitlines():
        if line.startswith(("| ", "- ")) and line not in lines:
            named_so = [row for row in lines if row.split("|")[:2] == line.split("|")[:2]]
            nearest = named_so if "|" in line else get_close_matches(line, lines, n=1)
            yield f"found {nearest[0].strip() if nearest else 'nothing'}, expected {line.strip()}"
    for fact in (_size(manifest), _equation(manifest), _shares(manifest), _clusters(manifest)):
        if fact not in text:
            as_stated = re.search(re.sub(r"\d[\d,]*", r"[\\d,]+", re.escape(fact)), text)
            yield f"found {as_stated[0] if as_stated else 'nothing'}, expected {fact}"


def _lists_of(card: str) -> dict[str, list[str]]:
    """The flat lists of the front matter."""
    block = card.split("\n---\n", 1)[0] if card.startswith("---\n") else ""
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("- ") and found:
            list(found.values())[-1].append(line[2:])
        elif line.endswith(":") and not line.startswith(" "):
            found[line[:-1]] = []
    return found


def _front_matter(manifest: Manifest) -> str:
    """YAML as the hub understands it."""
    lines = ["---", *_yaml_list("license", _hub_licences(manifest))]
    lines += _yaml_list("task_categories", ["text-to-audio", "other"])
    lines += _yaml_list("tags", ["music", "midi", "symbolic-music", "webdataset", "meloformer"])
    lines += _yaml_list("size_categories", [_size_category(manifest.num_pieces)])
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for split in SPLITS:
        if manifest.splits[split]:
            lines += [f"  - split: {_HUB_SPLITS[split]}", f"    path: {split}/*.tar"]
    return "\n".join([*lines, "---"])


def _yaml_list(name: str, values: Sequence[str]) -> list[str]:
    return [f"{name}:", *(f"- {value}" for value in values)]


def _hub_licences(manifest: Manifest) -> list[str]:
    guesses = {
        guess.strip()
        for entry in manifest.inputs
        for line in entry.licences
        for guess in line.rpartition(": ")[2].split(",")
    }
    return sorted({_hub_licence(guess) for guess in guesses}) or ["unknown"]


def _hub_licence(guess: str) -> str:
    """Name of a licence on the hub.

    >>> [_hub_licence(guess) for guess in ("CC-BY 4.0", "GPL 3", "CC0", "BSD", "my own")]
    ['cc-by-4.0', 'gpl-3.0', 'cc0-1.0', 'bsd', 'other']
    """
    plain = "-".join(guess.lower().split())
    candidates = (_UNVERSIONED.get(plain, plain), f"{plain}.0")
    return next((name for name in candidates if name in _HUB_LICENCES), "other")


def _size_category(num_pieces: int) -> str:
    """How the hub calls a size.

    >>> _size_category(413), _size_category(10_000), _size_category(2_500_000)
    ('n<1K', '10K<n<100K', '1M<n<10M')
    """
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    power = max(len(str(num_pieces)) - 3, 0)
    if power == 0:
        return f"n<{names[0]}"
    if power >= len(names):
        return f"n>{names[-1]}"
    return f"{names[power - 1]}<n<{names[power]}"


def _counts(manifest: Manifest) -> str:
    rows = [_row(manifest, split, (split,)) for split in SPLITS]
    text = (
        "## What is in it\n\n"
        + _table(["split", *_TOTALS, "shards"], [*rows, _row(manifest, "all", SPLITS)])
        + f"\n\n{_equation(manifest)}. A duplicate repeats another file note for note. "
        f"`{REJECTED_NAME}` names every file that is no piece, with the reason."
    )
    if manifest.rejected:
        reasons = sorted(manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        lines = [[_code(reason), f"{count:,}"] for reason, count in reasons]
        text += "\n\n" + _table(["rejected because", "files"], lines)
    return text


def _size(manifest: Manifest) -> str:
    return f"{manifest.num_pieces:,} pieces of symbolic music"


def _equation(manifest: Manifest) -> str:
    return (
        f"In = pieces + duplicates + rejected: {manifest.num_in:,} = {manifest.num_pieces:,} + "
        f"{manifest.num_duplicates:,} + {manifest.num_rejected:,}"
    )


def _shares(manifest: Manifest) -> str:
    settings = manifest.settings
    return (
        f"{_percent(settings.valid_share)} of the tunes go to valid, "
        f"{_percent(settings.test_share)} to test"
    )


def _clusters(manifest: Manifest) -> str:
    if not manifest.settings.near_copy_threshold:
        return "Near copies were not looked for."
    return (
        f"{manifest.num_near_copies:,} pieces stand in {manifest.num_clusters:,} clusters of two "
        "or more"
    )


def _row(manifest: Manifest, name: str, splits: Sequence[str]) -> list[str]:
    shards = [shard for split in splits for shard in manifest.splits[split]]
    totals = [sum(getattr(shard, what) for shard in shards) for what in _TOTALS]
    return [name, *(f"{count:,}" for count in [*totals, len(shards)])]


def _inputs(manifest: Manifest) -> str:
    rows = [
        [_code(entry.name), f"{entry.files:,}", f"`{entry.fingerprint[:16]}`"]
        for entry in manifest.inputs
    ]
    licences = [
        f"- {_plain(f'{entry.name}/{line}')}"
        for entry in manifest.inputs
        for line in entry.licences
    ]
    said = (
        "Licence files that lay beside the music, with a guess at what they say:\n\n"
        + "\n".join(licences)
        if licences
        else "No licence file lay beside the music: find out what it allows before you pass it on."
    )
    table = _table(["input", "files", "fingerprint (of names and sizes)"], rows)
    columns = [
        f"- {_plain(f'{entry.name}: {line}')}"
        for entry in manifest.inputs
        for line in entry.columns
    ]
    if columns:
        said += "\n\nColumns of its tables, and what became of them:\n\n" + "\n".join(columns)
    return f"## Where it comes from\n\n{table}\n\n{said}"


def _near_copies(manifest: Manifest) -> str:
    settings = manifest.settings
    shares = (
        f"{_shares(manifest)}, by a hash of onsets and intervals, so that "
        "transposed or re-orchestrated copies stay together and files added later move none."
    )
    if not settings.near_copy_threshold:
        return f"## Splits\n\n{shares} {_clusters(manifest)}"
    return (
        f"## Splits and near copies\n\n{shares} Pieces that share melodic figures (Jaccard "
        f"similarity from {settings.near_copy_threshold:g} up) form clusters: "
        f"{_clusters(manifest)}. All are kept, and no cluster "
        "crosses the splits; each piece names its own in its facts (`cluster`)."
    )


def _command(manifest: Manifest) -> str:
    lines = "\n".join(f"    {line}" for line in commands(manifest))
    several = " One line for each input." if len(manifest.inputs) > 1 else ""
    return (
        "## How it was made\n\n"
        f"The same files give the same bytes, on any machine, with any number of workers.{several}"
        f"\n\n{lines}"
    )


def commands(manifest: Manifest) -> Iterator[str]:
    """What to type to make the folder again: settings that are not the defaults, in full."""
    default, made = flat_settings(ShardSettings()), flat_settings(manifest.settings)
    flags = [f"--{name} {made[name]}" for name in made if made[name] != default[name]]
    for place, entry in enumerate(manifest.inputs):
        words = [f"python launch/shard_data.py --midi {shlex.quote(_one_line(entry.name))}"]
        words += ["--output data_shards/<name>", *flags]
        yield " ".join(words + ["--append"] * (place > 0))


def _reading(manifest: Manifest) -> str:
    split = next(split for split in SPLITS if manifest.splits[split])
    shard = manifest.splits[split][0].file
    return f"""\
## How to read it

Each piece is `<key>.npy`, its token ids (uint16), and `<key>.json`, facts such as its source,
instruments, metres, tempo and key. With webdataset alone:

    import webdataset
    for sample in webdataset.WebDataset("{shard}", shardshuffle=False).decode():
        sample["__key__"], sample["npy"], sample["json"]

With MeloFormer, any piece by its number, and its notes:

    from meloformer.shards.reader import ShardFolder
    from meloformer.tokens.hid import decode
    pieces = ShardFolder.open("<this folder or its URL>").split("{split}")
    decode(pieces.read(0))

`python launch/tools/inspect_shards.py <this folder> --verify` proves that it is whole."""


def _versions(manifest: Manifest) -> str:
    return (
        f"## Versions\n\nFormat version {FORMAT_VERSION}, tokenizer fingerprint "
        f"`{manifest.tokenizer_fingerprint}`. `{MANIFEST_NAME}` holds the sha256 of every file and "
        "all settings."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """A name that cannot break the lines or the table that it stands in."""
    return _one_line(text).replace("|", "/").replace("<", "(").replace(">", ")")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))
