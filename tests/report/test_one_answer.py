"""What the shipped claims say of one printed value has one answer on the page, or a line that says why not."""

from __future__ import annotations

from pathlib import Path

from efftx.report.items import gather
from efftx.study.claim_language import parse
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore


def test_a_printed_value_is_judged_once_or_the_other_item_is_named() -> None:
    store = RecordStore(Path(__file__).parents[2] / "results")
    judged: dict[tuple[str, float], list[tuple[str, str, str]]] = {}
    for id, experiment in load_experiments().items():
        said = " ".join([*experiment.notes, *(column.note for column in experiment.columns.values())])
        for verdict in gather(store, experiment).verdicts:
            for table, index in parse(verdict.claim.holds_if).lookups:
                if table != "published" or not all(isinstance(word, str) for word in index) or not experiment.published:
                    continue
                value = experiment.published.of(str(index[0]), str(index[1]) if len(index) > 1 else "")
                if value is not None:
                    judged.setdefault((experiment.paper, value), []).append((id, verdict.verdict, said))
    assert len(judged) > 3
    for (_, value), found in judged.items():
        for id, verdict, said in found:
            others = {other for other, word, _ in found if other != id and word != verdict}
            assert all(other in said for other in others), (value, id, others)
