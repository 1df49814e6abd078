"""The command line: finds the command, runs it, and prints what it gives; a mistake becomes one message."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import efftx
from efftx.commands import COMMANDS, Command
from efftx.commands.outcome import Outcome, as_json, console, show_error, tolerate_any_console
from efftx.commands.roots import NATIVE, check_roots, check_switch
from efftx.commands.words import COMPLETION_FLAGS, HYDRA_FLAGS, OVERRIDES, refuse_flags, refuse_ranks
from efftx.core.memory import allocating
from efftx.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Interrupted, UserError, nearest
from efftx.parent import end_with_parent


class _Terminated(KeyboardInterrupt):
    """SIGTERM, where the command does not answer it itself."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("bad_command", message, f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code.

    0; 1 where something of what was asked failed; 2 for a user's mistake; 3 for a NaN; 4 where a training that had
    begun ran out of memory; 130 or 143 when stopped.
    """
    end_with_parent()
    words = list(sys.argv[1:] if argv is None else argv)
    json = "--json" in words
    tolerate_any_console()
    try:
        with _terminated_by_exception():
            return _run(words, json)
    except UserError as error:
        return _tell(error.kind, error.message, error.hint, error.exit_code, json)
    except Interrupted as event:
        return _tell("interrupted", event.message, "", event.exit_code, json)
    except KeyboardInterrupt as event:
        trains = next((word for word in words if word in COMMANDS), "") in ("train", "ablate", "reproduce")
        stays = " A run that had written a checkpoint goes on from it." if trains else ""
        code = EXIT_TERMINATED if isinstance(event, _Terminated) else EXIT_INTERRUPTED
        return _tell("interrupted", f"Stopped at once.{stays}", "", code, json)
    except BrokenPipeError:
        # The reader (head, say) went away; nothing more can be told.
        _discard_stdout()
        return 0
    except OSError as error:
        # A full disk, a folder that vanished, a file that may not be read, and no place nearer by that said so.
        try:
            sys.stdout.flush()
        except OSError:
            _discard_stdout()
        where = f" ({error.filename})" if error.filename else ""
        hint = "EFFTX_DEBUG=1 shows where."
        return _tell("system_error", f"The system refuses: {error.strerror or error}{where}.", hint, 2, json)
    except Exception as error:
        # A fault of ours is a traceback; a script that asked for JSON is answered all the same.
        if not json:
            raise
        if not os.environ.get("EFFTX_DEBUG"):
            traceback.print_exc()
        hint = "This is a fault of efftx; the traceback on stderr says where."
        return _tell("internal_error", f"{type(error).__name__}: {error}", hint, 1, json)


def _run(words: list[str], json: bool) -> int:
    if words and words[0] in COMPLETION_FLAGS:
        from efftx.commands.completion import complete

        print(complete(words[1:]))
        return 0
    command, arguments, rest = _parse(words)
    asks_hydra = any(word.split("=")[0] in HYDRA_FLAGS for word in rest)
    if asks_hydra:
        from efftx.commands.configuration import configurations, hand_to_hydra

        if not json:
            return hand_to_hydra(command, arguments, rest)
    # With --json, stdout is the one object: whatever else anything prints goes to stderr.
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        if asks_hydra:
            outcome: Outcome = configurations(command, arguments, rest)
        else:
            if not COMMANDS[command].distributed:
                refuse_ranks(command)
            check_roots(COMMANDS[command].roots)
            check_switch(NATIVE)
            with allocating(f"`efftx {command}` found none left", COMMANDS[command].less_memory):
                outcome = COMMANDS[command].load().run(arguments, rest)
    try:
        if json and outcome.shown:
            print(as_json(outcome.json))
        elif outcome.shown:
            outcome.show(console())
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        if not json:  # else stdout is tried once more, for the error
            _discard_stdout()
        message = f"What `efftx {command}` prints cannot be written: {error.strerror or error}."
        raise UserError("cannot_write", message, "Free some space there, or send the output elsewhere.") from error
    return outcome.exit_code


def _parse(words: list[str]) -> tuple[str, argparse.Namespace, list[str]]:
    """The command's name, its options, and the words behind it that are not options."""
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    top = _Parser(
        prog="efftx",
        description="Regenerates the tables and figures of three papers on efficient Transformers.",
        epilog=OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--shell-completion", metavar="install=SHELL", help="print what bash, zsh or fish evaluates")
    top.add_argument("--version", action="version", version=f"efftx {efftx.__version__}")
    _add_common(top)
    shown = top.add_subparsers(title="commands", metavar="COMMAND")
    for each in COMMANDS.values():
        shown.add_parser(each.name, help=each.about)
    _, unknown = top.parse_known_args(words[:at])
    refuse_flags(unknown, [*top._option_string_actions])
    if at == len(words):
        raise UserError("bad_command", "Say which command.", f"Known: {', '.join(COMMANDS)}. See `efftx --help`.")
    name = words[at]
    if name not in COMMANDS:
        raise UserError("bad_command", f"There is no command '{name}'.", nearest(name, COMMANDS))
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"efftx {name}",
        description=command.about,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    if command.composes:
        parser.add_argument("--config-dir", action="append", default=[], help="a further folder of model/, data/, ...")
    command.add_options(parser)
    arguments, rest = parser.parse_known_args(words[at + 1 :])
    refuse_flags(
        [word for word in rest if word.split("=")[0] not in HYDRA_FLAGS],
        [*parser._option_string_actions, *(HYDRA_FLAGS if command.composes else ())],
        lambda: _settings(command),
    )
    arguments.json = "--json" in words
    return name, arguments, rest


def _settings(command: Command) -> set[str]:
    """What may stand before an equals sign behind a command: what its help has there, and keys of a configuration."""
    named = set(re.findall(r"([\w.]+)=", command.epilog))
    if not command.composes:
        return named
    from efftx.config.compose import GROUPS, known_keys

    return {*named, *GROUPS, *known_keys()}


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else")


@contextlib.contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does here, so that its files are closed and --json is answered."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shortened(text: str) -> str:
    """A sentence stays one where a word of thousands of letters is quoted in it; a path of usual length stays whole."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:200]}...{word[0][-100:]}", text)


def _discard_stdout() -> None:
    """What stdout still holds goes nowhere, so that Python's last flush has nothing to complain of."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(kind: str, message: str, hint: str, exit_code: int, json: bool) -> int:
    if os.environ.get("EFFTX_DEBUG"):
        traceback.print_exc()
    message, hint = _shortened(message), _shortened(hint)
    if json:
        try:
            print(as_json({"error": {"kind": kind, "message": message, "hint": hint}}), flush=True)
            return exit_code
        except OSError:
            _discard_stdout()
    show_error(message, hint)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
