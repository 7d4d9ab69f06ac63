"""The command line: `medusa-trt VERB` and `medusa-export`."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from medusa_trt import __version__
from medusa_trt.cli.parser import Parser
from medusa_trt.cli.sampling import add_sampling_arguments, sampling_from_arguments
from medusa_trt.cli.session import (
    add_drafting_arguments,
    add_reply_limit,
    add_session_arguments,
    session_from_arguments,
)
from medusa_trt.errors import MedusaError
from medusa_trt.interrupts import interrupted_exit_code

_VERBS = {
    "chat": "hold a conversation in the terminal",
    "bench": "compare Medusa with plain decoding",
    "build": "build TensorRT engines from a bundle",
    "deploy": "write what a device or container needs to run a bundle",
    "heads": "inspect head checkpoints, convert them between formats",
    "train": "train heads on the model's own replies",
    "inspect": "show what a bundle holds and what it needs",
    "verify": "compare a bundle with its model",
    "models": "list the models known by a short name",
    "doctor": "say what this machine can run and what to install",
    "calibrate": "find the tree and thresholds that are best on this machine",
}

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `medusa-trt`; returns the exit code."""
    return _run(new_parser().parse_args(argv))


def new_parser() -> argparse.ArgumentParser:
    """The parser of `medusa-trt` with all its verbs."""
    parser = Parser(prog="medusa-trt", description="Medusa decoding toolchain.")
    parser.add_argument("--version", action="version", version=f"medusa-trt {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_export_arguments(verbs.add_parser("export", help="make a bundle from a model"))
    _add_generate_arguments(verbs.add_parser("generate", help="answer a prompt"))
    for module, help_ in _VERBS.items():
        _add_verb(verbs.add_parser(module, help=help_), module)
    return parser


def _add_verb(parser: argparse.ArgumentParser, module: str) -> None:
    """A verb with a module of its own: `add_arguments(parser)` and `run(arguments)`."""
    verb = import_module(f"medusa_trt.cli.{module}")
    verb.add_arguments(parser)
    parser.set_defaults(run=verb.run)


def export_main(argv: Sequence[str] | None = None) -> int:
    """Runs `medusa-export`, the same as `medusa-trt export`; returns the exit code."""
    parser = Parser(
        prog="medusa-export", description="Export a model with its Medusa heads to a bundle."
    )
    _add_export_arguments(parser)
    return _run(parser.parse_args(argv))


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="alias, folder, .gguf file or hub id")
    parser.add_argument(
        "--heads",
        help="heads in any format: file, folder or hub id (default: those known for the model, or "
        "found beside it)",
    )
    parser.add_argument(
        "--tree",
        help="tree name (plain, chain-3, cartesian-2x3, ...) or file (default: the one known for "
        "the model, else the target's)",
    )
    parser.add_argument("--precision", help="weight precision (default: the target's)")
    parser.add_argument(
        "--quantization-plan",
        type=Path,
        metavar="FILE",
        help="a format for each weight, as medusa-trt calibrate quantization writes it",
    )
    parser.add_argument("--target", default="ort-cpu", help="where it runs")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="the bundle to write (default: the model's name, in the current folder)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest sequence, in tokens (default: the model's, at most the target's)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="use the model's shape (vicuna-7b, vicuna-13b or a config.json) without its weights",
    )
    parser.add_argument(
        "--layers", type=int, metavar="N", help="with random weights: only N layers (default: all)"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_export)


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument("prompt", help="the prompt; - reads standard input")
    parser.add_argument("--raw", action="store_true", help="do not use the chat template")
    add_reply_limit(parser)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the reply before this text; may be repeated",
    )
    parser.add_argument("--echo", action="store_true", help="show the prompt before the reply")
    add_sampling_arguments(parser)
    add_drafting_arguments(parser)
    add_session_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_generate)


def _run(arguments: argparse.Namespace) -> int:
    """Runs a verb: one line and exit code 2 for whatever a user can cause."""
    try:
        code = arguments.run(arguments)
    except MedusaError as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of the output has left, as `head` does; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return interrupted_exit_code()
    return int(code or 0)


def _export(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()

    def progress(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    progress("starting")
    try:
        from medusa_trt.export.pipeline import ExportOptions, export_bundle
    except ImportError as error:
        raise MedusaError(
            f"exporting needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error
    bundle = export_bundle(
        ExportOptions(
            model=arguments.model,
            output=arguments.output,
            heads=arguments.heads,
            tree=arguments.tree,
            precision=arguments.precision,
            quantization_plan=arguments.quantization_plan,
            target=arguments.target,
            max_length=arguments.max_length,
            overwrite=arguments.overwrite,
            random_weights=arguments.random_weights,
            num_layers=arguments.layers,
        ),
        progress,
    )
    size_bytes = sum(spec.size_bytes for spec in bundle.manifest.files.values())
    progress(f"wrote {bundle.path} ({size_bytes / 1e6:.0f} MB)")


def _generate(arguments: argparse.Namespace) -> int:
    from medusa_trt.runtime.options import GenerationOptions
    from medusa_trt.tree_configs import load_tree

    tree = load_tree(arguments.tree) if arguments.tree else None
    options = GenerationOptions(
        max_new_tokens=arguments.max_new_tokens,
        tree=tree,
        lookup_ngram=arguments.lookup_ngram,
        sampling=sampling_from_arguments(arguments),
        acceptance=arguments.acceptance,
        stop=tuple(arguments.stop),
        echo=arguments.echo,
    )
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    with session_from_arguments(arguments.bundle, arguments) as session:
        chat = session.text.has_chat_template and not arguments.raw
        asked = [{"role": "user", "content": prompt}] if chat else prompt
        for event in session.stream(asked, options):
            print(event.text, end="", flush=True)
            if event.generation is not None:
                stats, reason = event.generation.stats, event.generation.finish_reason
    total_s = stats.prefill_s + stats.decode_s
    print(
        f"\n\n{stats.new_tokens} tokens in {total_s:.2f} s (first after {stats.prefill_s:.2f} s), "
        f"{stats.tokens_per_s:.1f} tokens/s, mean accepted length "
        f"{stats.mean_accept_length:.2f}, ended by {reason}",
        file=sys.stderr,
    )
    return interrupted_exit_code() if reason == "cancelled" else 0


if __name__ == "__main__":
    sys.exit("error: this module is no command: run python -m medusa_trt")
