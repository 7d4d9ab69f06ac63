"""The command line's options for calibrations."""

import argparse

from medusa_trt.calibration.calibrate_options import (
    DEFAULT_MAX_KL,
    DEFAULT_MAX_NEW_TOKENS,
    LatencyOptions,
    ThresholdOptions,
    TreeOptions,
)


def add_replies_arguments(
    parser: argparse.ArgumentParser,
    *,
    num_prompts: int | None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
) -> None:
    """Where the prompts come from and how long the replies are."""
    parser.add_argument(
        "--prompts",
        default="packaged",
        metavar="SOURCE",
        help='packaged, mt-bench, or a file: JSON lines with "prompt" or "turns" (the first is '
        "asked), or text with a prompt on each line",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        default=num_prompts,
        metavar="N",
        help="how many of them" + ("" if num_prompts else " (default: all, at most 64)"),
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="limit on each reply, in tokens",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """What step times are measured for."""
    options = LatencyOptions()
    for name, values, help_ in (
        ("--sizes", options.sizes, "numbers of nodes to measure"),
        ("--contexts", options.contexts, "tokens in the cache"),
    ):
        shown = ",".join(map(str, values))
        parser.add_argument(name, default=shown, metavar="LIST", help=help_)
    parser.add_argument(
        "--rounds",
        type=int,
        default=options.rounds,
        metavar="N",
        help="samples of each size at each context",
    )
    _add_batch_size(parser)


def add_tree_arguments(parser: argparse.ArgumentParser) -> None:
    """What the best tree is searched for."""
    options = TreeOptions()
    _add_batch_size(parser)
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens in the cache (default: the replies' mean)"
    )
    parser.add_argument(
        "--max-nodes",
        type=int,
        default=options.max_nodes,
        metavar="N",
        help="most nodes of a tree",
    )
    parser.add_argument(
        "--min-speedup",
        type=float,
        default=options.min_speedup,
        metavar="X",
        help="recommend plain decoding where no tree is so many times faster",
    )
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle's tree as it is")


def add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    """Which thresholds are compared."""
    options = ThresholdOptions()
    for name, values, help_ in (
        ("--thresholds", options.thresholds, "values of ε to compare"),
        ("--temperatures", options.temperatures, "temperatures to compare them at"),
    ):
        shown = ",".join(f"{value:g}" for value in values)
        parser.add_argument(name, default=shown, metavar="LIST", help=help_)
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="δ",
        help="one δ for all ε (default: sqrt(ε), as in the paper)",
    )
    for name, loss, help_ in (
        ("--quality-loss", options.quality_loss, "log-likelihood, in nats a token"),
        ("--diversity-loss", options.diversity_loss, "distinct-2"),
    ):
        parser.add_argument(
            name,
            type=float,
            default=loss,
            metavar="X",
            help=f"recommend an ε that loses at most X of the sampler's {help_}",
        )


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """What formats are chosen for."""
    parser.add_argument(
        "--model", help="the unquantized model (default: what the bundle calls its model)"
    )
    parser.add_argument("--target", help="where the plan is to run (default: the bundle's target)")
    parser.add_argument(
        "--formats",
        metavar="LIST",
        help="formats to choose from (default: int4,int8 for ort-cpu, int4,int8,fp16 for a device)",
    )
    parser.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="find the smallest plan with at most this KL divergence from the unquantized model, "
        f"in nats a token (default: {DEFAULT_MAX_KL})",
    )
    parser.add_argument(
        "--max-size",
        type=float,
        metavar="MB",
        help="instead: find the plan with the least KL divergence whose matrices take at most this",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="sequences stepped together",
    )
