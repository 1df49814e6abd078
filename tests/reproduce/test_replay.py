"""A replay says of a record whether today's code still gives it, and where and by which code it was replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.core.artifact import read_document
from efftx.optim.schedules import learning_rate
from efftx.reproduce.measures import attention
from efftx.reproduce.measures.measure import Measure
from efftx.reproduce.replay import N_PERTURBATIONS, TOLERANCE, replay
from efftx.reproduce.trainer import Trainer
from efftx.study.experiments import load_experiments
from efftx.study.gates import Gate
from efftx.study.records import Record, RecordStore
from efftx.study.status import state_of
from efftx.training import loop

from .fakes import DATA, FakeConfig, FakeTrainer, reproduce
from .test_runner import MEASURE, TABLE, quiet, store, table

__all__ = ["store"]


def test_a_replay_with_the_same_code_is_fresh(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    trainer.trained.clear()
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"], line["ran"]) == (4, 0, 0)
    assert trainer.trained == [("A", 0, 3), ("A", 1, 3), ("B", 0, 3), ("B", 1, 3)]


def test_code_that_gives_other_losses_makes_records_stale_until_they_run_again(
    tmp_path: Path, store: RecordStore
) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    today = FakeTrainer(offset=1e-15)
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=today)
    assert line["stale"] == 2, "on the same machine one bit is enough"
    found = state_of(e, store, today)
    assert found["state"] == "stale"
    assert "number 1 of the replay" in found["why"]
    (line,) = reproduce([e], "cpu", [0], stale=True, say=quiet, store=store, trainer=today)
    assert (line["ran"], today.aside) == (2, 2)
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=today)
    assert (line["fresh"], line["stale"]) == (2, 0)
    assert state_of(e, store, today)["state"] == "partial"


def test_code_put_right_again_makes_a_stale_record_fresh(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=FakeTrainer(offset=1.0))
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=FakeTrainer())
    assert (line["fresh"], line["stale"]) == (2, 0)


def test_another_configuration_stays_stale_however_often_it_is_replayed(tmp_path: Path, store: RecordStore) -> None:
    reproduce([table(tmp_path)], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    changed = table(tmp_path, TABLE.replace("quality=50", "quality=50, length=2"))
    for _ in range(2):
        (line,) = reproduce([changed], "cpu", verify=True, say=quiet, store=store, trainer=FakeTrainer())
        assert (line["fresh"], line["stale"]) == (1, 1)
    assert "the configuration is another" in state_of(changed, store, None)["why"]


def test_costs_that_todays_code_counts_otherwise_are_stale_and_counted_anew_without_a_training(
    tmp_path: Path, store: RecordStore
) -> None:
    class Recounts(FakeTrainer):
        def costs(self, config: FakeConfig) -> dict[str, float]:
            return {**super().costs(config), "controller_share": 13.0}

    e = table(tmp_path)
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    today = Recounts()
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=today)
    assert (line["fresh"], line["stale"]) == (0, 2)
    assert state_of(e, store, today)["why"].endswith("controller_share was 12.5, is 13.0 (and 1 more)")
    today.trained.clear()
    (line,) = reproduce([e], "cpu", [0], stale=True, say=quiet, store=store, trainer=today)
    assert (line["ran"], today.trained, today.aside) == (2, [], 0)
    assert [record.costs["controller_share"] for record in store.read_all("paper/item")] == [13.0, 13.0]
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=today)
    assert (line["fresh"], line["stale"]) == (2, 0)


def test_a_stale_record_that_lacks_a_column_too_is_not_filled_in_as_if_it_were_fresh(
    tmp_path: Path, store: RecordStore
) -> None:
    reproduce([table(tmp_path)], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    today = FakeTrainer(offset=1.0)
    reproduce([table(tmp_path)], "cpu", verify=True, say=quiet, store=store, trainer=today)
    more = table(tmp_path, TABLE.replace("  itself: {}", "  itself: {}\n  4 rounds: [rounds=4]"))
    today.trained.clear()
    (line,) = reproduce([more], "cpu", [0], say=quiet, store=store, trainer=today)
    assert (line["ran"], today.trained) == (0, [])
    (line,) = reproduce([more], "cpu", [0], stale=True, say=quiet, store=store, trainer=today)
    assert (line["ran"], today.aside) == (2, 2)


def test_counts_are_compared_to_the_bit_on_every_machine(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [95_000_000.0]
    entry = Measure(lambda *asked: {"metrics": {"": {"entries": given[0]}}}, lambda *asked: list(given), counts=True)
    monkeypatch.setitem(attention.MEASURES, "attention_cost", entry)
    e = table(tmp_path, MEASURE + "\nparameters: {smoke: {}}\nrows: {A: {}}\n")
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    (one,) = store.read_all("paper/item")
    one.environment["processor"] = "another"
    store.write(one)
    given[0] -= 9000
    (line,) = reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=FakeTrainer())
    assert line["stale"] == 1


@pytest.mark.parametrize("key", ["torch", "threads", "processor", "instructions"])
def test_a_replay_is_compared_bit_for_bit_only_where_all_that_orders_sums_is_the_same(
    tmp_path: Path, store: RecordStore, key: str
) -> None:
    e = table(tmp_path)
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    a, b = store.read_all("paper/item")
    a.environment[key] = "another"
    store.write(a)
    today = FakeTrainer(offset=1e-15)
    reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=today)
    found = {r.row: (v.verdict, v.exact) for r in (a, b) if (v := store.verification(r)) is not None}
    assert found == {a.row: ("fresh", False), b.row: ("stale", True)}
    reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=FakeTrainer())
    found = {r.row: (v.why, v.exact) for r in (a, b) if (v := store.verification(r)) is not None}
    assert found == dict.fromkeys(found, ("bit for bit", True)), "the same bits are the same on any machine"


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "fresh"), (2.0, "stale")])
def test_on_another_machine_a_replay_is_compared_to_the_stated_tolerance(
    tmp_path: Path, store: RecordStore, share: float, verdict: str
) -> None:
    e = table(tmp_path)
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    for one in store.read_all("paper/item"):
        one.environment["processor"] = "another"
        store.write(one)
    today = FakeTrainer(offset=5.0 * share * TOLERANCE["float32"])
    (line,) = reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=today)
    assert line[verdict] == 2


def test_a_replay_leaves_no_folder(tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    e, trainer = table(tmp_path), FakeTrainer()
    reproduce([e], "smoke", say=quiet, store=store, trainer=trainer)
    reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=trainer)
    assert list(scratch.iterdir()) == []


def test_a_replay_says_where_and_by_which_code_it_was_made(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efftx.machine.devices._git_state", lambda root: ("c" * 40, True))
    e = table(tmp_path)
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    reproduce([e], "smoke", verify=True, say=quiet, store=store, trainer=FakeTrainer())
    one = store.read_all("paper/item")[0]
    found = store.verification(one)
    assert found is not None
    keys = ("processor", "instructions", "gpu", "torch", "threads", "git_commit", "git_clean")
    assert found.environment == {key: one.environment[key] for key in keys}
    assert (found.environment["git_commit"], found.environment["git_clean"]) == ("c" * 40, True)


def test_without_the_records_data_a_replay_says_nothing_of_the_code(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path), []
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    for data in (None, {**DATA, "checksum": "1" * 64}, {**DATA, "variant": "fake[2]"}):
        other = FakeTrainer(data=data, offset=1.0)
        (line,) = reproduce([e], "smoke", verify=True, say=said.append, store=store, trainer=other)
        assert (line["not at hand"], line["stale"], line["failed"]) == (2, 0, 0)
    assert all(store.verification(r) is None for r in store.read_all("paper/item"))
    assert "needs files" in said[0]
    assert "The data here is fake[1], sha256 111111111111, the record's was fake[1], sha256 000000000000." in said[2]


@pytest.mark.parametrize(("then", "here"), [(None, "a card"), ("a card", None), ("a card", "another card")])
def test_a_record_is_replayed_on_the_kind_of_device_that_it_was_made_on(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch, then: str | None, here: str | None
) -> None:
    e, said = table(tmp_path), []
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    for one in store.read_all("paper/item"):
        one.environment["gpu"] = then
        store.write(one)
    monkeypatch.setattr("torch.cuda.is_available", lambda: here is not None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: here)
    trainer = FakeTrainer(offset=1e-15)  # on another device the bits are other ones
    (line,) = reproduce([e], "smoke", verify=True, say=said.append, store=store, trainer=trainer)
    assert (line["fresh"], line["not at hand"]) == ((0, 2) if then and not here else (2, 0))
    assert trainer.devices == ([] if then and not here else ["cpu", "cpu"] if here and not then else [None, None])
    assert ("made on a card, and PyTorch finds no CUDA device here" in said[0]) == (here is None)


def test_n_parts_take_every_record_once(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    store.path("paper/item", "A", 1, "cpu").unlink()
    replayed: list[tuple[str, int]] = []
    for part in (1, 2):
        trainer = FakeTrainer()
        reproduce([e], "cpu", verify=True, part=(part, 2), say=quiet, store=store, trainer=trainer)
        found = [(row, seed) for row, seed, _ in trainer.trained]
        assert len(found) == {1: 2, 2: 1}[part]
        replayed += found
    assert sorted(replayed) == [("A", 0), ("B", 0), ("B", 1)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "1/2"], "--part chooses among the records that --verify replays"),
        (["--verify", "size=smoke"], "There is nothing to verify: none of this has a record at size smoke."),
        (["--verify", "--part", "3/4"], "There is nothing to verify: none of this has a record in --part 3/4."),
        (["--verify", "--part", "3/2"], "--part"),
        (["--verify", "--part", "0/2"], "--part"),
        (["--verify", "--part", "half"], "--part"),
        (["--verify", "--part", "1"], "--part"),
    ],
)
def test_a_part_is_k_of_n(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["reproduce", "reformer/figure1", *words, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_command_replays_a_part_and_fails_where_a_record_no_longer_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path))
    words = ["reproduce", "reformer/figure1", "size=smoke"]
    assert main([*words, "seeds=0,1"]) == 0
    capsys.readouterr()
    assert main([*words, "seeds=0,1", "--verify", "--part", "2/3", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["items"]
    n = 2 * len(load_experiments()["reformer/figure1"].rows)
    assert line["fresh"] == len(range(n)[1::3])
    mine = RecordStore()
    changed = mine.read_all("reformer/figure1")[0]
    changed.first_losses[0] += 0.25
    mine.write(changed)
    assert main([*words, "seeds=0,1", "--verify", "--json"]) == 1
    (line,) = json.loads(capsys.readouterr().out)["items"]
    assert (line["fresh"], line["stale"]) == (n - 1, 1)


# ---- a choice that falls differently ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elsewhere", "offset", "undone_by", "tried", "verdict"),
    [
        (True, 2e-3, (), N_PERTURBATIONS, "stale"),
        (True, 2e-3, (2, 5), 3, "fresh"),
        (True, 1e-2, (2, 5), 0, "stale"),
        (False, 2e-3, (2, 5), 0, "stale"),
    ],
)
def test_only_a_record_of_another_machine_is_replayed_from_perturbed_weights(
    tmp_path: Path,
    store: RecordStore,
    elsewhere: bool,
    offset: float,
    undone_by: tuple[int, ...],
    tried: int,
    verdict: str,
) -> None:
    e, trainer = table(tmp_path), FakeTrainer(offset=offset, undone_by=undone_by)
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    one = store.read_all("paper/item")[0]
    if elsewhere:
        one.environment["processor"] = "another"
        store.write(one)
    found = replay(e, one, trainer, store)
    assert (found.verdict, trainer.perturbations) == (verdict, list(range(tried)))
    assert not (found.exact and elsewhere)
    assert ("perturbed by a rounding" in found.why) == (verdict == "fresh")
    assert store.verification(one) == found


def test_a_trivial_answer_has_no_weights_to_perturb(tmp_path: Path, store: RecordStore) -> None:
    e = replace(table(tmp_path), gates={"bigram": Gate("ngram", order=2)})
    reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    (one,) = [record for record in store.read_all("paper/item") if record.row in e.gates]
    one.environment["processor"] = "another"
    store.write(one)
    trainer = FakeTrainer(offset=2e-3, undone_by=(0,))
    assert (replay(e, one, trainer, store).verdict, trainer.perturbations) == ("stale", [])


def test_a_rate_of_2_percent_more_is_no_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_document(
        Path(__file__).parents[2] / "results/records/reformer/table2_order/cpu/lsh-4-seed2.json", ""
    )
    assert content is not None
    monkeypatch.setattr(loop, "learning_rate", lambda *given: 1.02 * learning_rate(*given))
    found = replay(load_experiments()["reformer/table2_order"], Record(**content), Trainer(), RecordStore(tmp_path))
    assert found.verdict == "stale"


@pytest.mark.parametrize("item", ["reformer/table2", "reformer/table2_order"])
def test_two_processors_gave_two_records_of_one_training_and_both_come_out_on_any(tmp_path: Path, item: str) -> None:
    """Their second losses differ by 6e-4: a token of one batch lies between two buckets, but for a rounding."""
    content = read_document(Path(__file__).parents[2] / f"results/records/{item}/cpu/lsh-4-seed2.json", "")
    assert content is not None
    one = Record(**content)
    found = replay(load_experiments()[item], one, Trainer(), RecordStore(tmp_path))
    assert found.verdict == "fresh", found.why
    assert found.replayed == pytest.approx(one.first_losses, rel=TOLERANCE["float32"])
