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
        "asked), or text with a prompt on each line (default: %(default)s)",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        default=num_prompts,
        metavar="N",
        help=f"how many of them (default: {num_prompts or 'up to 64'})",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="limit on each reply (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of sampling (default: %(default)s)"
    )


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """What step times are measured for."""
    options = LatencyOptions()
    for name, values, help_ in (
        ("--sizes", options.sizes, "numbers of nodes"),
        ("--contexts", options.contexts, "tokens in the cache"),
    ):
        shown = ",".join(map(str, values))
        parser.add_argument(
            name, default=shown, metavar="LIST", help=f"{help_} (default: %(default)s)"
        )
    parser.add_argument(
        "--rounds",
        type=int,
        default=options.rounds,
        metavar="N",
        help="samples of each (default: %(default)s)",
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
        help="most nodes of a tree (default: %(default)s)",
    )
    parser.add_argument(
        "--min-speedup",
        type=float,
        default=options.min_speedup,
        metavar="X",
        help="recommend plain decoding below it (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle's tree as it is")


def add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    """Which thresholds are compared."""
    options = ThresholdOptions()
    for name, values, help_ in (
        ("--thresholds", options.thresholds, "values of ε"),
        ("--temperatures", options.temperatures, "temperatures"),
    ):
        shown = ",".join(f"{value:g}" for value in values)
        parser.add_argument(
            name, default=shown, metavar="LIST", help=f"{help_} (default: %(default)s)"
        )
    parser.add_argument(
        "--alpha", type=float, metavar="δ", help="one δ for all (default: sqrt(ε), as the paper)"
    )
    for name, loss, help_ in (
        ("--quality-loss", options.quality_loss, "nats a token less than the sampler's replies"),
        ("--diversity-loss", options.diversity_loss, "distinct-2 less than the sampler's replies"),
    ):
        parser.add_argument(
            name,
            type=float,
            default=loss,
            metavar="X",
            help=f"recommend nothing with {help_} (default: %(default)s)",
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
        help="to choose from (default: int4,int8 for ort-cpu, int4,int8,fp16 for a device)",
    )
    parser.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="the smallest plan with at most this KL divergence from the unquantized model, nats "
        f"a token (default: {DEFAULT_MAX_KL})",
    )
    parser.add_argument(
        "--max-size",
        type=float,
        metavar="MB",
        help="instead: the plan with the least KL divergence whose matrices take at most this",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="sequences stepped together (default: %(default)s)",
    )
