import dataclasses
import json

import pytest
import torch

from meloformer.errors import ConfigError
from meloformer.training.config import TrainConfig
from meloformer.training.devices import (
    DeviceFacts,
    check_architecture,
    check_bf16,
    is_built_for,
    read_facts,
    remedy,
)
from meloformer.training.prepare import prepare

CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
RTX_5090 = DeviceFacts(
    name="NVIDIA GeForce RTX 5090",
    sm=(12, 0),
    memory_bytes=32 << 30,
    has_bf16=True,
    driver="580.95.05",
    torch_version="2.13.0+cu126",
    arch_list=CU126,
)
BLACKWELL_WITHOUT_BF16 = dataclasses.replace(RTX_5090, has_bf16=False, arch_list=(*CU126, "sm_120"))


@pytest.mark.parametrize(
    ("sm", "archs", "runs"),
    [
        ((9, 0), "sm_90", True),
        ((8, 9), "sm_86", True),  # code runs on later minor versions of its generation
        ((8, 0), "sm_86", False),  # and not on earlier ones
        ((9, 0), "sm_80 sm_86", False),  # nor on the next generation
        ((12, 0), "sm_90 sm_100", False),
        ((12, 1), "sm_120", True),
        ((12, 0), "sm_90 compute_90", True),  # PTX runs on whatever comes later
        ((8, 0), "compute_90", False),
        ((10, 0), "compute_120", False),
        ((9, 0), "sm_90a", True),
        ((10, 3), "sm_100a", False),  # this architecture alone
        ((10, 0), "compute_90a", False),
        ((10, 3), "sm_100f", True),  # this family alone
        ((12, 0), "compute_100f", False),
        ((8, 7), "sm_80 sm_86", False),  # integrated
        ((8, 7), "sm_80 compute_80", True),
        ((9, 0), "", False),
    ],
)
def test_code_and_ptx_run_where_the_programming_guide_says(sm, archs, runs) -> None:
    assert is_built_for(sm, tuple(archs.split())) is runs


def test_our_rule_for_code_is_that_of_the_installed_torch() -> None:
    theirs = getattr(torch.cuda, "_code_compatible_with_device", None)
    if theirs is None:
        pytest.skip("this torch has no such rule")
    codes = [50, 60, 61, 70, 75, 80, 86, 89, 90, 100, 103, 120, 121]
    for code in codes:
        for device in [*codes, 53, 62, 72, 87]:
            sm = divmod(device, 10)
            assert is_built_for(sm, (f"sm_{code}",)) == theirs(device, code), (code, device)


def test_a_gpu_that_torch_has_no_code_for_is_refused_with_the_pip_line() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_architecture(RTX_5090)
    said = str(refusal.value)
    assert "RTX 5090 is sm_120" in said and "sm_90 only" in said
    assert "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130" in said


def test_the_remedy_is_a_build_that_runs_there_and_that_the_driver_serves() -> None:
    def with_(**changes) -> str:
        return remedy(dataclasses.replace(RTX_5090, **changes))

    assert "/cu130" in with_()
    # The only builds for Blackwell want a newer driver than this one: it is said.
    assert "/cu130" in with_(driver="550.54")
    assert "driver 580 or newer; found 550.54" in with_(driver="550.54")
    assert "/cu126" in with_(sm=(9, 0), driver="550.54")
    assert "/cu130" in with_(sm=(9, 0), driver=None)
    assert "/cu126" in with_(sm=(7, 0))
    assert "from source" in with_(sm=(3, 7))


def test_a_supported_gpu_passes_and_so_does_one_that_torch_lists_in_other_words() -> None:
    check_architecture(dataclasses.replace(RTX_5090, arch_list=(*CU126, "compute_90")))
    check_architecture(dataclasses.replace(RTX_5090, sm=(8, 9)))
    check_architecture(dataclasses.replace(RTX_5090, sm=(9, 4), arch_list=("gfx942",)))
    check_architecture(dataclasses.replace(RTX_5090, arch_list=()))


def test_a_gpu_without_bf16_is_refused_for_a_run_in_bf16() -> None:
    check_bf16(RTX_5090)
    with pytest.raises(ConfigError, match="has no bf16 arithmetic; allowed: sm_80 or newer"):
        check_bf16(dataclasses.replace(RTX_5090, name="Tesla T4", sm=(7, 5), has_bf16=False))


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_have_no_facts_and_pass(device) -> None:
    assert read_facts(torch.device(device)) is None


@pytest.mark.parametrize("lacks", ["architecture", "bf16"])
def test_a_run_is_refused_before_its_data_is_looked_at(
    lacks, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts are injected; data that does not exist would be refused next."""
    facts = RTX_5090 if lacks == "architecture" else BLACKWELL_WITHOUT_BF16
    monkeypatch.setattr("meloformer.training.prepare.read_facts", lambda device: facts)
    config = tmp_path / "bf16.json"
    config.write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}))
    flags = TrainConfig(
        device="cpu", config=config, data=(str(tmp_path / "absent"),), output=tmp_path / "run"
    )
    with pytest.raises(ConfigError, match="is sm_120" if lacks == "architecture" else "no bf16"):
        prepare(flags)
    assert not (tmp_path / "run").exists()
