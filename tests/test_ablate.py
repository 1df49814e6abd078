"""`efftx ablate`: the user's own commands, word for word, and what becomes of points that cannot be trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from efftx import launch
from efftx.ablate import ablate, plan_points
from efftx.cli import main
from efftx.config.compose import compose
from efftx.core.shipped import shipped
from efftx.errors import Interrupted, UserError
from efftx.layers.sparse_ff import SparseFF
from efftx.models.build import build_on_meta
from efftx.runs.run_directory import read_result

from .processes import children_of, is_gone, wait_until

BRIEF = ["training.steps=2", "schedule.warmup=1", "evaluation.batches=1", "threads=1"]
"""What makes a point of the default size a matter of seconds, its model as it is."""
PIECES = 356  # bytes and sentinels


@pytest.fixture(autouse=True)
def _runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# ---- the default size


@pytest.mark.parametrize("model", [[], ["model=scaling"]], ids=["default", "scaling"])
def test_the_bare_command_trains_both_points_and_prints_the_table(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "sparse_ff.N=64,128", *model, *BRIEF]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for heading in ("sparse_ff.N", "parameters", "against", "decoded"):
        assert heading in out
    assert main(["ablate", "sparse_ff.N=64,128", *model, *BRIEF, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["state"] for run in runs] == ["skipped", "skipped"]
    for run in runs:
        assert run["metrics"]["loss"] > 0
        assert run["timings"]["decode_ms"] > 0
        assert run["parameters"] > 2_500_000
        assert run["parameters_against_dense"] == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize("model", [[], ["model=scaling"]], ids=["default", "scaling"])
@pytest.mark.parametrize("values", ["64,128", "0,16,64,128"])
def test_every_point_of_the_bare_command_builds_with_blocks_and_ranks_that_mean_something(
    values: str, model: list[str]
) -> None:
    points = plan_points([f"sparse_ff.N={values}", *model])
    assert [point.config.sparse_ff.N for point in points] == [int(value) for value in values.split(",")]
    for point in points:
        layers = [m for m in build_on_meta(point.config, PIECES).modules() if isinstance(m, SparseFF)]
        n = point.config.sparse_ff.N
        assert len(layers) == (4 if n else 0)
        for layer in layers:
            d_ff, rank = layer.w1.shape[0], layer.c1.shape[0]
            assert d_ff >= 2048 or n == 16
            assert d_ff // n >= 16
            assert 16 <= rank <= 128
        assert point.dense_parameters == pytest.approx(point.parameters, rel=0.025)


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=basic"]])
def test_two_models_that_are_one_by_their_hash_are_both_run(
    launcher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["attention=[lsh]", "reversible.enabled=true", "reversible.merge=concat", "chunking.ff=0", "chunking.loss=0"]
    one += ["lsh.chunk_len=8"]
    words = ["model=transformer,reformer", *one, "size=smoke", "data=stdlib", *BRIEF, *launcher, "--json"]
    assert main(["ablate", *words]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["state"] for run in runs] == ["done", "done"]
    assert runs[0]["hash"] == runs[1]["hash"]
    assert runs[0]["run"] != runs[1]["run"]
    assert runs[0]["metrics"] == runs[1]["metrics"]


def test_without_a_key_nothing_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate"]) == 2
    assert "sparse_ff.N=64,128" in capsys.readouterr().err


@pytest.mark.parametrize("overrides", [["sparse_qkv.S=0"], ["sparse_loss.S=0"], ["sru.n_layers=0"], ["stack=decoder"]])
def test_n_of_128_keeps_sixteen_blocks_beside_other_mechanisms(overrides: list[str]) -> None:
    for model in ("terraformer", "scaling"):
        config = compose([f"model={model}", "sparse_ff.N=128", *overrides])
        layers = [m for m in build_on_meta(config, PIECES).modules() if isinstance(m, SparseFF)]
        assert min(layer.w1.shape[0] for layer in layers) >= 2048


def test_a_wider_n_decides_the_table_of_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "sparse_ff.N=0,512", "model=scaling", "size=smoke", "d_ff_rule=equal", "training.steps=1"]
    assert main([*words, "schedule.name=constant", "schedule.warmup=0", "threads=1", "--json"]) == 0
    captured = capsys.readouterr()
    dense, wide = json.loads(captured.out)["runs"]
    assert abs(dense["parameters_against_dense"] - 1) < 0.01
    assert wide["parameters_against_dense"] > 1.5
    assert captured.err.count("of the dense one's parameters") == 1


@pytest.mark.parametrize(
    "path", sorted(shipped("conf").glob("preset/*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_presets_d_ff_is_divisible_by_128(path: Path) -> None:
    size = path.stem if path.stem in ("paper", "smoke") else "cpu"
    config = compose([f"model={path.parent.name}", f"size={size}", f"preset={path.parent.name}/{path.stem}"])
    assert config.d_ff % 128 == 0


def test_a_preset_can_follow_the_model() -> None:
    assert compose(["preset=${model}/eighth", "model=scaling"]) == compose(["model=scaling", "preset=scaling/eighth"])


# ---- points that fail


def test_a_key_of_a_sparse_pattern_alone_means_the_family_that_has_patterns() -> None:
    points = plan_points(["strided.stride=32,64,128", "size=smoke"])
    assert [(p.config.model, p.config.strided.stride, p.config.data.length) for p in points] == [
        ("sparse_transformer", stride, 128) for stride in (32, 64, 128)
    ]
    assert compose(["fixed.c=4", "attention=[fixed]", "size=smoke"]).model == "terraformer"
    fixed = compose(["fixed.c=4", "size=smoke"])
    assert (fixed.model, fixed.attention, fixed.fixed.c) == ("sparse_transformer", ["fixed"], 4)
    with pytest.raises(UserError, match="no layer's attention is strided"):
        compose(["model=transformer", "strided.stride=8", "size=smoke"])


def test_a_failed_point_says_what_train_says_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["model=reformer", "data=duplicate", "size=smoke", "threads=1", "optimizer.lr=1e30", "training.clip_norm=0"]
    trained = main(["train", *words, "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert trained == 3
    assert main(["ablate", "seed=0,1", *words, "--json"]) == 1
    captured = capsys.readouterr()
    runs = json.loads(captured.out)["runs"]
    assert [run["state"] for run in runs] == ["failed", "failed"]
    assert error["hint"] in runs[0]["error"]
    assert error["hint"] in captured.err


@pytest.mark.parametrize("words", [["train", "d_ff_rule=authors"], ["ablate", "d_ff_rule=equal,authors"]], ids=str)
def test_a_model_that_cannot_be_built_leaves_no_run_directory(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*words, "model=scaling", "size=cpu"]) == 2
    assert "d_ff_rule=equal solves it" in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.json"))


# ---- Hydra's own words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra/sweeper=optuna"], "'hydra/sweeper' would change nothing"),
        (["+hydra/sweeper=basic"], "'hydra/sweeper' would change nothing"),
        (["hydra.sweep.dir=here"], "'hydra.sweep.dir' would change nothing"),
        (["hydra.launcher.n_jobs=2"], "'hydra.launcher.n_jobs' would change nothing"),
        (["hydra/launcher=joblib,basic"], "share one launcher"),
        (["hydra/launcher=basic", "hydra.launcher.nope=3"], "hydra.launcher.nope"),
        (["++data.tokenizer=t5"], "has no key 'data.tokenizer'"),
        (["+data.tokenizer=t5"], "has no key 'data.tokenizer'"),
        (["++sparse_ff.rank=paper"], "'sparse_ff.rank' would change nothing"),
        (["sparse_ff={rank:paper}"], "'sparse_ff.rank' would change nothing"),
        (["lsh.n_buckets=glob(*)"], "List them: key=a,b,c"),
        (["model=glob(*)"], "List them: key=a,b,c"),
        (["optimizer.lr=interval(0,1)"], "List them: key=a,b,c"),
        (["-m"], "efftx ablate key=a,b"),
        (["--multirun"], "efftx ablate key=a,b"),
        (["--config-name", "mine"], "model=, data= and size="),
        (["--config-name=mine"], "model=, data= and size="),
        (["resume=true"], "The same command again"),
        (["++resume=true"], "The same command again"),
        (["checkpoint.resume=true"], "The same command again"),
    ],
    ids=str,
)
def test_a_word_that_would_change_nothing_is_refused_in_one_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["ablate", "model=transformer", "data=duplicate", "size=smoke", "seed=0,1", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["hydra/launcher=basic"], ["hydra.job.name=x"], ["++hydra.verbose=true"]], ids=str)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_run_of_its_own_takes_none_of_hydras_keys(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "size=smoke", *words]) == 2
    assert "would change nothing" in capsys.readouterr().err


def test_plus_signs_before_a_key_that_is_read_change_nothing_but_the_value() -> None:
    plain = compose(["model=reformer", "size=smoke", "lsh.n_hashes=7"])
    assert compose(["model=reformer", "size=smoke", "++lsh.n_hashes=7"]) == plain
    assert compose(["model=reformer", "size=smoke", "+lsh.n_hashes=7"]) == plain
    assert compose(["model=reformer", "size=smoke", "lsh={n_hashes: 7}"]) == plain


# ---- launchers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        ("hydra/launcher=submitit_local", "hydra_submitit_launcher"),
        ("hydra/launcher=ray", "hydra_ray_launcher"),
    ],
)
def test_a_launcher_gives_what_is_given_here(launcher: str, plugin: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    words = ["model=reformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=4", "lsh.n_hashes=1,2"]
    given = {}
    for name, more in (("here", []), ("there", [launcher])):
        roots = {"EFFTX_RUNS": str(tmp_path / name)}
        command = [sys.executable, "-m", "efftx", "ablate", *words, *more, "--json"]
        done = subprocess.run(
            command, env={**os.environ, **roots}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400
        )
        assert done.returncode == 0, done.stderr
        given[name] = [(run["overrides"], run["state"], run["metrics"]) for run in json.loads(done.stdout)["runs"]]
        assert len(list((tmp_path / name).iterdir())) == 2
    assert given["here"] == given["there"]
    assert {path.name for path in tmp_path.iterdir()} == {"here", "there"}, "nothing of the launcher's stays"


# ---- workers that die

JOBS = ["model=reformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=200", "checkpoint.every=50"]
JOBS += ["evaluation.every=0", "evaluation.batches=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def trainers(pid: int) -> dict[int, str]:
    """Process id -> seed of the children of `pid` that train, as their run directories say."""
    found = {}
    for file in Path(os.environ["EFFTX_RUNS"]).glob("*/owner.json"):
        with suppress(OSError, ValueError, KeyError):
            content = json.loads((file.parent / "config.json").read_text())
            owner = json.loads(file.read_text())
            if owner["pid"] in children_of(pid) and (file.parent / "checkpoints").is_dir():
                found[owner["pid"]] = f"seed={content['config']['seed']}"
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_killed_worker_is_one_failed_point_and_the_others_end() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [sys.executable, "-m", "efftx", "ablate", "seed=0,1,2", *JOBS, "--json"]
    ablation = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    at_work = wait_until(lambda: len(found := trainers(ablation.pid)) == 2 and found)
    killed = min(at_work)
    os.kill(killed, signal.SIGKILL)
    out, err = ablation.communicate(timeout=400)
    assert "Traceback" not in err
    assert ablation.returncode == 1
    runs = json.loads(out)["runs"]
    states = {run["overrides"][0]: run["state"] for run in runs}
    assert states == {f"seed={seed}": "failed" if f"seed={seed}" == at_work[killed] else "done" for seed in range(3)}
    assert "killed" in next(run["error"] for run in runs if run["error"])
    assert all(is_gone(pid) for pid in at_work)


def test_a_launcher_works_in_folders_whose_names_hydra_would_read_as_something_else(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    temporary, own = tmp_path / "tmp, a=[b]", tmp_path / "it's mine, really"
    temporary.mkdir()
    (own / "preset" / "reformer").mkdir(parents=True)
    (own / "preset" / "reformer" / "mine.yaml").write_text("# @package _global_\nn_layers: 1\n")
    words = [
        "ablate",
        "seed=0,1",
        "preset=reformer/mine",
        *JOBS,
        "training.steps=4",
        "--config-dir",
        str(own),
        "--json",
    ]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "efftx", *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [run["state"] for run in json.loads(ended.stdout)["runs"]] == ["done", "done"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_worker_outlives_an_ablation_that_was_killed() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [sys.executable, "-m", "efftx", "ablate", "seed=0,1", *JOBS, "training.steps=100000", "--json"]
    ablation = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    at_work = wait_until(lambda: len(found := trainers(ablation.pid)) == 2 and found)
    os.kill(ablation.pid, signal.SIGKILL)
    ablation.wait()
    wait_until(lambda: all(is_gone(pid) for pid in at_work), 60)


def test_a_second_ablation_in_one_process_runs_its_own_points() -> None:
    """Though joblib's workers are those of the first, with its environment."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code = (
        "import json; from efftx.ablate import ablate; "
        f"words = {[*JOBS, 'training.steps=2', 'schedule.warmup=1']}; "
        "print(json.dumps([[run['state'] for run in ablate([f'seed={a},{a + 1}', *words])] for a in (0, 2)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [["done", "done"], ["done", "done"]]


