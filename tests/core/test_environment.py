from __future__ import annotations

import json
from dataclasses import asdict

from efftx.core.environment import Environment
from efftx.machine.devices import environment

RECORDED = {
    "efftx": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "system": "Linux",
    "processor": "A processor",
    "instructions": "AVX2, family 6",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_clean": True,
    "allocator": {"THP_MEM_ALLOC_ENABLE": "1"},
    "kernels": "c++ 12.2.0",
}


def test_what_a_run_writes_is_what_a_reader_finds() -> None:
    written = environment()
    assert Environment.of(json.loads(json.dumps(asdict(written)))) == written
    assert asdict(written).keys() == RECORDED.keys(), "records hold these names"


def test_the_machine_and_the_code_are_told_apart() -> None:
    found = Environment.of(RECORDED)
    assert found.code == "0123456789ab"
    assert found.machine == (
        "A processor; cores 2; threads 1; torch 2.13.0+cpu; Python 3.11.7; on Linux; "
        "allocator THP_MEM_ALLOC_ENABLE=1; kernels by c++ 12.2.0"
    )


def test_changed_files_and_a_missing_commit_are_named() -> None:
    assert Environment.of({**RECORDED, "git_clean": False}).code == "0123456789ab with changes"
    assert Environment.of({**RECORDED, "git_commit": None, "git_clean": None}).code == "efftx 0.1.0"
    assert Environment.of({}).code == ""


def test_a_record_without_a_later_key_is_read() -> None:
    older = {name: value for name, value in RECORDED.items() if name != "kernels"}
    assert Environment.of(older).kernels is None
    assert "kernels" not in Environment.of(older).machine
