"""The files of `experiments/` themselves."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from efftx.errors import UserError
from efftx.evaluation.metrics import in_unit
from efftx.reproduce.measures import measure_named
from efftx.reproduce.trainer import Trainer
from efftx.study.claim_language import KINDS
from efftx.study.claims import judge
from efftx.study.experiment import Experiment
from efftx.study.experiments import load_experiments, select
from efftx.study.reading import read_yaml
from efftx.study.records import RecordStore
from efftx.study.status import state_of

from .fakes import reproduce

EXPERIMENTS = load_experiments()


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_every_file_has_its_place_a_head_and_a_command(e: Experiment) -> None:
    assert Path(e.path).with_suffix("").parts[-2:] == tuple(e.id.split("/"))
    assert f"efftx reproduce {e.id}" in e.head
    assert "arXiv" in e.head
    assert "smoke" in e.sizes_known()
    assert e.usual_size() in e.sizes_known()


def test_the_renumbered_tables_answer_to_their_old_names() -> None:
    with pytest.raises(UserError, match="'scaling/generalisation' is called scaling/table4 now"):
        select(EXPERIMENTS, ["scaling/generalisation"])


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_every_claim_can_be_judged_before_anything_is_run(e: Experiment) -> None:
    assert {v.verdict for v in judge(e, [], e.usual_size())} <= {"not run"}


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_no_claim_writes_noise_and_every_margin_has_its_reason(e: Experiment) -> None:
    for claim in e.claims:
        assert claim.kind in KINDS
        assert "noise" not in claim.holds_if
        assert (claim.margin is None) == (not claim.reason), claim.says


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_every_claim_can_be_read_without_the_one_before_it(e: Experiment) -> None:
    """The summary sorts claims by their verdicts."""
    for claim in e.claims:
        assert not claim.says.startswith(("and ", "so ", "it ", "that ", "such ", "these ")), claim.says


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_every_claim_says_whose_it_is_and_no_published_value_is_unread(e: Experiment) -> None:
    _, content = read_yaml(Path(e.path))
    assert all("by" in claim for claim in content.get("claims", []))
    assert e.published is None or not e.published.some_unverified()


def test_figure_3_and_table_2_show_the_same_runs_and_figure_1_shares_two_of_them() -> None:
    one, three, two = (EXPERIMENTS[f"scaling/{name}"] for name in ("figure1", "figure3", "table2"))
    assert list(three.rows) == list(two.rows)
    for size in ("paper", "cpu"):
        for row in three.rows_at(size):
            assert three.row_overrides(row, size) == two.row_overrides(row, size)
    assert set(one.row_overrides("dense", "cpu")) == set(three.row_overrides("dense", "cpu"))
    assert set(one.row_overrides("+ Sparse FF", "cpu")) == set(three.row_overrides("N = 16", "cpu"))


@pytest.mark.parametrize("e", [e for e in EXPERIMENTS.values() if e.kind == "train"], ids=lambda e: e.id)
def test_every_row_and_column_composes_at_every_size(e: Experiment, trainer: Trainer) -> None:
    for size in e.sizes_known():
        for row in e.rows_at(size):
            trainer.compose(e.row_overrides(row, size), 0)
            if before := e.pretraining_overrides(row, size):
                trainer.compose(before, 0)
            for column, spec in e.columns_of(row, size).items():
                if spec.evaluates:
                    trainer.compose(e.column_overrides(row, column, size), 0)


@pytest.mark.parametrize("e", [e for e in EXPERIMENTS.values() if e.kind == "measure"], ids=lambda e: e.id)
def test_every_measure_is_known(e: Experiment) -> None:
    measure_named(str(e.measure))


@pytest.mark.parametrize("e", [e for e in EXPERIMENTS.values() if e.kind == "measure"], ids=lambda e: e.id)
def test_what_a_measure_trains_composes_at_every_size(e: Experiment, trainer: Trainer) -> None:
    for size in e.sizes_known():
        parameters = e.parameters.get(size, {})
        if "overrides" not in parameters:
            continue
        rows = [list(e.rows[row].parameters.get("overrides", [])) for row in e.rows_at(size)]
        for more in [*rows, list(parameters.get("against", []))]:
            trainer.compose([*parameters["overrides"], *more], 0)


def test_table_2_trains_every_row_alike() -> None:
    e = EXPERIMENTS["reformer/table2"]
    own = {o.partition("=")[0] for row in e.rows.values() for o in row.overrides}
    assert own == {"attention", "share_qk", "lsh.n_hashes"}


def test_the_demo_judges_three_claims() -> None:
    root = Path(__file__).resolve().parents[2]
    demo = (root / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    trained = EXPERIMENTS["scaling/table4"]
    assert f"reproduce {trained.id} " in demo
    assert "seeds=" not in demo, "the table's own: three"
    rows = re.findall(r"--row '([^']+)'", demo)
    records = [r for r in RecordStore(root / "results").read_all(trained.id) if r.row in rows]
    verdicts = [verdict for verdict in judge(trained, records, "cpu") if verdict.verdict != "not run"]
    assert len(verdicts) >= 3
    assert all(comparison.n == 3 for verdict in verdicts for comparison in verdict.comparisons)


@pytest.mark.slow
def test_two_rows_of_table_2_run_from_file_to_verdict_at_smoke(tmp_path: Path, trainer: Trainer) -> None:
    store, whole = RecordStore(tmp_path / "results"), EXPERIMENTS["reformer/table2"]
    e = replace(whole, rows={name: whole.rows[name] for name in ("Full", "LSH-4")})
    (line,) = reproduce([e], "smoke", say=lambda _: None, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (2, 0)
    records = store.read_all(e.id)
    assert all(set(r.metrics) == set(e.columns) for r in records)
    # One seed of three steps: whether it beats chance is luck, but nothing is decided.
    assert {v.verdict for v in judge(e, records, "smoke")} <= {"undecided", "not tested here", "not run"}
    assert state_of(e, store, trainer, ["smoke"])["state"] == "recorded"
    (line,) = reproduce([e], "smoke", verify=True, say=lambda _: None, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"], line["failed"]) == (2, 0, 0)


@pytest.mark.parametrize("e", [e for e in EXPERIMENTS.values() if e.sweep], ids=lambda e: e.id)
def test_a_sweep_chooses_by_what_every_validation_gives(e: Experiment) -> None:
    """Not by what is measured on generated text, which the test split alone has."""
    assert e.sweep is not None
    given = {"loss", "accuracy", *in_unit(1.0, "bits/dim"), *in_unit(1.0, "nats/token"), "sequence_accuracy"}
    assert (e.sweep.metric or e.cell.metric) in given
