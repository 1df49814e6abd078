"""The state of an item, as the list and the report both take it from its sizes."""

from __future__ import annotations

import pytest

from efftx.study.status import carrying_evidence, item_state


@pytest.mark.parametrize(
    ("stale", "complete", "state"),
    [
        (False, [], "not run"),
        (False, [False], "partial"),
        (False, [False, True], "recorded"),
        (True, [True, True], "stale"),
        (True, [False], "stale"),
    ],
)
def test_one_full_size_is_a_record_and_one_stale_record_is_a_stale_item(
    stale: bool, complete: list[bool], state: str
) -> None:
    assert item_state(stale=stale, complete=complete) == state


def test_a_smoke_run_is_evidence_only_where_there_is_no_other() -> None:
    assert carrying_evidence(["paper", "cpu", "smoke"]) == ["paper", "cpu"]
    assert carrying_evidence(["smoke"]) == ["smoke"]
