"""Whether a GPU and this build of torch go together, known before anything runs on it.

A build that lacks the code of a GPU fails at the first kernel, minutes into a run, with a message
that names no remedy ("no kernel image is available").
"""

import re
from dataclasses import dataclass

import torch

from meloformer.errors import ConfigError

# What the official builds of torch 2.11 to 2.13 carry, newest CUDA first, and the driver that they
# want. Source: RELEASE.md of pytorch (pytorch#175253, #182849), torch.cuda of 2.13, release notes
# of the CUDA toolkit.
_BUILDS = {
    "cu130": ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", 580),
    "cu126": ("sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", 525),
}
# Built into a computer, and incompatible with the cards of their generation.
_INTEGRATED = {(5, 3), (6, 2), (7, 2), (8, 7)}
_FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What torch and the driver say about a GPU.

    Args:
        name: of the device.
        sm: compute capability, (major, minor).
        memory_bytes: all of it.
        has_bf16: computes in bf16 itself.
        driver: release of the driver; None where nobody says.
        torch_version: with the build, as 2.13.0+cu126.
        arch_list: what this torch was compiled for, as sm_90 (code) or compute_90 (PTX).
    """

    name: str
    sm: tuple[int, int]
    memory_bytes: int
    has_bf16: bool
    driver: str | None
    torch_version: str
    arch_list: tuple[str, ...]

    @property
    def is_supported(self) -> bool:
        """Whether this torch runs on it; where torch lists no architecture of CUDA, unknown
        counts as yes.
        """
        return not cuda_entries(self.arch_list) or is_built_for(self.sm, self.arch_list)


def read_facts(device: torch.device) -> DeviceFacts | None:
    """Ask torch and the driver about a device; None where it is no CUDA device."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return DeviceFacts(
        name=properties.name,
        sm=(properties.major, properties.minor),
        memory_bytes=properties.total_memory,
        has_bf16=has_bf16,
        driver=_driver(),
        torch_version=torch.__version__,
        arch_list=tuple(torch.cuda.get_arch_list()),
    )


def is_built_for(sm: tuple[int, int], arch_list: tuple[str, ...]) -> bool:
    """Whether compiled code or PTX of a list runs on a GPU.

    Code runs on its own generation from its minor version on; PTX is compiled by the driver for
    every later GPU. With the suffix `a` both run on exactly one, with `f` on one generation.

    Args:
        sm: compute capability, (major, minor).
        arch_list: as sm_90 or compute_90.

    Source: CUDA C++ programming guide, binary and PTX compatibility; torch.cuda checks code alike.

    >>> is_built_for((8, 9), ("sm_80", "sm_86")), is_built_for((12, 0), ("sm_90",))
    (True, False)
    >>> is_built_for((12, 0), ("sm_90", "compute_90"))
    True
    """
    return any(_runs(kind, built, suffix, sm) for kind, built, suffix in cuda_entries(arch_list))


def cuda_entries(arch_list: tuple[str, ...]) -> list[tuple[str, tuple[int, int], str]]:
    """Kind, compute capability and suffix of the entries that are CUDA's.

    >>> cuda_entries(("sm_90a", "compute_120", "gfx942"))
    [('sm', (9, 0), 'a'), ('compute', (12, 0), '')]
    """
    found = (re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch) for arch in arch_list)
    return [(f[1], (int(f[2]), int(f[3])), f[4]) for f in found if f]


def _runs(kind: str, built: tuple[int, int], suffix: str, sm: tuple[int, int]) -> bool:
    if built == sm:
        return True
    if suffix == "a" or built > sm:
        return False
    if kind == "compute" and suffix == "":
        return True
    return built[0] == sm[0] and not {built, sm} & _INTEGRATED


def check_architecture(facts: DeviceFacts) -> None:
    """Refuse a GPU that this build of torch has no code for.

    Raises:
        ConfigError: with the command that installs a build which has.
    """
    if not facts.is_supported:
        raise ConfigError(
            f"{facts.name} is sm_{facts.sm[0]}{facts.sm[1]}: torch {facts.torch_version} is built "
            f"for {', '.join(facts.arch_list)} only; allowed: {remedy(facts)}"
        )


def check_bf16(facts: DeviceFacts) -> None:
    """Refuse a GPU without bf16 arithmetic for a run in bf16.

    Raises:
        ConfigError: says what would do.
    """
    if not facts.has_bf16:
        raise ConfigError(
            f"{facts.name} (sm_{facts.sm[0]}{facts.sm[1]}) has no bf16 arithmetic; allowed: sm_"
            f"{_FIRST_WITH_BF16[0]}{_FIRST_WITH_BF16[1]} or newer, or bf16.enabled false in the "
            "file of --config, at a fraction of the speed"
        )


def remedy(facts: DeviceFacts) -> str:
    """The pip line of an official build of the same release that runs on a GPU.

    The first build that the present driver serves; where it serves none, the driver to install too.
    """
    release = facts.torch_version.split("+")[0]
    fitting = {
        build: driver
        for build, (archs, driver) in _BUILDS.items()
        if is_built_for(facts.sm, tuple(archs.split()))
    }
    if not fitting:
        return f"another GPU, or a torch {release} built from source for it"
    found = re.match(r"\d+", facts.driver or "")
    served = [b for b, driver in fitting.items() if not found or int(found[0]) >= driver]
    build = served[0] if served else min(fitting, key=lambda name: fitting[name])
    line = f"pip install torch=={release} --index-url https://download.pytorch.org/whl/{build}"
    return f"{line} (wants driver {fitting[build]} or newer; found {facts.driver or 'unknown'})"


def _driver() -> str | None:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
