"""The command line's sampling options, the same for every verb that makes replies."""

import argparse
from typing import get_args

from medusa_trt.runtime.options import GREEDY, AcceptanceName, SamplingOptions


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--temperature` to `--seed`, and `--acceptance`; the defaults are the runtime's."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        default=GREEDY.temperature,
        metavar="T",
        help="divides the logits; 0: the likeliest token",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=GREEDY.top_k,
        metavar="K",
        help="draw from the K likeliest tokens; 0: all",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=GREEDY.top_p,
        metavar="P",
        help="draw from the likeliest tokens that together reach P",
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=GREEDY.min_p,
        metavar="P",
        help="draw from tokens at least P times as likely as the likeliest",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=GREEDY.seed,
        metavar="N",
        help="makes sampling repeatable (default: a new one each time)",
    )
    group.add_argument(
        "--acceptance",
        choices=get_args(AcceptanceName),
        help="how drafts are accepted; typical accepts more and changes the distribution "
        "(default: greedy at temperature 0, else sample)",
    )


def sampling_from_arguments(arguments: argparse.Namespace) -> SamplingOptions:
    """The distribution that the arguments ask for; `acceptance` is the caller's to pass on.

    Raises:
        PromptError: a value is out of range.
    """
    return SamplingOptions(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
    )
