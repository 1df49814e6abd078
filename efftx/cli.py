"""The commands of efftx. Thin: each reads its words, calls one function, and prints what that gives."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.console import Console
from rich.markup import escape

import efftx
from efftx.errors import EXIT_INTERRUPTED, Interrupted, UserError, nearest

HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
    "--shell-completion",
    "-sc",
    "--package",
    "-p",
    "--resolve",
)
PIPE_WIDTH = 160
EPILOG = """Overrides are key=value words, as in `efftx train model=reformer data=enwik8 lsh.n_hashes=4`.
`efftx train --cfg job` shows every key (--package lsh only one node); --info all and --shell-completion are Hydra's."""

SAMPLE_EPILOG = """RUN is the directory that `efftx train` printed; after it stand key=value words:
  prompt='...'       text that a language model goes on from
  input='...'        text for an encoder, in the form of the data's own inputs
                     (without either: from the first row of the test split)
  max_new=           tokens at most
  temperature=, top_k=, top_p=   draw, in this order; without any of them the most likely token is taken (greedy)
  beam=, length_penalty=         search; the penalty is ((5 + length) / 6)^x, 0.6 unless given
  n=                 samples, or the n best of a beam
  seed=, threads=, int8=true"""

BENCH_ABOUT = "Speed and memory against bounds and installed peers: attention, decode, memory, train."
BENCH_EPILOG = """attention   lengths=, names=, pass=, repeats=, device=: a whole attention layer
decode      names=, context=, batch=, widths=, protocol=authors or steady, tokens=, seed=, cache_bytes=: a token at the
            papers' widths, part by part; names such as 800m-dense, 17b-ff-qkv, width-512-sparse, logits-1024-s4, with
            -int8 or -blocks2 behind them, transformers-t5
memory      names=, depths=, lengths=, batch=, device=: peak activations of a training step
train       the same, and repeats=: steps and tokens a second"""


