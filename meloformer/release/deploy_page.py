"""DEPLOY.md of an archive with a bridge: what is in it, its sums, and the commands, in order."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meloformer.file_sums import sha256_of
from meloformer.release.source import SUMS_NAME

# Letters that every encoder reads.
TEXT = "a calm piece in E minor, in 3/4"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the page speaks of.

    Args:
        version: of MeloFormer.
        commit: that the code is of.
        wheel: name of its file.
        kind: of the bridge, as its config.json says it.
        is_full: the weights are in the archive.
        has_encoder: the files of the text encoder go with the weights.
        encoder: facts of it that the bridge knows.
        base_sum: sha256 of the base's weights.
        bridge_sum: that of the bridge's.
        files: all but those of code/, relative.
        folder: that they lie in.
    """

    version: str
    commit: str
    wheel: str
    kind: str
    is_full: bool
    has_encoder: bool
    encoder: dict[str, Any]
    base_sum: str
    bridge_sum: str
    files: Sequence[Path]
    folder: Path


def deploy_page(deployment: Deployment) -> str:
    """The text of DEPLOY.md."""
    commands = [
        ("Check that every file arrived whole.", [f"sha256sum --check --quiet {SUMS_NAME}"]),
        (
            "Install into an environment of its own. PIP_INDEX_URL names a mirror of the package "
            "index; with wheels fetched before (`pip download -d wheels -c constraints.txt "
            f"./{deployment.wheel}` on a machine like this one), add `--no-index --find-links "
            "wheels`. From here on nothing needs a network.",
            [
                "python3 -m venv .venv",
                f".venv/bin/python -m pip install -c constraints.txt ./{deployment.wheel}",
                ".venv/bin/meloformer tools check_install",
            ],
        ),
        ("Write music from a text.", [" ".join([".venv/bin/meloformer", *_generate(deployment)])]),
    ]
    if deployment.kind == "diffusion_bridge":
        commands.append(
            ("Or in two parts: a text to summaries, summaries to music.", _two_parts(deployment))
        )
    commands.append(
        (
            "Or open the page in a browser, at the address that it prints.",
            [
                ".venv/bin/meloformer demo --checkpoint base --bridge bridge"
                + _encoder_flag(deployment)
            ],
        )
    )
    parts = [f"# MeloFormer {deployment.version}: music from texts", _what_is_here(deployment)]
    for why, lines in commands:
        parts.append(why)
        parts.append("```sh\n" + "\n".join(lines) + "\n```")
    parts.append(_sums(deployment))
    return "\n\n".join(parts) + "\n"


def commands_of(page: str) -> list[list[str]]:
    """Words of every command of a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def _generate(deployment: Deployment) -> list[str]:
    return [
        "generate --checkpoint base --bridge bridge" + _encoder_flag(deployment),
        f"--text {shlex.quote(TEXT)} --bars 8 --seed 0 --output out.mid",
    ]


def _two_parts(deployment: Deployment) -> list[str]:
    return [
        ".venv/bin/meloformer inference_diffusion_bridge --checkpoint bridge"
        f"{_encoder_flag(deployment)} --text {shlex.quote(TEXT)} --num_chunks 8"
        " --output summary_tokens.pt",
        ".venv/bin/meloformer inject_museformer --checkpoint base --summaries summary_tokens.pt"
        " --strategy blend --seed 0 --output injected.mid",
    ]


def _encoder_flag(deployment: Deployment) -> str:
    return " --text_encoder text_encoder" if deployment.has_encoder else ""


def _what_is_here(deployment: Deployment) -> str:
    rows = [
        ("code/", f"the source, commit {deployment.commit}"),
        (deployment.wheel, "the same as a package"),
        ("constraints.txt", "versions that it is tested with"),
    ]
    if deployment.is_full:
        rows.append(("base/", "MuseFormer: settings and weights"))
        rows.append(
            (
                "bridge/",
                f"the bridge ({deployment.kind}): settings, weights, statistics that undo "
                "normalising, and heads that hear attributes where there are some",
            )
        )
    name, fingerprint = deployment.encoder["name"], deployment.encoder["fingerprint"]
    if deployment.has_encoder and deployment.is_full:
        rows.append(("text_encoder/", f"{name}, as the bridge knows it"))
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {what} |" for name, what in rows)])
    if not deployment.is_full:
        folders = (
            "base/, bridge/ and text_encoder/" if deployment.has_encoder else "base/ and bridge/"
        )
        table += (
            f"\n\nThe weights are not here: put the folders {folders} of the full archive beside "
            "this file."
        )
    if not deployment.has_encoder:
        table += (
            f"\n\nThe text encoder is not here: {name}, fingerprint {fingerprint[:12]}. A name of "
            "the Hugging Face hub is fetched at the first text (HF_ENDPOINT names a mirror); "
            "`--text_encoder FOLDER` takes its files from a disk."
        )
    return table


def _sums(deployment: Deployment) -> str:
    lines = [
        f"| {path.as_posix()} | `{sha256_of(deployment.folder / path)}` |"
        for path in deployment.files
    ]
    trained = (
        f"Bridge `{deployment.bridge_sum}` was trained for base `{deployment.base_sum}`; no other "
        "pair is accepted."
    )
    head = f"sha256 of all but code/, which stands in {SUMS_NAME}:"
    return "\n".join([trained, "", head, "", "| file | sha256 |", "|---|---|", *lines])
