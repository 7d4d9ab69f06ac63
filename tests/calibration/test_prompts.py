"""Prompts of the package and of users' files."""

from collections import Counter
from pathlib import Path

import pytest

from medusa_trt.calibration.prompts import (
    BenchPrompt,
    load_mt_bench_prompts,
    load_self_generated_prompts,
    prompts_from_file,
    prompts_from_source,
    select_further_prompts,
    spread_over_categories,
)
from medusa_trt.errors import PromptError


def test_mt_bench_is_complete() -> None:
    prompts = load_mt_bench_prompts()
    assert len({prompt.id for prompt in prompts}) == 80
    assert set(Counter(prompt.category for prompt in prompts).values()) == {10}
    assert len({prompt.category for prompt in prompts}) == 8
    assert all(len(prompt.turns) == 2 for prompt in prompts)


def test_the_prompts_ship_whole() -> None:
    prompts = load_self_generated_prompts()
    assert len(prompts) == 1086
    assert len({prompt.id for prompt in prompts}) == 1086


def test_prompts_are_spread_over_categories() -> None:
    few = spread_over_categories(load_mt_bench_prompts(), 10)
    assert sorted(Counter(prompt.category for prompt in few).values()) == [1] * 6 + [2] * 2
    assert len({prompt.category for prompt in few[:8]}) == 8
    for wrong in (0, 81):
        with pytest.raises(PromptError, match="between 1 and 80"):
            spread_over_categories(load_mt_bench_prompts(), wrong)


def test_further_prompts_are_none_of_the_first_ones() -> None:
    first = prompts_from_source("packaged", 8)
    further = select_further_prompts("packaged", 8, 64)
    assert len(further) == 64 and not {p.id for p in first} & {p.id for p in further}
    assert prompts_from_source("packaged", 72) == first + further
    with pytest.raises(PromptError, match=r"mt-bench has too few prompts for 20 and 64 more"):
        select_further_prompts("mt-bench", 20, 64)


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "p.jsonl"
    lines.write_text(
        '{"prompt": "hi", "extra": 1}\n\n'
        '{"turns": ["a\\u2028b", "c"], "category": "k", "question_id": 7}\n',
        encoding="utf-8",
    )
    assert prompts_from_file(lines) == [
        BenchPrompt("1", "", ("hi",)),
        BenchPrompt("7", "k", ("a\u2028b", "c")),
    ]
    text = tmp_path / "p.txt"
    text.write_text("\ufeffone\n\n two \n", encoding="utf-8")
    assert prompts_from_file(text) == [
        BenchPrompt("1", "", ("one",)),
        BenchPrompt("3", "", ("two",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "hi"}\nhi\n', "line 2 of .*p.jsonl"),
        ("p.jsonl", b'["hi"]', "line 1 of .*Expected `object`"),
        ("p.jsonl", b'{"text": "hi"}', 'line 1 of .*either "prompt" or "turns"'),
        ("p.jsonl", b'{"prompt": "hi", "turns": ["ho"]}', 'either "prompt" or "turns"'),
        ("p.jsonl", b'{"turns": ["hi", " "]}', "a prompt is empty"),
        ("p.jsonl", b'{"turns": []}', "a prompt is empty"),
        ("p.jsonl", b'{"id": 2, "prompt": "hi"}\n{"prompt": "ho"}', "id '2' occurs twice"),
        ("p.txt", b"\n \n", "no prompts"),
        ("p.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        prompts_from_file(path)


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"none\.txt: No such file"):
        prompts_from_file(tmp_path / "none.txt")
