"""Compiled code on disk: a run takes what an earlier one has compiled for the same device.

Ranks of a host share the folder: torch and Triton write each file under another name and rename
it, so that nobody reads half of one.
"""

import errno
import os
import re
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from meloformer.errors import ConfigError

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def use_compile_cache(
    wanted: Path | None,
    device: torch.device,
    environment: MutableMapping[str, str] = os.environ,
) -> str:
    """Say where compiled code is kept; call before anything is compiled.

    Folders that the environment names already are left as they are. Torch's own default lies in
    the folder for temporary files, which a new container or a reboot empties.

    Args:
        wanted: folder for the code of all versions and devices; in the user's cache folder if not
            given.
        device: where the code runs.
        environment: changed, and inherited by processes that compile.

    Returns:
        A line on where it is.

    Raises:
        ConfigError: the folder that was asked for cannot be written.
    """
    # Imported here: only runs that compile have to wait for it.
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # On by default, read when torch compiles; a user's environment still beats them.
    torch._inductor.config.fx_graph_cache = True
    torch._inductor.config.autotune_local_cache = True
    torch._functorch.config.enable_autograd_cache = True
    if environment.get(INDUCTOR) == default_cache_dir():
        # Nobody named it: torch writes its default there when its compiler is imported.
        del environment[INDUCTOR]
    folder = (wanted or _user_cache(environment)) / version_key(device)
    if not (INDUCTOR in environment and TRITON in environment):
        try:
            # What lies there is loaded as code: nobody else may write it.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(folder, os.W_OK | os.X_OK):  # one that lies in an image, say
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        except OSError as error:
            if wanted is None:
                return f"compiled code is kept where torch keeps it: {folder}: {error.strerror}"
            raise ConfigError(
                f"--compile_cache {wanted}: cannot be written ({error}); allowed: a folder that "
                "is yours"
            ) from error
    environment.setdefault(INDUCTOR, str(folder))
    environment.setdefault(TRITON, str(Path(environment[INDUCTOR]) / "triton"))
    return f"compiled code is kept in {environment[INDUCTOR]}"


def version_key(device: torch.device) -> str:
    """Name of the folder for this torch, this kind of device and this version of the project."""
    architecture = device.type
    if device.type == "cuda":
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    try:
        project = metadata.version("meloformer")
    except metadata.PackageNotFoundError:
        project = "source"
    return re.sub(r"[^\w.+-]", "_", f"torch-{torch.__version__}-{architecture}-{project}")


def found_in_cache() -> Literal["warm", "cold"] | None:
    """Whether all that was compiled in this process came from the cache; None: nothing was."""
    counters = torch._dynamo.utils.counters["inductor"]
    if counters["fxgraph_cache_miss"] or counters["fxgraph_cache_bypass"]:
        return "cold"
    return "warm" if counters["fxgraph_cache_hit"] else None


def _user_cache(environment: MutableMapping[str, str]) -> Path:
    base = environment.get("XDG_CACHE_HOME")
    return Path(base if base else Path.home() / ".cache") / "meloformer" / "compiled"
