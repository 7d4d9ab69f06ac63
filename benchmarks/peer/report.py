"""Results of `peers.py` and their tables."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peer.load import PeerLoad, count_different, print_loads
from rich.console import Console
from rich.table import Table

from medusa_trt.runtime.engines.machine import Machine

_REFERENCES = ("transformers-fp32", "medusa-trt-fp32-plain")
_MEDUSA = "-medusa"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReply:
    """One reply of one contender.

    Attributes:
        contender: name of the contender.
        threads: its number of threads.
        prompt: index of the prompt.
        token_ids: the reply.
        first_token_s: seconds from the request to the first token.
        decode_s: seconds for the tokens after the first.
        num_steps: evaluations of the model in `decode_s`.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    contender: str
    threads: int
    prompt: int
    token_ids: list[int]
    first_token_s: float
    decode_s: float
    num_steps: int
    peak_memory_bytes: int

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of the tokens after the first one."""
        return (len(self.token_ids) - 1) / self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """Speed of all tokens, with the time to read the prompt."""
        return len(self.token_ids) / (self.first_token_s + self.decode_s)


@dataclass(slots=True, kw_only=True)
class PeerReport:
    """All results of a run.

    Attributes:
        command: the command line.
        date: start of the run, UTC.
        model: model that the other runtimes ran.
        num_tokens: tokens of every reply.
        prompt_lengths: tokens of each prompt.
        machine: hardware, and this project's versions.
        versions: versions of each contender's packages.
        left_out: contenders that failed or could not be set up, with the reason.
        is_complete: false after an interruption.
        replies: all measured replies, of one request at a time.
        loads: all measured rounds of several requests at the same time.
    """

    command: str
    date: str
    model: str
    num_tokens: int
    prompt_lengths: list[int]
    machine: Machine
    versions: dict[str, dict[str, str]]
    left_out: dict[str, str]
    is_complete: bool
    replies: list[PeerReply]
    loads: list[PeerLoad]

    def select(self, contender: str, threads: int) -> list[PeerReply]:
        """Selects a contender's replies, in the order of the prompts."""
        return [
            reply
            for reply in self.replies
            if reply.contender == contender and reply.threads == threads
        ]


def find_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Finds the index of the first different token; None for equal replies.

    If one reply is the beginning of the other, the index is the length of the shorter one.
    """
    if left == right:
        return None
    pairs = zip(left, right, strict=False)
    differing = (index for index, (a, b) in enumerate(pairs) if a != b)
    return next(differing, min(len(left), len(right)))


def compute_median_ratio(
    left: Sequence[PeerReply], right: Sequence[PeerReply], rate: Callable[[PeerReply], float]
) -> float:
    """Median over the prompts of the ratio of two contenders' rates."""
    return statistics.median(rate(a) / rate(b) for a, b in zip(left, right, strict=True))


def print_report(report: PeerReport, console: Console) -> None:
    """Prints a table for each number of threads."""
    machine, lengths = report.machine, report.prompt_lengths
    console.print(
        f"{report.model} on {machine.cpu}, {machine.num_usable_cores} cores; "
        f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, "
        f"replies of {report.num_tokens}"
    )
    for threads in sorted({reply.threads for reply in report.replies}):
        _print_table(report, threads, console)
    print_loads(report.loads, console)
    if not report.is_complete:
        console.print("interrupted: only what all contenders had answered")
    for name, reason in report.left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False)


def _print_table(report: PeerReport, threads: int, console: Console) -> None:
    names = list(
        dict.fromkeys(reply.contender for reply in report.replies if reply.threads == threads)
    )
    replies = {name: report.select(name, threads) for name in names}
    speed = {name: _median(replies[name], _decode_rate) for name in names}
    medusa_names = [name for name in names if name.endswith(_MEDUSA)]
    fastest = max(medusa_names, key=speed.__getitem__, default=None)
    reference = next((name for name in _REFERENCES if name in names), names[0])
    table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}, medians over the prompts")
    table.add_column("contender", no_wrap=True)
    titles = ("first token ms", "decode tok/s", "quar- tiles", "tok/ step", "all tok/s")
    shown = ("fastest Medusa", "equal replies", "first differs", "peak MB")
    for column in (*titles, *shown):
        table.add_column(column, justify="right")
    for name in sorted(names, key=speed.__getitem__, reverse=True):
        row = replies[name]
        table.add_row(
            name,
            f"{1e3 * _median(row, lambda reply: reply.first_token_s):.0f}",
            f"{speed[name]:.1f}",
            _quartiles(row),
            f"{_tokens_per_step(row):.2f}",
            f"{_median(row, lambda reply: reply.tokens_per_s):.1f}",
            f"{compute_median_ratio(replies[fastest], row, _decode_rate):.2f}x" if fastest else "",
            *_equality(row, replies[reference]),
            f"{max(reply.peak_memory_bytes for reply in row) / 1e6:.0f}",
        )
    console.print(table)
    console.print(
        f"fastest Medusa: its decode tok/s over this contender's; equal replies: those equal to "
        f"{reference}'s; first differs: median index of the first different token"
    )
    for name in medusa_names:
        _print_identity(name, report, threads, console)


def count_equal_replies(report: PeerReport, name: str, threads: int) -> tuple[int, int]:
    """Counts Medusa's replies with the tokens of plain decoding, and those with other tokens."""
    plain = report.select(name.removesuffix(_MEDUSA) + "-plain", threads)
    pairs = zip(report.select(name, threads), plain, strict=False)
    equal = [a.token_ids == b.token_ids for a, b in pairs]
    return sum(equal), len(equal) - sum(equal)


def is_identical(report: PeerReport) -> bool:
    """Whether all replies of Medusa have the tokens of plain decoding."""
    runs = {(reply.contender, reply.threads) for reply in report.replies}
    return count_different(report.loads) == 0 and all(
        count_equal_replies(report, *run)[1] == 0 for run in runs if run[0].endswith(_MEDUSA)
    )


def _print_identity(name: str, report: PeerReport, threads: int, console: Console) -> None:
    num_equal, num_different = count_equal_replies(report, name, threads)
    text = f"{name}: {num_equal} replies have the tokens of plain decoding"
    if num_different:
        text = f"[bold red]{text}, {num_different} DIFFER: please report this[/bold red]"
    console.print(text)


def _equality(replies: Sequence[PeerReply], reference: Sequence[PeerReply]) -> tuple[str, str]:
    """Cells for the number of equal replies, and for the median index of the first difference."""
    pairs = zip(replies, reference, strict=True)
    indices = [find_difference(reply.token_ids, other.token_ids) for reply, other in pairs]
    differing = [index for index in indices if index is not None]
    where = f"{statistics.median(differing):.0f}" if differing else "-"
    return f"{len(indices) - len(differing)}/{len(indices)}", where


def _decode_rate(reply: PeerReply) -> float:
    return reply.decode_tokens_per_s


def _median(replies: Sequence[PeerReply], value: Callable[[PeerReply], float]) -> float:
    return statistics.median(map(value, replies))


def _quartiles(replies: Sequence[PeerReply]) -> str:
    if len(replies) < 2:
        return "-"
    low, _, high = statistics.quantiles(map(_decode_rate, replies), n=4)
    return f"{low:.0f}-{high:.0f}"


def _tokens_per_step(replies: Sequence[PeerReply]) -> float:
    num_tokens = sum(len(reply.token_ids) - 1 for reply in replies)
    return num_tokens / sum(reply.num_steps for reply in replies)
