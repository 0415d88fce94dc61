"""The model card: README.md beside weights, as people and model hubs read it.

It says what the run knows and names what is not known; nothing of it is typed by hand.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meloformer.hub.run_facts import RunFacts
from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import num_parameters
from meloformer.model.rules import describe_rule
from meloformer.shards.manifest import Manifest
from meloformer.tokens.vocabulary import fingerprint

_TAGS = ("music", "midi", "symbolic-music", "music-generation", "meloformer", "museformer")
# What decides a run's weights besides its data, by the names of the flags.
_SETTINGS = (
    *("model_size", "batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "collate"),
    *("max_seq_len", "seed", "attention_precision", "ema", "freeze"),
)
_NESTED_SETTINGS = ("optimizer", "schedule", "augmentation", "adapters")
_TOLD = {"all": "everything that a prefix can say", "none": "nothing"}


def model_card(
    name: str, config: MuseFormerConfig, facts: RunFacts, *, licence: str | None = None
) -> str:
    """Text of the README.md.

    Args:
        name: of the model.
        config: its settings.
        facts: what its run knows.
        licence: of the weights, as model hubs spell it; None where nobody has said.
    """
    sections = (
        _front_matter(licence),
        f"# {_plain(name)}\n\nA MuseFormer of {num_parameters(config):,} parameters: it writes "
        "multi-track MIDI, bar by bar, as HID tokens. Made with MeloFormer.",
        _use(),
        _data(facts),
        _likelihood(facts),
        _training(facts),
        _model(config),
        _licence(licence),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(licence: str | None) -> str:
    lines = ["---", f"license: {_one_word(licence) if licence else 'unknown'}"]
    lines += ["library_name: transformers", "tags:", *(f"- {tag}" for tag in _TAGS), "---"]
    return "\n".join(lines)


def _use() -> str:
    return """\
## How to use it

With `meloformer` installed, a piece in three lines (`<folder>` is this one):

    import meloformer
    piece = meloformer.generate("<folder>", bars=8, tempo=120)
    piece.save("out.mid")

With transformers, no remote code trusted:

    import meloformer.hub
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("<folder or owner/name>")
    tokenizer = AutoTokenizer.from_pretrained("<folder or owner/name>")
    ids = tokenizer("song.mid", return_tensors="pt")["input_ids"]
    print(model(ids, labels=ids).loss)
    model.generate_piece(bars=8, key="C major").save("out.mid")

`launch/generate.py --checkpoint <folder>` and every other recipe take it as well."""


def _data(facts: RunFacts) -> str:
    head = "## What it was trained on\n\n"
    if facts.run is None:
        return head + "Not known: no run.json lay near the weights when they were exported."
    names = ", ".join(f"`{_plain(name)}`" for name in facts.data) or "shards without a name"
    if facts.manifests is None:
        return (
            f"{head}Shards {names}; they were not at hand when the weights were exported, so what "
            f"is in them, and under which licences, is not told here. Sum of their manifest: "
            f"`{facts.run.manifest_sha256}`."
        )
    rows = [
        [f"`{_plain(entry.name)}`", f"{entry.files:,}", _said_licences(entry.licences)]
        for manifest in facts.manifests
        for entry in manifest.inputs
    ]
    table = _table(
        ["input", "files", "licence files beside the music, and what they seem to say"], rows
    )
    counts = [_counts(manifest) for manifest in facts.manifests]
    apart = all(manifest.settings.near_copy_threshold for manifest in facts.manifests)
    copies = "Near copies stand in one split alone" if apart else "Near copies were not looked for"
    return (
        f"{head}Shards {names}: {'; '.join(counts)}. Exact copies are left out. {copies}."
        f"\n\n{table}\n\nSum of the manifest: `{facts.run.manifest_sha256}`."
    )


def _counts(manifest: Manifest) -> str:
    train = manifest.splits["train"]
    pieces, tokens = (sum(getattr(shard, of) for shard in train) for of in ("pieces", "tokens"))
    return f"{pieces:,} pieces of {tokens:,} tokens for training"


def _said_licences(lines: Sequence[str]) -> str:
    return "; ".join(map(_plain, lines)) or "none lay there: ask before you pass it on"


def _likelihood(facts: RunFacts) -> str:
    head = "## How likely it finds unseen music\n\n"
    if not facts.scores:
        return head + "Not measured by its run."
    rows = [
        [
            _TOLD[told],
            f"{score['per_token']:.4f}",
            f"{score['per_note']:.3f}",
            f"{score['num_targets']:,}",
        ]
        for told, score in facts.scores.items()
    ]
    late = "" if str(facts.scored_step) == facts.step else f", after step {facts.scored_step}"
    table = _table(["the prefix tells", "nats per token", "nats per note", "tokens"], rows)
    return f"{head}On pieces of the validation split that the run looked at{late}:\n\n{table}"


def _training(facts: RunFacts) -> str:
    which = {"raw": "those of the last step", "ema": "the moving average"}[facts.weights]
    head = f"## How it was trained\n\nWeights: {which}"
    head += f", after step {facts.step}." if facts.step else "."
    if facts.run is None:
        return head
    run = facts.run
    start = run.starts[-1] if run.starts else {}
    versions = start.get("versions", {})
    rows = [
        ["steps of the run", f"{run.num_steps:,}"],
        ["rows of a step", f"{run.global_batch:,}"],
        ["began from", _shown(Path(run.settings.get("init_from") or "none").name)],
        *([name, _shown(value)] for name, value in _chosen(run.settings)),
        ["processes", _shown(start.get("world_size", "?"))],
        ["device", _shown(start.get("hardware", {}).get("gpu", start.get("device", "?")))],
        *([name, _shown(version)] for name, version in versions.items()),
    ]
    return f"{head}\n\n{_table(['setting', 'value'], rows)}"


def _chosen(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _SETTINGS:
        if name in settings:
            yield name, settings[name]
    for name in _NESTED_SETTINGS:
        yield from settings.get(name, {}).items()


def _model(config: MuseFormerConfig) -> str:
    values = {**vars(config), "rule": describe_rule(config.rule)}
    rows = [[name, _shown(value)] for name, value in values.items()]
    text = f"## What it computes\n\n{_table(['setting', 'value'], rows)}"
    return f"{text}\n\nVocabulary HID, fingerprint `{fingerprint()}`."


def _licence(licence: str | None) -> str:
    said = (
        f"The weights: {_plain(licence)}."
        if licence
        else "Nobody has said under which licence these weights are."
    )
    return (
        f"## Licence\n\n{said} What the music that they were trained on allows stands above. A "
        "piece that comes near to one of the training pieces may be under that piece's rights."
    )


def _one_word(text: str) -> str:
    return "-".join(_plain(text).lower().split())


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value)) or "none"
    return "none" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """Words that cannot break the lines or the table that they stand in."""
    return " ".join(text.split()).replace("|", "/").replace("<", "(").replace(">", ")")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---" for _ in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))
