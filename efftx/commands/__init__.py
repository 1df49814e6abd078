"""The commands of efftx: what each takes and is said of it; its module, of the same name, is imported when it runs."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from efftx.commands.roots import DATA, RESULTS, RUNS
from efftx.commands.words import OVERRIDES

_SMALLER = "a smaller data.length or a smaller d_model"


def _no_options(parser: ArgumentParser) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """A command's line in `efftx --help`, what stands below its options, and the folders it uses without being told.

    Its module `efftx.commands.<name>`, or `module`, has `run(arguments, words) -> Outcome`. What imports torch is
    imported inside `run`, once all that is cheap to refuse has been. `composes`: it reads overrides of a configuration,
    from folders of the user's own too. `distributed`: `torchrun` may start several processes of it. `less_memory`: what
    to ask for where memory ran out; empty where no option of the command takes less.
    """

    name: str
    about: str
    epilog: str = OVERRIDES
    roots: tuple[str, ...] = ()
    add_options: Callable[[ArgumentParser], None] = _no_options
    composes: bool = False
    distributed: bool = False
    less_memory: str = ""
    module: str = ""

    def load(self) -> Any:
        """The command's module."""
        return importlib.import_module(f"efftx.commands.{self.module or self.name}")


_REPRODUCE = """efftx reproduce ITEM... [size=cpu] [seeds=0,1,2] [jobs=1]
ITEM is a table or figure (reformer/table2), a paper (reformer), or all;
`efftx list` names them. Behind it stand key=value words:
  size=      cpu, gpu, paper or smoke; without it cpu, or paper where there is
             no other
  seeds=     such as 0,1,2, in place of the item's own
  jobs=      so many trainings side by side
  swept=     only the runs of the item's sweep at this value
  tracker.wandb=true, and tracker.project=, entity=, group=, tags=
             mirrors every training; the group is the item where none is given
  tracker.tensorboard=true  writes its event files beside it"""

_REPORT = """efftx report [ITEM...] [size=cpu]
ITEM is a table or figure (reformer/table2), a paper (reformer), or all;
`efftx list` names them; size= shows it at one size alone. Without an item, the
report of all is written into results/report: Markdown, LaTeX, CSV, SVG and one
HTML page, all without what was rehearsed at size smoke."""

_BENCH = """efftx bench attention|decode|memory|train [key=value...]
attention   a whole attention layer:
            lengths=, names=, pass=, repeats=, device=
decode      a token at the papers' widths, part by part: names=, context=,
            batch=, prompts= (time to the first token), widths=, tokens=,
            protocol=authors or steady, repeats=, seed=, cache_bytes=; names
            such as 800m-dense, 17b-ff-qkv, width-512-sparse,
            logits-1024-s4, with -int8, -int4 or -blocks2 behind them, and
            transformers-t5, transformers-gpt2, torchao-t5-int8,
            ctranslate2-gpt2, ctranslate2-gpt2-int8,
            llama-cpp-gpt2, llama-cpp-gpt2-q8_0, llama-cpp-gpt2-q4_0
memory      peak activations of a training step:
            names=, depths=, lengths=, batch=, device=
train       steps and tokens a second beside a loop written by hand: the
            keys of memory, and repeats="""

_SAMPLE = """efftx sample RUN [prompt=...]
RUN is the directory that `efftx train` printed; after it stand key=value words:
  prompt='...'       text that a language model goes on from
  input='...'        text for an encoder, in the form of the data's own inputs
                     (without either: from the first row of the test split)
  max_new=           tokens at most
  temperature=, top_k=, top_p=
                     draw, in this order; without any of them the most likely
                     token is taken (greedy)
  beam=, length_penalty=
                     search; the penalty is ((5 + length) / 6)^x, x = 0.6
                     unless given
  n=                 samples, or the n best of a beam
  complete=, data.path=, out=
                     of pictures and sounds, which are drawn and written to a
                     file: the share of a row that is given (of the file at
                     data.path, or of test rows), and the file
  seed=, threads=, quantization=int8 or int4"""

_IMPORT = """efftx import trax FILE.npz data=... [overrides]
efftx import hf FOLDER data=... [first_token=0] [overrides]
The weights become a run, which is evaluated as a training is at its end, and
which `efftx sample`, `efftx train pretrained=` and `efftx export` take.
  trax   arrays under the names of the authors' code, from its checkpoints;
         what shapes do not tell are overrides, such as attention=[local,lsh]
  hf     a folder of transformers with a ReformerModelWithLMHead, such as
         google/reformer-crime-and-punishment; its config.json is read
  first_token=   the entries at the start of its vocabulary that are no tokens
         of the data: 2 of google/reformer-enwik8, whose byte b is token b + 2"""

