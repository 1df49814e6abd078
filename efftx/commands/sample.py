"""`efftx sample`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from efftx.commands.outcome import Outcome
from efftx.core.counts import count
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.options import Options
from efftx.sampling.request import OPTIONS, read_request
from efftx.terminal import generation_bar, show_samples, text_stream


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Samples from a run; one text is written as it comes."""
    options = Options(words, OPTIONS, paths=True)
    runs = options.plain
    if len(runs) != 1:
        message = "Say which run." if not runs else f"'{runs[1]}' is one run too many, or a part of a text."
        hint = "`efftx sample runs/<name> prompt='a text in quotes'`; the folder is what `efftx train` printed."
        raise UserError("bad_command", message, hint)
    request = read_request(options.given)

    from efftx.sampling.sample import n_new_of, read_given, sample  # imports torch: what is wrong is told before
    from efftx.sampling.trained import load_run

    trained = load_run(Path(runs[0]), request, say)
    prompt = read_given(trained, request)
    n_new = n_new_of(trained, prompt, request)
    streams = trained.rendering.kind == "text" and request.n == 1 and request.beam is None and not arguments.json
    if prompt.from_test and prompt.starts:
        n = len(prompt.starts)
        say(f"The first {n} rows of the test split of data={trained.config.data.name} are completed.")
    elif prompt.from_test:
        key = "prompt" if trained.is_language_model else "input"
        say(f"No {key}= is given: the first row of the test split of data={trained.config.data.name} is taken.")
    on_text = text_stream(trained, prompt) if streams else None
    with generation_bar(n_new * (1 if request.beam else request.n), shown=not streams) as on_token:
        samples = sample(trained, prompt, request, on_text=on_text, on_token=on_token)

    def show(console: Console) -> None:
        show_samples(samples, console, streamed=streams)
        n_tokens = sum(len(one.tokens) for one in samples.samples)
        say(f"{count(n_tokens, 'token')}, {samples.tokens_per_second:,.1f} tokens/s")

    return Outcome(samples.to_json(), show)
