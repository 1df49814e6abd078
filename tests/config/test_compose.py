"""The configuration: every allowed combination composes, every other one is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path

import pytest

from efftx.config.checks import COMPATIBLE, dead_reason
from efftx.config.compose import compose, expand_sweeps, from_dict, known_keys, swept_keys
from efftx.config.hash import config_hash, default_values, hashed_values
from efftx.config.schema import to_dict
from efftx.core.shipped import shipped
from efftx.data.dataset import find_source, open_dataset
from efftx.data.duplicate import DuplicateConfig
from efftx.errors import UserError
from efftx.models.build import build_on_meta
from efftx.runs.run_directory import runs_root
from efftx.study.records import RecordStore

MODELS = sorted(path.stem for path in (shipped("conf") / "model").glob("*.yaml"))
SIZES = sorted(path.stem for path in (shipped("conf") / "size").glob("*.yaml"))
DATA = sorted(path.stem for path in (shipped("conf") / "data").glob("*.yaml"))


def allowed(model: str, data: str) -> bool:
    """A decoder models plain text; an encoder-decoder maps pairs, or corrupts the spans of plain text."""
    reads = {"lm"} if model in ("transformer", "reformer", "sparse_transformer") else {"span_corruption", "seq2seq"}
    return bool(reads & set(find_source(data).objectives))


@pytest.mark.parametrize(("model", "data", "size"), list(product(MODELS, DATA, SIZES)))
def test_every_model_on_every_data_set_at_every_size_composes_or_is_refused_with_a_reason(
    model: str, data: str, size: str
) -> None:
    words = [f"model={model}", f"data={data}", f"size={size}"]
    if allowed(model, data):
        config = compose(words)
        assert (config.model, config.data.name, config.size) == (model, data, size)
        assert config.objective in find_source(data).objectives
        source = find_source(data)
        model_of_it = build_on_meta(config, source.vocab_size(config.data, config.objective))
        assert sum(parameter.numel() for parameter in model_of_it.parameters()) > 1000
        assert config.target_length > 0
    else:
        with pytest.raises(UserError, match="does not offer") as caught:
            compose(words)
        assert "It offers" in caught.value.hint


@pytest.mark.parametrize("preset", ["reformer/enwik8_2020", "reformer/enwik8_pod_2020"])
def test_the_later_configurations_of_the_authors_are_presets_of_their_own(preset: str) -> None:
    config = compose(["model=reformer", "size=paper", "data=enwik8", f"preset={preset}"])
    assert config.n_layers == 12
    assert config.attention == ["local", "local", "lsh", "local"]
    assert config.data.length == 65536


def test_the_preset_of_a_size_wins_over_model_data_and_size_and_the_command_line_over_all() -> None:
    assert compose(["model=reformer", "size=cpu"]).d_model == 256
    assert compose(["model=reformer", "size=cpu", "data=enwik8"]).data.length == 1024
    assert compose(["model=reformer", "size=cpu", "d_model=512", "positions.kind=learned"]).d_model == 512


def test_keys_stand_at_the_root_as_the_user_writes_them() -> None:
    assert compose(["lsh.n_hashes=4", "lsh.full_below=0"]).lsh.n_hashes == 4
    assert compose(["sparse_ff.N=64"]).sparse_ff.N == 64


@pytest.mark.parametrize(
    "key",
    [
        *("lsh.n_hashes", "reversible.merge", "chunking.ff", "sparse_ff.N", "sparse_ff.quant_prob", "sparse_qkv.S"),
        *("sparse_qkv.F", "sparse_loss.S", "sru.n_layers", "sru.d", "n_encoder_layers", "d_ff_rule", "data.noise"),
    ],
)
def test_every_mechanisms_key_is_live_in_the_default_model(key: str) -> None:
    assert dead_reason(compose([]), key) is None


@pytest.mark.parametrize(
    "strength", ["sparse_ff.N=4", "sparse_qkv.S=4", "sparse_loss.S=2", "sru.n_layers=1", "reversible.enabled=true"]
)
@pytest.mark.parametrize("model", ["transformer", "reformer", "sparse_transformer", "scaling", "terraformer"])
def test_a_strength_key_switches_its_mechanism_on_in_any_family(model: str, strength: str) -> None:
    more = ["reversible.merge=mean"] if strength.startswith("reversible") else []
    config = compose([f"model={model}", "size=smoke", strength, *more])
    assert build_on_meta(config, 300)


@pytest.mark.parametrize(("stack", "objective"), list(COMPATIBLE))
def test_the_compatibility_table_holds_cell_by_cell(stack: str, objective: str) -> None:
    data = "copy_add" if objective == "seq2seq" else "stdlib"
    words = [f"stack={stack}", f"objective={objective}", f"data={data}"]
    if COMPATIBLE[stack, objective]:
        with pytest.raises(UserError, match="cannot be"):
            compose(words)
    else:
        assert compose(words).stack == stack


@pytest.mark.parametrize(
    ("words", "objective"),
    [
        (["stack=decoder"], "lm"),
        (["stack=decoder", "data=c4"], "lm"),
        (["stack=concatenated"], "span_corruption"),
        (["stack=encoder_decoder", "data=enwik8"], "span_corruption"),
        (["stack=encoder_decoder", "data=copy_add", "data.length=512"], "seq2seq"),
    ],
)
def test_the_objective_follows_the_stack_and_the_data(words: list[str], objective: str) -> None:
    assert compose(words).objective == objective


def test_the_start_of_the_weights_is_taken_where_layers_are_dense() -> None:
    assert compose(["model=transformer", "init.weights=0.1"]).init.weights == 0.1
    assert compose(["model=transformer", "init.weights=0", "sparse_ff.N=4"]).init.weights == 0.0


def test_a_beam_is_taken_where_texts_are_generated() -> None:
    assert compose(["model=scaling", "data=grammar", "evaluation.beam=4"]).evaluation.beam == 4


def test_heads_need_not_divide_the_width_where_their_own_width_is_given() -> None:
    config = compose(["model=reformer", "d_model=260", "n_heads=3", "d_head=64", "positions.kind=learned"])
    assert config.width_of_head == 64


def test_a_list_in_brackets_is_one_value_and_several_are_a_sweep() -> None:
    words = ["attention=[full],[lsh]", "lsh.n_hashes=1,2", "seed=3"]
    assert swept_keys(words) == ["attention", "lsh.n_hashes"]
    assert expand_sweeps(words) == [
        ["attention=[full]", "lsh.n_hashes=1", "seed=3"],
        ["attention=[full]", "lsh.n_hashes=2", "seed=3"],
        ["attention=[lsh]", "lsh.n_hashes=1", "seed=3"],
        ["attention=[lsh]", "lsh.n_hashes=2", "seed=3"],
    ]


OUTSIDE_THE_HASH = {
    "run_dir": "elsewhere",
    "tracker.wandb": "true",
    "checkpoint.every": "7",
    "checkpoint.keep": "5",
}


def test_the_hash_covers_what_can_change_a_result_and_nothing_else() -> None:
    base = ["model=reformer", "data=duplicate", "size=smoke", "threads=1"]
    dataset = open_dataset(compose(base).data)
    reference = config_hash(compose(base), dataset)
    for key, value in OUTSIDE_THE_HASH.items():
        assert config_hash(compose([*base, f"{key}={value}"]), dataset) == reference, key
    for key, value in {
        "lsh.n_hashes": "4",
        "seed": "1",
        "threads": "2",
        "dtype": "float64",
        "dropout": "0.2",
        "training.steps": "7",
        "evaluation.batches": "3",
        "optimizer.lr": "0.5",
    }.items():
        assert config_hash(compose([*base, f"{key}={value}"]), dataset) != reference, key


def test_a_mechanism_that_is_off_is_no_part_of_the_hash() -> None:
    """So a mechanism that is added later leaves earlier runs what they were."""
    config = compose(["model=reformer", "data=duplicate", "size=smoke"])
    dataset = open_dataset(config.data)
    reference = config_hash(config, dataset)
    off = dataclasses.replace(config, sparse_ff=dataclasses.replace(config.sparse_ff, temperature=0.7))
    assert config_hash(off, dataset) == reference
    on = dataclasses.replace(config, sparse_ff=dataclasses.replace(config.sparse_ff, N=4))
    assert config_hash(on, dataset) != reference


def test_a_default_that_hashes_leave_out_keeps_its_value() -> None:
    """A new key may join; to change or drop one of these makes old records count as runs that they are not."""
    path = Path(__file__).parent.parent / "hashed_defaults.json"
    released = json.loads(path.read_text())
    now = json.loads(json.dumps(default_values(DuplicateConfig)))
    assert {key: now.get(key, "gone") for key in released} == released
    assert now.keys() == released.keys(), f"add the new keys to {path.name}"


def test_another_text_under_the_same_name_is_another_hash() -> None:
    config = compose(["model=reformer", "data=duplicate", "size=smoke"])
    dataset = open_dataset(config.data, config.objective)
    other = compose(["model=reformer", "data=duplicate", "size=smoke", "data.n_symbols=5"])
    assert config_hash(config, dataset) != config_hash(config, open_dataset(other.data))


def test_two_families_that_resolve_to_the_same_point_are_one_run() -> None:
    dataset = open_dataset(compose(["model=reformer", "data=duplicate", "size=smoke"]).data)
    config = compose(["model=transformer", "data=duplicate", "size=smoke"])
    assert config_hash(config, dataset) == config_hash(dataclasses.replace(config, model="another"), dataset)


@pytest.mark.parametrize("name", ["conf", "my conf, [old] 'n\\", "日本=1"])
def test_a_users_own_model_is_found_in_config_dir(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / "model").mkdir(parents=True)
    (folder / "preset" / "mine").mkdir(parents=True)
    own = "# @package _global_\nmodel: mine\nn_layers: 1\nd_model: 16\nd_ff: 128\nn_heads: 2\n"
    (folder / "model" / "mine.yaml").write_text(own)
    (folder / "preset" / "mine" / "smoke.yaml").write_text("# @package _global_\ndata: {length: 16}\n")
    config = compose(["model=mine", "size=smoke", "data=duplicate"], config_dirs=[folder])
    assert (config.model, config.d_model, config.data.length) == ("mine", 16, 16)
    with pytest.raises(UserError) as caught:
        compose(["model=mine", "size=cpu", "data=duplicate"], config_dirs=[folder])
    assert "smoke" in caught.value.message + caught.value.hint


def test_an_own_model_without_a_preset_is_told_what_to_write_or_to_take(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\ndefaults: [transformer]\nmodel: mine\n")
    with pytest.raises(UserError, match="The model 'mine' has no size 'smoke'") as caught:
        compose(["model=mine", "size=smoke"], config_dirs=[tmp_path])
    assert "preset/mine/smoke.yaml" in caught.value.hint
    assert "preset=transformer/smoke" in caught.value.hint
    compose(["model=mine", "size=smoke", "preset=transformer/smoke", "data=duplicate"], config_dirs=[tmp_path])


def test_a_folder_of_configurations_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="not a folder"):
        compose([], config_dirs=["/does/not/exist"])


def test_every_feed_forward_width_of_a_preset_is_divisible_by_128() -> None:
    for model, size in product(MODELS, SIZES):
        assert compose([f"model={model}", f"size={size}"]).d_ff % 128 == 0


def test_every_key_of_the_schema_is_known_in_dotted_form() -> None:
    keys = known_keys()
    assert {"lsh.n_hashes", "d_model", "data.n_symbols", "reversible.merge"} <= set(keys)
    assert "lsh" not in keys


def test_the_plain_form_is_json_and_complete() -> None:
    plain = to_dict(compose(["size=smoke"]))
    assert plain["lsh"]["n_hashes"] == 2
    assert plain["data"]["name"] == "stdlib"


@pytest.mark.parametrize("words", [["model=reformer", "data=duplicate"], ["data=c4", "size=smoke"], ["data=glue"]])
def test_a_configuration_comes_back_from_its_json(words: list[str]) -> None:
    config = compose(words)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": "many"}, "none of this version.*many"),
        ({"no_such_key": 1}, "none of this version.*no_such_key"),
        ({"data": {"name": "duplicate", "no_such_key": 1}}, "none of this version.*no_such_key"),
        ({"data": {"name": "duplicat", "length": 16}}, "no data set 'duplicat'"),
        ({"data": 3}, "no data set"),
    ],
)
def test_a_saved_configuration_of_another_version_is_refused(change: dict[str, object], says: str) -> None:
    saved = to_dict(compose(["model=reformer", "data=duplicate"]))
    with pytest.raises(UserError, match=says):
        from_dict(saved | change)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model=scaling", "sparse_qkv.variant=multiplicative", "sparse_qkv.output=convolution"], "sparse_qkv.F=5"),
        (["model=scaling", "sparse_qkv.variant=modular", "sparse_qkv.cross=query"], "sparse_qkv.kernel=paper"),
        (["model=sparse_transformer", "positions.kind=sinusoidal"], "init.position_std=1"),
    ],
)
def test_a_key_that_some_layer_reads_is_taken_and_hashed(words: list[str], key: str) -> None:
    without, with_key = (compose([*words, "data=stdlib", "size=smoke", *more]) for more in ([], [key]))
    assert hashed_values(with_key).keys() - {key.partition("=")[0]} <= hashed_values(without).keys()
    assert hashed_values(with_key) != hashed_values(without)


@pytest.mark.parametrize(
    "words",
    [
        ["model=terraformer", "size=paper", "schedule.name=cosine"],
        ["model=scaling", "size=paper", "optimizer.name=adam"],
        ["model=sparse_transformer", "size=paper", "optimizer.name=adafactor"],
        ["model=reformer", "size=paper", "preset=reformer/enwik8_pod_2020", "data=enwik8", "schedule.name=rsqrt"],
        ["model=scaling", "size=paper", "optimizer={name: adam, lr: 0.1}"],
    ],
)
def test_another_optimiser_or_schedule_leaves_the_constants_of_the_files_own_behind(words: list[str]) -> None:
    config = compose(words)
    for node in (config.optimizer, config.schedule):
        name = "optimizer" if node is config.optimizer else "schedule"
        for item in dataclasses.fields(node):
            if dead_reason(config, f"{name}.{item.name}"):
                assert getattr(node, item.name) == getattr(type(node)(), item.name)


def test_a_file_that_sets_a_constant_that_its_own_optimiser_does_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "preset" / "mine").mkdir(parents=True)
    text = "# @package _global_\noptimizer: {name: adam, weight_decay: 0.1}\n"
    (tmp_path / "preset" / "mine" / "one.yaml").write_text(text)
    with pytest.raises(UserError, match=r"optimizer\.weight_decay=0\.1 has no effect"):
        compose(["preset=mine/one"], config_dirs=[tmp_path])


def test_paths_that_begin_with_a_tilde_lead_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose(["run_dir=~/runs/a", "pretrained=~/runs/b"])
    assert (config.run_dir, config.pretrained) == (str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b"))
    monkeypatch.setenv("EFFTX_RUNS", "~/x")
    monkeypatch.setenv("EFFTX_RESULTS", "~/y")
    assert (runs_root(), RecordStore().root) == (tmp_path / "x", tmp_path / "y")


def test_a_least_context_of_a_file_is_refused_where_no_row_has_one(tmp_path: Path) -> None:
    (tmp_path / "preset" / "mine").mkdir(parents=True)
    (tmp_path / "preset" / "mine" / "one.yaml").write_text("# @package _global_\nevaluation: {min_context: 8}\n")
    with pytest.raises(UserError, match="only a language model"):
        compose(["model=scaling", "data=c4", "preset=mine/one"], config_dirs=[tmp_path])