_EXPORT = """efftx export trax RUN FILE.npz
efftx export hf RUN FOLDER"""

_COMPARE = """efftx compare RUN RUN [out=curves.svg]
The keys in which two runs differ, their metrics at the end, and their
validation curves step by step; with out= also drawn over each other."""

_DATA = """list              what each data set and trained vocabulary is, and whether its
                  bytes are here
prepare NAME      makes its bytes ready; data.path= and the other data. keys
                  are those of `efftx train`
verify [NAME]     reads the prepared bytes and compares their checksums, without
                  NAME those of all"""

_POWER = """efftx power ITEM... [size=cpu]
ITEM is a table or figure (reformer/table2), a paper (reformer), or all.
From the spreads of its records, for every claim: the difference that 3, 5, 10
and 20 seeds find at 80 % power, the seeds that its margin or the measured
difference needs, and the hours that those beyond the recorded ones cost.
  size=      cpu, gpu, paper or smoke; without it cpu, or paper where there is
             no cpu"""

_PLAN = f"""{OVERRIDES}
Without size= the model has the paper's size: size=paper.

--on takes v100, a100, h100, h200, tpu-v3-core, or cpu-2-core for so many cores.

devices=64 plans one training that so many devices share, as replicas (DDP)
and in shards (FSDP2)."""

_LIST = """efftx list [ITEM...]
ITEM is a table or figure (reformer/table2), a paper (reformer), or all."""


def _reproduce_options(parser: ArgumentParser) -> None:
    parser.add_argument("--stale", action="store_true", help="also run again what no longer comes out")
    parser.add_argument("--verify", action="store_true", help="replay the first steps of every record")
    parser.add_argument("--part", metavar="K/N", help="with --verify: every N-th record, from the K-th on")
    parser.add_argument("--row", action="append", default=[], metavar="ROW", help="only this row; may be repeated")
    parser.add_argument("--yes", action="store_true", help="run even if it is priced above 24 hours")


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="fail if the committed report is not what the records give"
    )
    parser.add_argument("--against", metavar="OTHER", help="set another results folder beside this one")
    parser.add_argument("--html", metavar="PAGE", help="with --against: write both on one page")


def _plan_options(parser: ArgumentParser) -> None:
    parser.add_argument("--on", default=None, metavar="DEVICE", help="the device to count hours on")
    parser.add_argument("--utilisation", type=float, default=None, help="the share of its peak that is reached")


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            "Train, evaluate, write the run directory; again: resume.",
            roots=(RUNS, DATA),
            composes=True,
            distributed=True,
            less_memory=_SMALLER,
        ),
        Command(
            "ablate",
            "Run the product of key=a,b overrides; skip what is done.",
            roots=(RUNS, DATA),
            composes=True,
            less_memory=_SMALLER,
        ),
        Command(
            "reproduce",
            "Run what a table, figure or paper lacks; print it.",
            _REPRODUCE,
            roots=(RUNS, RESULTS, DATA),
            add_options=_reproduce_options,
            less_memory="a smaller size= or fewer jobs=",
        ),
        Command(
            "report",
            "Print a table or figure, or write the whole report.",
            _REPORT,
            roots=(RESULTS,),
            add_options=_report_options,
        ),
        Command(
            "bench",
            "Measure speed and memory against bounds and peers.",
            _BENCH,
        ),
        Command(
            "plan",
            "Parameters, FLOPs, memory, hours; nothing is run.",
            _PLAN,
            add_options=_plan_options,
            composes=True,
            less_memory=_SMALLER,
        ),
        Command(
            "sample",
            "Write text from the newest checkpoint of a run.",
            _SAMPLE,
            less_memory="a smaller max_new or a smaller n",
        ),
        Command(
            "import",
            "Make a run of the authors' or transformers' weights.",
            _IMPORT,
            roots=(RUNS, DATA),
            composes=True,
            less_memory=_SMALLER,
            module="import_weights",
        ),
        Command("export", "Write a run's weights as the authors or transformers have them.", _EXPORT),
        Command("compare", "What differs between two runs, and their curves.", _COMPARE),
        Command("data", "List, prepare or verify the data sets.", _DATA, roots=(DATA,), composes=True),
        Command("power", "What seeds can see, and what more of them would cost.", _POWER, roots=(RESULTS,)),
        Command("list", "Every table and figure, its state, and at which size.", _LIST, roots=(RESULTS,)),
    )
}
