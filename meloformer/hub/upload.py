"""Sending a folder to a model hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi


def upload(
    source: Path | Callable[[Path], Any],
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Make the repository where it is missing, and send every file in one commit.

    Not transformers' own way, which puts a card of its template over the one that tells what a
    model was trained on.

    Args:
        source: a folder, or what writes one.
        repo_id: `owner/name`.
        commit_message: a line; MeloFormer's if not given.
        private: of a new repository; the owner's habit if not given.
        token: of the hub; the one that was logged in with if not given.
        revision: branch to commit to.
        create_pr: ask for the change in place of making it.

    Returns:
        The address of the commit.
    """
    if callable(source):
        with tempfile.TemporaryDirectory() as folder:
            source(Path(folder))
            return upload(
                Path(folder),
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )
    hub = HfApi(token=token, library_name="meloformer")
    name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    done = hub.upload_folder(
        repo_id=name,
        folder_path=source,
        commit_message=commit_message or "Upload with MeloFormer",
        revision=revision,
        create_pr=create_pr,
    )
    return str(done)