def test_a_failure_whose_file_is_torn_is_a_failed_point_still(tmp_path: Path) -> None:
    (tmp_path / "whole.failed").write_text("")
    (tmp_path / "torn.failed").write_text('{"error": "no me')
    launch.write_failure(tmp_path / "whole.failed", UserError("bad_value", "It cannot be.", "Do this."))
    ended = launch._Ended(tmp_path)
    assert ended.finished == {"whole", "torn"}
    assert ended.failures["whole"] == "It cannot be. Do this."
    assert "torn.failed is damaged" in ended.failures["torn"]


SHORT = [
    "size=smoke",
    "threads=1",
    "training.steps=2",
    "schedule.warmup=1",
    "evaluation.every=0",
    "evaluation.batches=1",
    "data=duplicate",
]


def test_a_worker_trains_what_was_planned_where_it_was_planned(tmp_path: Path) -> None:
    """Words that imply others mean in a worker what they mean here; and its own machine may be of another kind."""
    words = ["strided.stride=4,8", *SHORT]
    runs = ablate([*words, "hydra/launcher=basic"])
    assert [run["state"] for run in runs] == ["done", "done"], [run["error"] for run in runs]
    assert [run["state"] for run in ablate(words)] == ["skipped", "skipped"]
    assert len(list(Path(os.environ["EFFTX_RUNS"]).iterdir())) == 2, "nothing of the launcher's stays, no other run"
    elsewhere = launch.Launched(["model=transformer", *SHORT, "seed=3"], tmp_path / "planned")
    assert launch.launch({"abc": elsewhere}, ["hydra/launcher=basic"], ()) == {}
    assert read_result(tmp_path / "planned") is not None


def test_a_launcher_in_this_process_is_stopped_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def train(config: Any, run: Path, **_: Any) -> None:
        calls.append(run)
        raise Interrupted(143, "Stopped at step 1.")

    monkeypatch.setattr(launch, "train", train)
    with pytest.raises(Interrupted, match="Stopped at step 1") as stopped:
        ablate(["seed=0,1,2", "model=transformer", *SHORT, "hydra/launcher=basic"])
    assert (stopped.value.exit_code, len(calls)) == (143, 1)


def test_a_device_that_is_not_here_may_be_where_a_cluster_runs_the_points() -> None:
    words = ["model=transformer", "size=smoke", "data=duplicate", "device=cuda"]
    assert not launch.leaves_this_machine([])
    assert not launch.leaves_this_machine(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    assert launch.leaves_this_machine(["hydra/launcher=submitit_slurm"])
    assert len(plan_points(words, elsewhere=True)) == 1
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            plan_points(words)
