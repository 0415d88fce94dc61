"""What is known of GPUs before one is at hand: architecture, memory, peak, first torch.

Figures are those of the vendor's sheets, never measurements.
"""

import re
from dataclasses import dataclass

import torch

from meloformer.errors import ConfigError

# A share of a card, or a lesser chip of the same number: its sheet is another one.
_ANOTHER_CHIP = re.compile(r"mig|laptop|mobile|d|3e|\d+[abcq]")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU as its sheet has it.

    Args:
        name: for people.
        words: of its device name, lower case; a device is the card whose words it has most of.
        architecture: the vendor's name of the generation.
        sm: compute capability, (major, minor).
        sheet_gb: memory as it is sold.
        memory_gib: GiB that torch finds there, the least that owners report: driver and error
            correction keep the rest.
        bf16_tflops: dense bf16 matrix products accumulated in fp32, 10^12 operations per second.
        bandwidth_tb_s: of the memory, 10^12 bytes per second.
        first_torch: first release whose official builds run on it.
    """

    name: str
    words: frozenset[str]
    architecture: str
    sm: tuple[int, int]
    sheet_gb: int
    memory_gib: float
    bf16_tflops: float
    bandwidth_tb_s: float
    first_torch: str

    @property
    def peak_flops(self) -> float:
        """Dense bf16 operations per second."""
        return self.bf16_tflops * 1e12


@dataclass(frozen=True)
class Architecture:
    """What all cards of a compute capability share.

    Args:
        name: of the generation.
        first_torch: first release whose official builds run there.
    """

    name: str
    first_torch: str


# sm_80 came with the builds for CUDA 11.0 (torch 1.7), sm_90 with those for CUDA 11.8 (torch 2.0:
# pytorch#90761, sheffield_hpc#1890), sm_100 and sm_120 with those for CUDA 12.8 (torch 2.7:
# pytorch#145949, colpali#267). No build carries sm_89: it runs the code of sm_86 (RELEASE.md of
# pytorch), with libraries that know it since CUDA 11.8.
ARCHITECTURES = {
    (8, 0): Architecture("Ampere", "1.7"),
    (8, 9): Architecture("Ada Lovelace", "2.0"),
    (9, 0): Architecture("Hopper", "2.0"),
    (10, 0): Architecture("Blackwell", "2.7"),
    (12, 0): Architecture("Blackwell", "2.7"),
}


def _card(
    name: str,
    words: str,
    sm: tuple[int, int],
    sheet_gb: int,
    memory_gib: float,
    bf16_tflops: float,
    bandwidth_tb_s: float,
) -> Card:
    return Card(
        name=name,
        words=frozenset(words.split()),
        architecture=ARCHITECTURES[sm].name,
        sm=sm,
        sheet_gb=sheet_gb,
        memory_gib=memory_gib,
        bf16_tflops=bf16_tflops,
        bandwidth_tb_s=bandwidth_tb_s,
        first_torch=ARCHITECTURES[sm].first_torch,
    )


# Sheets that name a figure with sparsity are halved. Memory as torch has it is from out-of-memory
# messages that owners have published ("GPU 0 has a total capacity of ...").
CARDS: tuple[Card, ...] = (
    # H800 Tensor Core GPU data sheet (SXM; PCIe has the clocks of the H100 PCIe): the H100 with
    # less NVLink and double precision.
    _card("H800", "h800", (9, 0), 80, 79.1, 989.4, 3.35),
    _card("H800 PCIe", "h800 pcie", (9, 0), 80, 79.1, 756.5, 2.0),
    # H20: vendor's announcement as vendors of servers reprint it; no public sheet.
    _card("H20", "h20", (9, 0), 96, 95.0, 148, 4.0),
    # H100 Tensor Core GPU data sheet, columns SXM, PCIe and NVL.
    _card("H100", "h100", (9, 0), 80, 79.1, 989.4, 3.35),
    _card("H100 PCIe", "h100 pcie", (9, 0), 80, 79.1, 756.5, 2.0),
    _card("H100 NVL", "h100 nvl", (9, 0), 94, 93.0, 835.5, 3.9),
    # A100 Tensor Core GPU data sheet, columns 40 GB and 80 GB (SXM; PCIe has 1.94 TB/s).
    _card("A100 40 GB", "a100 40gb", (8, 0), 40, 39.4, 312, 1.56),
    _card("A100 80 GB", "a100 80gb", (8, 0), 80, 79.1, 312, 2.04),
    # A800: the A100 with less NVLink.
    _card("A800", "a800", (8, 0), 80, 79.1, 312, 2.04),
    _card("A800 40 GB", "a800 40gb", (8, 0), 40, 39.4, 312, 1.56),
    # Ada GPU architecture whitepaper, appendix A (fp32 accumulation).
    _card("RTX 4090", "rtx 4090", (8, 9), 24, 23.5, 165.2, 1.01),
    # Ada professional GPU architecture whitepaper; 44.4 GiB where error correction is switched on.
    _card("RTX 6000 Ada", "rtx 6000 ada", (8, 9), 48, 47.3, 364.2, 0.96),
    # L40S data sheet; error correction is on.
    _card("L40S", "l40s", (8, 9), 48, 44.3, 362.05, 0.864),
    # RTX Blackwell GPU architecture whitepaper, appendix A (fp32 accumulation).
    _card("RTX 5090", "rtx 5090", (12, 0), 32, 31.3, 209.5, 1.79),
    # RTX PRO Blackwell GPU architecture whitepaper, Workstation and Max-Q Edition; the Server
    # Edition, a little slower, is taken for the former.
    _card("RTX PRO 6000", "rtx pro 6000", (12, 0), 96, 94.9, 503.8, 1.79),
    _card("RTX PRO 6000 Max-Q", "rtx pro 6000 max q", (12, 0), 96, 94.9, 438.9, 1.79),
    # H200 Tensor Core GPU data sheet, columns SXM and NVL.
    _card("H200", "h200", (9, 0), 141, 139.7, 989.4, 4.8),
    _card("H200 NVL", "h200 nvl", (9, 0), 141, 139.7, 835.5, 4.8),
    # HGX B200, Blackwell data sheet.
    _card("B200", "b200", (10, 0), 180, 178.3, 2250, 7.7),
)


def card_of(device_name: str) -> Card | None:
    """The known card of a device; None where there is no sheet of exactly this one.

    Args:
        device_name: as torch.cuda.get_device_name says it.

    >>> card_of("NVIDIA H100 80GB HBM3").name, card_of("NVIDIA H100 PCIe").name
    ('H100', 'H100 PCIe')
    >>> card_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    True
    """
    words = set(re.split(r"[\s\-]+", device_name.lower()))
    if any(_ANOTHER_CHIP.fullmatch(word) for word in words):
        return None
    known = [card for card in CARDS if card.words <= words]
    return max(known, key=lambda card: len(card.words), default=None)


def find_card(name: str) -> Card:
    """The card of a name as the table has it, or of a device name.

    Raises:
        ConfigError: there is no such card.
    """
    for card in CARDS:
        if card.name.lower() == name.lower():
            return card
    found = card_of(name)
    if found is None:
        raise ConfigError(
            f"--card {name}: unknown; allowed: {', '.join(card.name for card in CARDS)}"
        )
    return found


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second of a device's sheet; None where it is unknown."""
    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return card.peak_flops if card else None