class Outcome(NamedTuple):
    """What a command gives: its JSON object, how people see it, and the exit code."""

    json: dict[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("bad_command", message, f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 2 for a user's mistake, 3 for a NaN, 130 or 143 when stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        arguments, overrides = _parse(words)
        asks_hydra = any(word.split("=")[0] in HYDRA_FLAGS for word in overrides)
        if asks_hydra and not as_json:
            return _hand_to_hydra(arguments, overrides)
        # With --json, stdout is the one object: whatever else anything prints goes to stderr.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            outcome: Outcome = (_configurations if asks_hydra else arguments.run)(arguments, overrides)
        if as_json:
            print(json.dumps(outcome.json, indent=1))
        else:
            outcome.show(Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))
        sys.stdout.flush()
        return outcome.exit_code
    except UserError as error:
        return _tell(error.kind, error.message, error.hint, error.exit_code, as_json)
    except Interrupted as event:
        return _tell("interrupted", event.message, "", event.exit_code, as_json)
    except KeyboardInterrupt:
        trains = bool(words) and words[0] in ("train", "ablate", "reproduce")
        stays = " A run that had written a checkpoint goes on from it." if trains else ""
        return _tell("interrupted", f"Stopped at once.{stays}", "", EXIT_INTERRUPTED, as_json)
    except BrokenPipeError:
        # The reader (head, say) went away; nothing more can be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _tell(kind: str, message: str, hint: str, exit_code: int, as_json: bool) -> int:
    if os.environ.get("EFFTX_DEBUG"):
        traceback.print_exc()
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}, indent=1))
    else:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]efftx:[/] {escape(message)}" + (f"\n       {escape(hint)}" if hint else "")
        )
    return exit_code


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    common = _Parser(add_help=False, allow_abbrev=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else")
    common.add_argument("--config-dir", action="append", default=[], help="a further folder of model/, data/, ...")
    parser = _Parser(prog="efftx", description=efftx.__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"efftx {efftx.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[..., Outcome], about: str, epilog: str = EPILOG) -> _Parser:
        sub = commands.add_parser(
            name,
            parents=[common],
            help=about,
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    command("train", _train, "Train, evaluate, write the run directory; the same command again resumes.")
    command("ablate", _ablate, "The product of key=a,b overrides as runs; finished ones are skipped.")
    reproduce = command("reproduce", _reproduce, "Run what an ITEM (reformer/table2, reformer, all) lacks; print it.")
    reproduce.add_argument("--stale", action="store_true", help="also run again what no longer comes out")
    reproduce.add_argument("--verify", action="store_true", help="replay the first steps of every record")
    reproduce.add_argument("--row", action="append", default=[], metavar="ROW", help="only this row; may be repeated")
    reproduce.add_argument("--yes", action="store_true", help="run even if it is priced above 24 hours")
    report = command("report", _report, "Print an ITEM, or write results/report from the records.")
    report.add_argument(
        "--check", action="store_true", help="fail if the committed report is not what the records give"
    )
    command("bench", _bench, BENCH_ABOUT, BENCH_EPILOG)
    plan = command("plan", _plan, "Parameters, FLOPs, memory and hours of a configuration; nothing is run.")
    plan.add_argument("--on", default=None, metavar="DEVICE", help="the device to count hours on")
    plan.add_argument("--utilisation", type=float, default=None, help="the share of its peak that is reached")
    command("sample", _sample, "Text from the newest checkpoint of a RUN, as it comes.", SAMPLE_EPILOG)
    command("data", _data, "list, prepare or verify the data sets.")
    command("list", _list, "Every table and figure, its state, and at which size.")
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in commands.choices:
        raise UserError("bad_command", f"There is no command '{named}'.", nearest(named, commands.choices))
    return parser.parse_known_args(words)


def _refuse_flags(words: Sequence[str], known: Sequence[str] = ()) -> None:
    for word in words:
        if word.startswith("-"):
            raise UserError("bad_command", f"There is no option '{word}' here.", nearest(word, known))


def _split_options(words: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Plain words and key=value options; UserError for a flag or an unknown key."""
    _refuse_flags(words)
    plain = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    for key in options:
        if key not in known:
            raise UserError("unknown_key", f"There is no option '{key}=' here.", nearest(key, known))
    return plain, options


def _train(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    from efftx.config import compose
    from efftx.report.terminal import show_training
    from efftx.training.loop import train

    _refuse_flags(overrides)
    config = compose(overrides, config_dirs=arguments.config_dir)
    result = train(config)
    return Outcome({**asdict(result), "run": str(result.run)}, lambda console: show_training(result, console))


def _ablate(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    from efftx.ablate import ablate
    from efftx.config import swept_keys
    from efftx.report.terminal import show_ablation

    _refuse_flags(overrides)
    runs = ablate(overrides, config_dirs=arguments.config_dir, say=_say)
    keys = swept_keys([word for word in overrides if not word.startswith("hydra")])
    failed = any(run["state"] == "failed" for run in runs)
    return Outcome({"runs": runs}, lambda console: show_ablation(runs, keys, console), 1 if failed else 0)


def _reproduce(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    from efftx.report.terminal import show_reproduced
    from efftx.reproduce.experiment import load_experiments, narrow, select
    from efftx.reproduce.runner import reproduce

    items, options = _split_options(words, ("size", "seeds", "jobs"))
    if not items:
        raise UserError(
            "bad_command", "Say which item.", "For instance reformer/table2, reformer, or all; see `efftx list`."
        )
    jobs = _numbers("jobs", options.get("jobs", "1"))
    if len(jobs) != 1 or jobs[0] < 1:
        raise UserError("bad_value", f"jobs={options['jobs']} must be one whole number, at least 1.")
    experiments = select(load_experiments(), items)
    chosen = narrow(experiments, arguments.row) if arguments.row else experiments
    # What exists at the paper's own size alone, a token's time at its true width, is meant where no size is given.
    by_size = {size: [e for e in chosen if e.usual_size() == size] for size in ("cpu", "paper")}
    lines = [
        line
        for size, group in ({options["size"]: chosen} if "size" in options else by_size).items()
        if group
        for line in reproduce(
            group,
            size,
            _numbers("seeds", options["seeds"]) if "seeds" in options else None,
            stale=arguments.stale,
            verify=arguments.verify,
            yes=arguments.yes,
            jobs=jobs[0],
            say=_say,
        )
    ]

    def show(console: Console) -> None:
        from efftx.report.build import print_item

        for experiment in experiments if not arguments.verify else ():
            print_item(experiment, console=console)
        show_reproduced(lines, console)

    return Outcome({"items": lines}, show, 1 if any(line["failed"] for line in lines) else 0)


def _report(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    from efftx.report.build import build_report, check_report, item_json, print_item
    from efftx.reproduce.experiment import load_experiments, select
    from efftx.reproduce.records import RecordStore

    items, _ = _split_options(words, ())
    experiments = load_experiments()
    if arguments.check:
        differences = check_report(None, list(experiments.values()))

        def show_differences(console: Console) -> None:
            if differences:
                differences.append("Records or replays came since it was written: `efftx report` writes it anew.")
            console.print("\n".join(differences) or "The report is what the records give.", markup=False)

        return Outcome({"differences": differences}, show_differences, 1 if differences else 0)
    if items:
        chosen = select(experiments, items)
        found = [item_json(experiment) for experiment in chosen]

        def show_items(console: Console) -> None:
            for experiment in chosen:
                print_item(experiment, console=console)

        return Outcome(found[0] if len(found) == 1 else {"items": found}, show_items)
    written = build_report(None, list(experiments.values()))
    page = RecordStore().root / "report" / "index.html"
    return Outcome(
        {"files": [str(path) for path in written], "page": str(page)},
        lambda console: console.print(f"{len(written)} files; the page is {page}", markup=False),
    )


def _bench(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    if not words:
        raise UserError(
            "bad_command",
            "Say what to measure.",
            "`efftx bench attention`, `efftx bench decode`, `efftx bench memory` or `efftx bench train`.",
        )
    if words[0] == "decode":
        # Huge pages: weights beyond the cache are read through few page-table entries, rows of them above all. PyTorch
        # reads this once, at its first allocation, so that it has to be set before torch is imported.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from efftx import bench

    result = bench.run(words[0], words[1:])
    return Outcome(result, lambda console: bench.print_table(result, console))


def _sample(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    from efftx.decoding.request import OPTIONS, read_request
    from efftx.decoding.sample import load_run, n_new_of, read_given, sample
    from efftx.report.terminal import generation_bar, show_samples, text_stream

    runs, options = _split_options(words, OPTIONS)
    if len(runs) != 1:
        message = "Say which run." if not runs else f"'{runs[1]}' is one run too many, or a part of a text."
        hint = "`efftx sample runs/<name> prompt='a text in quotes'`; the folder is what `efftx train` printed."
        raise UserError("bad_command", message, hint)
    request = read_request(options)
    trained = load_run(Path(runs[0]), request, _say)
    given = read_given(trained, request)
    n_new = n_new_of(trained, given, request)
    streams = request.n == 1 and request.beam is None and not arguments.json
    if given.from_test:
        key = "prompt" if trained.is_language_model else "input"
        _say(f"No {key}= is given: the first row of the test split of data={trained.config.data.name} is taken.")
    on_text = text_stream(trained, given) if streams else None
    with generation_bar(n_new * (1 if request.beam else request.n), shown=not streams) as on_token:
        found = sample(trained, given, request, on_text=on_text, on_token=on_token)

    def show(console: Console) -> None:
        show_samples(found, console, streamed=streams)
        _say(f"{sum(len(one.tokens) for one in found.samples)} tokens, {found.tokens_per_second:,.1f} tokens/s")

    return Outcome(found.to_json(), show)


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    from efftx.config import compose
    from efftx.plan import plan, print_plan

    _refuse_flags(overrides)
    sized = any(word.startswith(("size=", "preset=")) for word in overrides)
    config = compose(overrides if sized else ["size=paper", *overrides], config_dirs=arguments.config_dir)
    options = {"device": arguments.on, "utilisation": arguments.utilisation}
    result = plan(config, **{key: value for key, value in options.items() if value is not None})
    return Outcome(result, lambda console: print_plan(result, console))


def _data(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    from efftx.config import compose
    from efftx.data import catalogue
    from efftx.data.dataset import find_source, names
    from efftx.report.terminal import show_data

    plain, _ = _split_options([w for w in words if not w.startswith("data.")], ())
    settings = [w for w in words if w.startswith("data.")]
    actions = ("list", "prepare", "verify")
    if not plain or plain[0] not in actions:
        raise UserError("bad_command", "Say list, prepare NAME or verify [NAME].", nearest("".join(plain[:1]), actions))
    action, chosen = plain[0], plain[1:]
    for name in chosen:
        find_source(name)
    if action == "prepare":
        if not chosen:
            raise UserError("bad_command", "Say which data set to prepare.", f"Known: {', '.join(names())}.")
        rows = [
            catalogue.prepare(compose([f"data={name}", *settings], config_dirs=arguments.config_dir).data)
            for name in chosen
        ]
    else:
        rows = [row for row in catalogue.list_data() if not chosen or row["name"] in chosen]
    damaged = action == "verify" and any(row["state"] == "damaged" for row in rows)
    return Outcome({"data": rows}, lambda console: show_data(rows, console), 1 if damaged else 0)


def _list(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    from efftx.report.terminal import show_list
    from efftx.reproduce.experiment import load_experiments, select
    from efftx.reproduce.records import RecordStore
    from efftx.reproduce.runner import state_of

    items, _ = _split_options(words, ())
    experiments = load_experiments()
    chosen = select(experiments, items) if items else list(experiments.values())
    store = RecordStore()
    states = [state_of(experiment, store) for experiment in chosen]
    return Outcome({"items": states}, lambda console: show_list(states, console))


def _configurations(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """`--cfg` with `--json`: the resolved configuration, one a point in an ablation."""
    from efftx.config import compose, expand_sweeps, hydra_words, to_dict

    flags, overrides = hydra_words(words)
    if not {"--cfg", "-c"} & set(flags):
        raise UserError("bad_command", f"{flags[0]} is Hydra's own and prints no JSON.", "Leave --json out.")
    points = expand_sweeps(overrides) if arguments.command == "ablate" else [overrides]
    found = [
        {"overrides": point, "config": to_dict(compose(point, config_dirs=arguments.config_dir))} for point in points
    ]
    return Outcome({"configurations": found}, lambda console: None)


def _hand_to_hydra(arguments: argparse.Namespace, words: list[str]) -> int:
    """`--cfg`, `--info` and shell completion are Hydra's; an ablation shows one configuration a point."""
    from efftx.config import compose, expand_sweeps, hydra_words, run_hydra

    if arguments.command not in ("train", "ablate", "plan"):
        raise UserError("bad_command", f"`efftx {arguments.command}` composes no configuration.", "Use `efftx train`.")
    flags, overrides = hydra_words(words)
    if {"--package", "-p", "--resolve"} & set(flags) and not {"--cfg", "-c"} & set(flags):
        raise UserError("bad_command", f"{flags[0]} says how to show a configuration.", "Put `--cfg job` beside it.")
    for point in expand_sweeps(overrides) if arguments.command == "ablate" else [overrides]:
        if "--shell-completion" not in flags and "-sc" not in flags:
            compose(point, config_dirs=arguments.config_dir)
        if arguments.command == "ablate":
            print(f"# {' '.join(point)}")
        run_hydra([*flags, *point], arguments.config_dir)
    return 0


def _numbers(key: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            "bad_type", f"{key}={text} is not a list of whole numbers.", f"For instance {key}=0,1,2."
        ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
