"""The command line, as a user meets it: exit codes, one message a mistake, one JSON object where it is asked for."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.data.dataset import names

SMALL = ["model=reformer", "data=duplicate", "size=smoke", "threads=1"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RUNS", "RESULTS", "DATA"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("EFFTX_DEBUG", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "lsh.n_hash=3"], "lsh.n_hashes"),
        (["train", "model=transformer", "lsh.n_hashes=3"], "attention"),
        (["train", "d_model=wide"], "whole number"),
        (["train", "model=transformer", "n_heads=3", "d_head=null"], "divisible"),
        (["train", "lsh.n_hashes=1,2"], "efftx ablate"),
        (["train", "lsh.n_buckets=[3]", "lsh.full_below=0"], "even number"),
        (["train", "lsh.n_hashes=4"], "lsh.full_below=0"),
        (["ablate", "lsh.n_hashes=4,8"], "lsh.full_below=0"),
        (["train", "model=reformer", "positions.axial_shape=[4,4]"], "16 positions"),
        (["train", "data=enwik8", "data.path=/does/not/exist"], "/does/not/exist"),
        (["train", "--jsn"], "--jsn"),
        (["ablate", "lsh.n_hashes=1,2", "d_model=wide"], "whole number"),
        (["ablate", "seed=1,2", "run_dir=here"], "run_dir"),
        (["reproduce", "reformer/tabel2"], "reformer/table2"),
        (["reproduce", "reformer/table2", "size=huge"], "smoke"),
        (["reproduce", "reformer/table2", "seeds=a"], "seeds=0,1,2"),
        (["reproduce", "reformer/table2", "speed=3"], "speed"),
        (["report", "reformer/tabel2"], "reformer/table2"),
        (["list", "reformr"], "reformer"),
        (["bench", "atention"], "attention"),
        (["bench"], "bench attention"),
        (["data", "lst"], "list"),
        (["data", "prepare", "enwik"], "enwik8"),
        (["plan", "modl=reformer"], "model"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_mistake_is_one_message_with_exit_code_2_and_no_traceback(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], own_roots: Path
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not (own_roots / "runs").exists(), "nothing half-written is left"


def test_with_json_a_mistake_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "lsh.n_hash=3", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["kind"] == "unknown_key"
    assert "lsh.n_hashes" in error["hint"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_DEBUG", "1")
    code, _, err = run(capsys, "train", "lsh.n_hash=3")
    assert code == 2
    assert "Traceback" in err


def test_training_prints_its_result_and_the_same_command_again_finds_it_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "train", *SMALL, "--json")
    first = json.loads(out)
    assert code == 0
    assert set(first) >= {"run", "hash", "step", "resumed_from", "metrics", "timings", "weights_sha256"}
    assert (first["step"], first["resumed_from"]) == (6, None)
    again = json.loads(run(capsys, "train", *SMALL, "--json")[1])
    assert again["resumed_from"] == 6
    assert again["metrics"] == first["metrics"]
    assert again["weights_sha256"] == first["weights_sha256"]
    code, out, _ = run(capsys, "train", *SMALL)
    assert code == 0
    assert "accuracy (%)" in out


def test_a_run_directory_of_another_config_is_refused_and_names_the_key(
    capsys: pytest.CaptureFixture[str], own_roots: Path
) -> None:
    directory = f"run_dir={own_roots / 'one'}"
    assert run(capsys, "train", *SMALL, directory)[0] == 0
    code, _, err = run(capsys, "train", *SMALL, directory, "dropout=0.3")
    assert code == 2
    assert "dropout" in err


def test_an_ablation_skips_what_is_done_goes_on_after_a_failure_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "ablate", "lsh.n_hashes=1,2", *SMALL, "--json")
    runs = json.loads(out)["runs"]
    assert code == 0
    assert [r["state"] for r in runs] == ["done", "done"]
    assert set(runs[0]) >= {"overrides", "run", "hash", "state", "metrics", "timings"}

    # A rate so large that the loss is infinite within the six steps: a point that fails by itself.
    code, out, _ = run(capsys, "ablate", "lsh.n_hashes=2", "optimizer.lr=1e30,1e-3,2e-3", *SMALL, "--json")
    runs = json.loads(out)["runs"]
    assert code == 1
    assert [r["state"] for r in runs] == ["failed", "skipped", "done"]
    assert "NaN" in runs[0]["error"] or "nan" in runs[0]["error"] or "inf" in runs[0]["error"]


def test_an_ablation_prints_the_varied_keys_against_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "ablate", "lsh.n_hashes=1,2", *SMALL)
    assert code == 0
    assert "[2/2] lsh.n_hashes=2\n" in err
    assert "lsh.n_hashes" in out
    assert "accuracy" in out


def test_every_point_of_an_ablation_is_checked_before_the_first_is_run(
    capsys: pytest.CaptureFixture[str], own_roots: Path
) -> None:
    code, _, err = run(capsys, "ablate", "lsh.n_buckets=[4],[3]", *SMALL)
    assert code == 2
    assert "even number" in err
    assert not (own_roots / "runs").exists()


def test_cfg_prints_the_resolved_configuration_and_one_a_point_in_an_ablation() -> None:
    command = [sys.executable, "-m", "efftx"]
    one = subprocess.run([*command, "train", "--cfg", "job", "size=smoke"], capture_output=True, text=True, check=True)
    assert "n_hashes: 2" in one.stdout
    two = subprocess.run([*command, "ablate", "sru.d=4,8", "--cfg", "job"], capture_output=True, text=True, check=True)
    assert two.stdout.count("sru:") == 2
    assert "# sru.d=8" in two.stdout


def test_nan_stops_before_the_update_with_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", *SMALL, "optimizer.lr=1e30")
    assert code == 3
    assert "Step" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lst"], "'list'"),
        (["list", "--jso"], "--jso"),
        (["train", "--package", "lsh"], "--cfg job"),
        (["train", "--resolve"], "--cfg job"),
        (["train", "--info", "all", "--json"], "prints no JSON"),
        (["reproduce"], "efftx list"),
        (["reproduce", "reformer/table2", "jobs=0"], "at least 1"),
        (["ablate", "lsh.n_hashes=1,2", "hydra/launcher=jobli"], "efftx[joblib]"),
        (["train", "data=enwik8", "data.path="], "is empty"),
        (["train", "device=gpu"], "cuda"),
    ],
)
def test_a_slip_of_the_hand_is_told_with_the_way_on(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert says in out + err


def test_a_configuration_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ablate", "sparse_ff.N=4,8", "size=smoke", "--cfg", "job", "--json")
    assert code == 0
    assert [c["config"]["sparse_ff"]["N"] for c in json.loads(out)["configurations"]] == [4, 8]


def test_a_launcher_runs_what_auto_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["sparse_ff.N=4,8", "size=smoke", "threads=1", "hydra/launcher=joblib", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "efftx", "ablate", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [r["state"] for r in runs] == ["done", "done"]
    assert json.loads((Path(runs[0]["run"]) / "config.json").read_text())["config"]["objective"] == "span_corruption"


def test_list_names_every_item_with_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    items = json.loads(out)["items"]
    assert code == 0
    assert {"reformer/table2", "reformer/figure5b", "reformer/figure1", "reformer/table1"} <= {i["id"] for i in items}
    assert {i["state"] for i in items} == {"not run"}
    assert set(items[0]) >= {"id", "paper", "caption", "state", "sizes"}


def test_data_list_says_what_each_data_set_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "list", "--json")
    rows = json.loads(out)["data"]
    assert code == 0
    assert {row["name"] for row in rows} == {*names()}
    assert set(rows[0]) >= {"name", "variant", "path", "bytes", "sha256", "licence", "state"}


def test_data_prepare_makes_the_bytes_ready_and_verify_finds_damage(
    capsys: pytest.CaptureFixture[str], own_roots: Path
) -> None:
    code, out, _ = run(capsys, "data", "prepare", "stdlib", "--json")
    assert code == 0
    row = json.loads(out)["data"][0]
    assert row["state"] == "verified"
    victim = max(Path(row["path"]).glob("*.bin"), key=lambda path: path.stat().st_size)
    with victim.open("r+b") as file:
        file.seek(100)
        file.write(b"\x00damage")
    code, out, _ = run(capsys, "data", "verify", "stdlib", "--json")
    assert code == 1
    assert json.loads(out)["data"][0]["state"] == "damaged"


def test_data_is_prepared_in_the_form_that_a_size_reads(capsys: pytest.CaptureFixture[str]) -> None:
    variants = []
    for words in (["size=smoke"], ["data.vocab_size=400"]):
        code, out, _ = run(capsys, "data", "prepare", "c4", "data.path=efftx:samples/c4", *words, "--json")
        assert code == 0
        variants.append(json.loads(out)["data"][0]["variant"])
    assert "bytes" in variants[0]
    assert "unigram" in variants[1]


def test_a_truncated_archive_is_refused_and_another_text_has_its_own_name(
    capsys: pytest.CaptureFixture[str], own_roots: Path
) -> None:
    whole = lzma.compress(b"<mediawiki " + b"some text " * 50_000)
    (own_roots / "cut.xz").write_bytes(whole[: len(whole) // 2])
    code, _, err = run(capsys, "train", "data=enwik8", f"data.path={own_roots / 'cut.xz'}")
    assert (code, "cut.xz" in err) == (2, True)
    (own_roots / "other").write_bytes(b"this is not the beginning of enwik8 " * 10_000)
    assert not list(own_roots.rglob("prepared/*/*.bin"))
    assert not (own_roots / "runs").exists()
    code, out, err = run(capsys, "data", "prepare", "enwik8", f"data.path={own_roots / 'other'}", "--json")
    assert (code, "not known to be enwik8" in err) == (0, True)
    assert json.loads(out)["data"][0]["variant"].startswith("text[other sha256:")


def test_without_a_network_it_says_at_once_which_file_would_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_roots: Path
) -> None:
    # A proxy on port 9 of this machine: nobody answers there, whatever network there is.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    code, _, err = run(capsys, "train", "data=enwik8", "size=smoke")
    assert code == 2
    assert "data.path" in err
    assert "data=stdlib" in err
    assert not (own_roots / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_place_is_told(capsys: pytest.CaptureFixture[str], own_roots: Path) -> None:
    own_roots.chmod(0o500)
    code, _, err = run(capsys, "train", *SMALL)
    own_roots.chmod(0o700)
    assert code == 2
    assert "runs" in err


def test_a_full_disk_is_told_and_nothing_half_written_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_roots: Path
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("efftx.runs.checkpoint.save_file", full)
    code, _, err = run(capsys, "train", *SMALL)
    assert code == 2
    assert "full" in err or "space" in err
    assert not [path for path in (own_roots / "runs").rglob("*") if "step-" in path.name]


def test_without_a_compiler_compile_is_told_what_it_lacks(own_roots: Path) -> None:
    surroundings = {**os.environ, "CXX": "/does/not/exist", "TORCHINDUCTOR_CACHE_DIR": str(own_roots / "inductor")}
    command = [sys.executable, "-m", "efftx", "train", *SMALL[1:], "compile=true", "model=transformer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    assert done.returncode == 2
    assert "compiler" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for command in ("train", "ablate", "reproduce", "report", "bench", "sample", "plan", "data", "list"):
        assert command in out
