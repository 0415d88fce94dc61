import pytest
import torch

from meloformer.training.cards import CARDS, card_of, peak_flops

# As torch.cuda.get_device_name gives them.
NAMES = {
    "NVIDIA H800": "H800",
    "NVIDIA H800 PCIe": "H800 PCIe",
    "NVIDIA H20": "H20",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200 NVL",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA A100-SXM4-40GB": "A100 40 GB",
    "NVIDIA A100-PCIE-40GB": "A100 40 GB",
    "NVIDIA A100-SXM4-80GB": "A100 80 GB",
    "NVIDIA A100 80GB PCIe": "A100 80 GB",
    "NVIDIA A800-SXM4-80GB": "A800",
    "NVIDIA A800 40GB Active": "A800 40 GB",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Max-Q",
    "NVIDIA B200": "B200",
}
UNKNOWN = [
    "Quadro RTX 6000",
    "NVIDIA A10",
    "NVIDIA L40",
    "NVIDIA GH200 480GB",
    "NVIDIA H20-3e",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA RTX PRO 6000D Blackwell Workstation Edition",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "GRID A100-40C",
    "",
]


@pytest.mark.parametrize(("device", "name"), NAMES.items())
def test_device_names_find_their_card(device, name) -> None:
    card = card_of(device)
    assert card is not None
    assert card.name == name


@pytest.mark.parametrize("device", UNKNOWN)
def test_chips_without_a_sheet_are_unknown_rather_than_taken_for_a_namesake(device) -> None:
    assert card_of(device) is None


def test_every_card_is_found_by_some_device_name_and_torch_sees_less_memory_than_is_sold() -> None:
    assert {card.name for card in CARDS} == set(NAMES.values())
    for card in CARDS:
        assert 0.9 * card.sheet_gb < card.memory_gib < card.sheet_gb


def test_two_peaks_are_those_of_the_sheets_and_a_cpu_has_none() -> None:
    assert card_of("NVIDIA H200").peak_flops == 989.4e12  # type: ignore[union-attr]
    assert card_of("NVIDIA GeForce RTX 4090").peak_flops == 165.2e12  # type: ignore[union-attr]
    assert peak_flops(torch.device("cpu")) is None
