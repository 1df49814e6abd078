"""The configuration: every allowed combination composes, every other one is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.config.checks import COMPATIBLE, dead_reason
from efftx.config.compose import compose, expand_sweeps, from_dict, known_keys, parse_overrides, swept_keys
from efftx.config.hash import config_hash, default_values, hashed_values
from efftx.config.schema import to_dict
from efftx.core.shipped import shipped
from efftx.data.dataset import find_source, open_dataset
from efftx.data.duplicate import DuplicateConfig
from efftx.errors import UserError
from efftx.models.build import build_on_meta

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


@pytest.mark.parametrize(
    ("overrides", "kind", "says"),
    [
        (["lsh.n_hash=3"], "unknown_key", "lsh.n_hashes"),
        (["model=transfomer"], "unknown_model", "transformer"),
        (["data=enwik"], "unknown_data", "enwik8"),
        (["size=huge"], "unknown_size", "smoke"),
        (["preset=reformer/enwik8_2021"], "unknown_preset", "reformer/enwik8_2020"),
        (["d_model=wide"], "bad_type", "d_model=wide is not a whole number."),
        (["d_model=null"], "bad_type", "is not a whole number"),
        (["d_model=true"], "bad_type", "is not a whole number"),
        (["sparse_ff={N: many}"], "bad_type", "sparse_ff.N=many is not a whole number."),
        (["lsh.n_buckets=[a]"], "bad_type", "lsh.n_buckets=[a] is not a whole number."),
        (["attention=lsh"], "bad_type", "Write 'attention=[lsh]'."),
        (["data.path=[a,b]"], "bad_type", "is not text"),
        (["reversible.enabled=null"], "bad_type", "neither true nor false"),
        (["n_layers=1.5"], "bad_type", "whole number"),
        (["optimizer.lr=fast"], "bad_type", "Write a number, such as optimizer.lr=0.5."),
        (["lsh=3"], "bad_type", "--package lsh"),
        (["lsh.n_hashes=1,2"], "sweep", "efftx ablate"),
        (["d_model=[1"], "bad_override", "'d_model=[1' cannot be read."),
        (["just_a_word"], "bad_override", "key=value"),
        (["lsh.n_hashes", "=", "4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["lsh.n_hashes=", "4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["lsh.n_hashes", "=4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["model", "reformer"], "bad_override", "Write model=reformer, without a space."),
        (["steps=3"], "unknown_key", "'schedule.steps' or 'training.steps'"),
        (["~d_model"], "bad_override", "d_model"),
        (["model=transformer", "lsh.n_hashes=2"], "dead_key", "attention"),
        (["share_qk=false"], "dead_key", "always shares"),
        (["attention=[lsh,identity]", "share_qk=false"], "dead_key", "always shares"),
        (["model=transformer", "attention=[identity]", "share_qk=true"], "dead_key", "no layer attends"),
        (["model=transformer", "attention=[identity]", "attention_dropout=0.5"], "dead_key", "no layer attends"),
        (["model=transformer", "attention=[fixed]", "fixed.mode=first", "fixed.c=2"], "dead_key", "no summaries"),
        (
            ["model=transformer", "attention=[fixed]", "fixed.mode=first", "fixed.sub_blocks=2"],
            "dead_key",
            "no summaries",
        ),
        (["tracker.wandb=true", "tracker.group=1e-3"], "bad_type", "would be read as 0.001"),
        (["model=transformer", "reversible.merge=mean"], "dead_key", "reversible.enabled"),
        (["positions.kind=learned", "positions.axial_dims=[1,2]"], "dead_key", "axial"),
        (["tracker.project=x"], "dead_key", "tracker.wandb"),
        (["distributed.offload=true"], "dead_key", "not fsdp"),
        (["distributed.strategy=fsdp", "dtype=float16"], "bad_value", "bfloat16"),
        (["optimizer.weight_decay=0.1"], "dead_key", "adamw"),
        (["schedule.name=constant", "schedule.steps=10"], "dead_key", "no end"),
        (["d_model=260", "n_heads=3", "d_head=null", "positions.kind=learned"], "bad_value", "=258 or d_model=261"),
        (["d_model=2", "n_heads=4", "d_head=null"], "bad_value", "Take d_model=4, or"),
        (["d_model=33"], "bad_value", "positions.axial_dims=[8,25]"),
        (["data=glue"], "bad_objective", "model=scaling or model=terraformer"),
        (["lsh.n_buckets=[3]"], "bad_value", "even number"),
        (["lsh.n_buckets=[0]"], "bad_value", "even number"),
        (["lsh.n_buckets=[4096,2048]"], "bad_value", "at most 4194302 buckets a round"),
        (["lsh.n_buckets=[4096,1024]", "lsh.n_hashes=2"], "bad_value", "2 rounds of 4194304 buckets"),
        (["positions.axial_shape=[4,4]"], "bad_value", "16 positions"),
        (["positions.axial_dims=[4,4]"], "bad_value", "add up to 8"),
        (["positions.axial_shape=[1024]"], "bad_value", "one positive entry"),
        (["positions.kind=learned", "positions.max_len=8"], "bad_value", "data.length"),
        (["attention=[]"], "bad_value", "no kind"),
        (["attention=[lsh,lokal]"], "bad_value", "local"),
        (["activation=rely"], "bad_value", "relu"),
        (["dropout=1"], "bad_value", "less than 1"),
        (["training.batch_size=0"], "bad_value", "at least 1"),
        (["threads=0"], "bad_value", "at least 1"),
        (["checkpoint.every=-1"], "bad_value", "negative"),
        (["checkpoint.keep=0"], "bad_value", "at least 1"),
        (["optimizer.lr=0"], "bad_value", "above 0"),
        (["optimizer.betas=[0.9,1.0]"], "bad_value", "less than 1"),
        (["optimizer.betas=[0.9]"], "bad_value", "two numbers"),
        (["schedule.warmup=-1"], "bad_value", "negative"),
        (["seed=-1"], "bad_value", "negative"),
        (["tie_embeddings=true"], "bad_value", "reversible.merge=mean"),
        (["stack=encoder"], "bad_value", "decoder"),
        (["objective=span"], "bad_value", "span_corruption"),
        (["n_encoder_layers=3"], "dead_key", "no encoder"),
        (["model=terraformer", "lsh.n_hashes=4"], "dead_key", "lsh.full_below=1024"),
        (["model=terraformer", "lsh.n_hashes=4", "lsh.full_below=256"], "dead_key", "lsh.full_below=256"),
        (["sparse_ff.rank=4"], "dead_key", "sparse_ff.N is 0"),
        (["sru.d=4"], "dead_key", "sru.n_layers is 0"),
        (["d_ff_rule=equal"], "dead_key", "dense"),
        (["d_ff_rule=same"], "bad_value", "equal"),
        (["sparse_ff.N=5"], "bad_value", "blocks"),
        (["sparse_ff.N=4", "sparse_ff.quant_prob=2"], "bad_value", "quant_prob"),
        (["sparse_ff.N=4", "activation=gelu"], "dead_key", "always relu"),
        (["sparse_ff.N=4", "init.weights=0.1"], "dead_key", "not reach the sparse layers"),
        (["model=scaling", "sparse_qkv.S=4", "init.weights=0.1"], "dead_key", "not reach the sparse layers"),
        (["model=terraformer", "data=copy_add", "objective=lm"], "bad_value", "no input"),
        (["model=scaling", "data=duplicate"], "bad_objective", "lm"),
        (["model=scaling", "tie_embeddings=true", "sparse_loss.S=4"], "bad_value", "sparse_loss"),
        (["model=scaling", "d_head=8", "sparse_qkv.S=8"], "bad_value", "d_head"),
        (["model=scaling", "stack=decoder", "sparse_qkv.cross=query"], "dead_key", "cross-attention"),
        (["model=scaling", "reversible.encoder=merged"], "dead_key", "reversible.enabled"),
        (["data.n_symbols=3"], "unknown_key", "data.n_symbols"),
        (["optimizer.name=adamm"], "bad_value", "adam"),
        (["schedule.name=cosin"], "bad_value", "cosine"),
        (["dtype=float8"], "bad_value", "float"),
        (["data=c4", "data.tokenizer=foo"], "bad_value", "data.tokenizer=foo is not a tokenizer"),
        (["model=scaling", "data=summarization", "data.corpus=foo"], "bad_value", "data.corpus=foo is not a corpus"),
        (["model=scaling", "data=summarization", "data.tokenizer=foo"], "bad_value", "not a tokenizer"),
        (["model=scaling", "data=wmt14", "data.source=english"], "bad_value", "no language"),
        (["model=scaling", "data=wmt14", "data.source=de"], "bad_value", "are both de"),
        (["data=imagenet64", "data.edition=foo"], "bad_value", "chrabaszcz2017"),
        (["data=imagenet64", "data.side=65"], "bad_value", "64 pixels"),
        (["data=cifar10", "data.side=64"], "bad_value", "32 pixels"),
        (["data=enwik8", "data.n_bytes=5"], "bad_value", "is not known"),
        (["data=enwik8", "data.extra=wiki"], "bad_value", "enwiki2016"),
        (["evaluation.stop_at_accuracy=99", "evaluation.every=0"], "bad_value", "there is none before the end"),
        (["evaluation.beam=4"], "dead_key", "no text is generated"),
        (["model=scaling", "data=glue", "evaluation.beam=4"], "dead_key", "no text is generated"),
        (["evaluation.beam=4", "evaluation.length_penalty=1"], "dead_key", "no text is generated"),
        (["device=tpu"], "bad_value", "cpu"),
    ],
)
def test_a_mistake_is_told_with_its_kind_and_the_way_out(overrides: list[str], kind: str, says: str) -> None:
    if not any(word.startswith("model=") for word in overrides):
        overrides = ["model=reformer", *overrides]
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert caught.value.kind == kind
    assert says in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["sparse_ff.rank=4"], "Leave sparse_ff.rank out, or switch its mechanism on."),
        (["reversible.merge=mean"], "Leave reversible.merge out, or switch its mechanism on."),
        (["evaluation.length_penalty=1"], "Leave evaluation.length_penalty out."),
        (["lsh.n_hashes=2"], "Leave lsh.n_hashes out."),
        (["data.target_length=8"], "Leave data.target_length out."),
        (["evaluation.beam=4"], "Leave evaluation.beam out."),
        (
            ["attention=[lsh]", "lsh.n_hashes=2", "lsh.full_below=9000"],
            "Leave lsh.n_hashes out, or set lsh.full_below=0 beside it, or a larger data.length.",
        ),
    ],
)
def test_the_way_out_of_a_dead_key_is_one(overrides: list[str], hint: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["model=transformer", *overrides])
    assert caught.value.hint == hint


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


PATH_CHARACTERS = st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters=",$")


@pytest.mark.parametrize(
    "path",
    [
        "~/x.txt",
        "日本.txt",
        "my (1).txt",
        "a=b",
        "[a].txt",
        "{a}",
        "it's",
        "a#b",
        "é è.txt",
        "&",
        "a;b",
        "texts/*.txt",
        "\\'",
        "2024_01_15",
        "1e3",
        "1.50",
        "+1",
        "007",
        "true",
        "nan",
    ],
)
def test_a_path_is_read_as_it_is(path: str) -> None:
    config = compose(["model=reformer", "data=text", "size=smoke", f"data.path={path}"])
    assert config.data.path == path


@given(st.text(PATH_CHARACTERS, max_size=20))
def test_whatever_a_path_holds_it_is_one_word(path: str) -> None:
    (override,) = parse_overrides([f"data.path=/{path}/x"])
    assert override.value() == f"/{path}/x"


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
