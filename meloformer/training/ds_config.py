"""Partitioning from a ds_configs file, everything else from the run: one dict for the engine.

A file says how to partition, never what to compute. What the run owns stands there as "auto" or
not at all; a number that contradicts the run is refused with both values.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from meloformer.errors import ConfigError

DEFAULT_DS_CONFIG = Path("ds_configs/zero2.json")
AUTO = "auto"
ALLOWED_STAGES = (1, 2, 3)
OFFLOAD_DEVICES = ("none", "cpu")
# How to partition, what the run fills in, and what DeepSpeed says meanwhile. Every other key of
# DeepSpeed changes what is computed, or is decided in code (engine.py says why).
ALLOWED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "zero_optimization",
    "aio",
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "wall_clock_breakdown",
)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the run decides, in the names of the files.

    Args:
        micro_batch_rows: rows per rank and micro-step.
        accumulation: micro-steps per optimizer step.
        world_size: number of ranks.
        gradient_clipping: largest global gradient norm; 0 clips nothing.
        device: type of the device, "cuda" or "cpu".
    """

    micro_batch_rows: int
    accumulation: int
    world_size: int
    gradient_clipping: float
    device: str


def find_ds_config(path: Path) -> Path:
    """The file as typed, or the one of that name that ships with the package.

    Raises:
        ConfigError: there is neither.
    """
    if path.is_file():
        return path
    package = Path(str(resources.files("meloformer")))
    # Inside an installed wheel, beside the package in a checkout.
    inside, beside = package / "ds_configs", package.parent / "ds_configs"
    packaged = inside if inside.is_dir() else beside
    # Only a name of ours: an absent file of the user's own is never replaced by another.
    if path.parent.name in ("", "ds_configs") and (packaged / path.name).is_file():
        return packaged / path.name
    names = sorted(file.name for file in packaged.glob("*.json"))
    raise ConfigError(f"--config {path}: no such file; allowed: a path, or one of {names}")


def load_ds_config(path: Path) -> dict:
    """Read a ds_configs file and check that it speaks of partitioning only.

    Raises:
        ConfigError: not JSON, an unknown stage, a value of another type, or a key that says what to
            compute.
    """
    path = find_ds_config(path)
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"--config {path}: not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path}: found {type(settings).__name__}, allowed: an object")
    unknown = sorted(settings.keys() - set(ALLOWED_KEYS))
    if unknown:
        raise ConfigError(
            f"--config {path}: found {', '.join(map(repr, unknown))}, which is decided by the run "
            f"or unknown; allowed: {', '.join(ALLOWED_KEYS)}"
        )
    _check_objects(settings, ("bf16", "zero_optimization"), path)
    zero = settings.get("zero_optimization", {})
    _check_objects(zero, ("offload_optimizer", "offload_param"), path)
    stage = zero.get("stage")
    if type(stage) is not int or stage not in ALLOWED_STAGES:
        raise ConfigError(
            f"--config {path}: zero_optimization.stage is {stage!r}; allowed: {ALLOWED_STAGES}"
        )
    for key in ("offload_optimizer", "offload_param"):
        where = zero.get(key, {}).get("device", "none")
        if where not in OFFLOAD_DEVICES:
            raise ConfigError(
                f"--config {path}: zero_optimization.{key}.device is {where!r}; allowed: "
                f"{', '.join(OFFLOAD_DEVICES)}: checkpoints are written from memory"
            )
    if zero.get("mics_shard_size", -1) != -1:
        raise ConfigError(
            f"--config {path}: found zero_optimization.mics_shard_size; allowed: partitions over "
            "all ranks, from which checkpoints for any number of ranks are written"
        )
    other = sorted(settings.get("bf16", {}).keys() - {"enabled"})
    if other:
        raise ConfigError(f"--config {path}: found bf16.{other[0]}; allowed: bf16.enabled alone")
    if zero.get("overlap_comm"):
        raise ConfigError(
            f"--config {path}: zero_optimization.overlap_comm is true; allowed: false, because "
            "its gradient buckets have been overwritten while in flight"
        )
    return settings


def resolve_ds_config(settings: dict, run: RunFacts, *, source: str) -> dict:
    """Fill every "auto" from the run and add what only code may decide.

    Args:
        settings: content of a ds_configs file.
        run: what the run decides.
        source: name of the file, for messages.

    Raises:
        ConfigError: a number of the file contradicts the run.
    """
    resolved = json.loads(json.dumps(settings))
    owned = {
        "train_micro_batch_size_per_gpu": (run.micro_batch_rows, "--batch_size"),
        "gradient_accumulation_steps": (run.accumulation, "--gradient_accumulation_steps"),
        "train_batch_size": (
            run.micro_batch_rows * run.accumulation * run.world_size,
            "--batch_size x --gradient_accumulation_steps x ranks",
        ),
        "gradient_clipping": (run.gradient_clipping, "--gradient_clipping"),
    }
    for key, (value, flag) in owned.items():
        found = settings.get(key, AUTO)
        if isinstance(found, bool) or found not in (AUTO, value):
            raise ConfigError(
                f"{source} says {key} = {found}, the run says {value} ({flag}); "
                f'allowed: "auto", or the same number in both'
            )
        resolved[key] = value

    bf16 = settings.get("bf16", {}).get("enabled", AUTO)
    if bf16 != AUTO and not isinstance(bf16, bool):
        raise ConfigError(f'{source} says bf16.enabled = {bf16!r}; allowed: true, false, "auto"')
    resolved["bf16"] = {"enabled": run.device == "cuda" if bf16 == AUTO else bf16}

    # Accumulating in bf16 loses three times as much of the gradient as the rest of the step.
    resolved["data_types"] = {"grad_accum_dtype": "fp32"}
    # The loop says where a step ends: a managed boundary keeps the last micro-batch only.
    resolved["managed_gradient_accumulation"] = False
    resolved["zero_allow_untested_optimizer"] = True
    resolved["zero_force_ds_cpu_optimizer"] = False
    resolved["steps_per_print"] = None
    leftover = _autos(resolved)
    if leftover:
        raise ConfigError(f'{source}: nothing of the run fills "auto" at {", ".join(leftover)}')
    return resolved


def _check_objects(settings: dict, keys: tuple[str, ...], path: Path) -> None:
    for key in keys:
        if not isinstance(settings.get(key, {}), dict):
            raise ConfigError(
                f"--config {path}: {key} is {json.dumps(settings[key])}; allowed: an object, as in "
                "ds_configs/zero2_offload.json"
            )


def _autos(settings: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += _autos(value, f"{prefix}{key}.")
        elif value == AUTO:
            found.append(prefix + key)
    return found
