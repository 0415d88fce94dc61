"""Which code ran: versions of packages do not tell two commits apart."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What a measurement itself writes is no change of what it measures.
_WRITTEN = (":!PROOF.json", ":!PROOF.md", ":!reports")


def commit_of(root: Path = ROOT) -> str:
    """Short hash; `+` where files other than the proof's and reports have been changed since.

    Args:
        root: of a working copy; an installed package is none, even inside somebody else's.
    """
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--", ".", *_WRITTEN),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")
