"""Clients of other projects, which are too heavy for every run.

Each needs an environment of its own: `LITELLM_PYTHON`, `LM_EVAL_PYTHON` (with transformers),
`SCHEMATHESIS_PYTHON` and `GUIDELLM_PYTHON` name the interpreters.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.servers.live_server import LiveServer

from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

pytestmark = pytest.mark.slow

LITELLM = """
import json, sys
import litellm
question = dict(
    model="openai/" + sys.argv[2], api_base=sys.argv[1] + "/v1", api_key="none", temperature=0,
    messages=[{"role": "user", "content": "hello"}], max_tokens=24,
)
whole = litellm.completion(**question)
stream = litellm.completion(**question, stream=True)
texts = [part.choices[0].delta.content or "" for part in stream]
print(json.dumps([whole.choices[0].message.content, "".join(texts)]))
"""

QUESTIONS: list[dict[str, Any]] = [
    {"q": "one two three", "choices": ["four", "nine", "zero"], "a": 0},
    {"q": "the sky is", "choices": ["green", "blue"], "a": 1},
    {"q": "a b c", "choices": ["x", "d", "q", "zz"], "a": 1},
    {"q": "hello", "choices": ["you", "there", "a"], "a": 2},
]
TASK: dict[str, Any] = {
    "task": "local_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "a",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def run(variable: str, *words: str) -> str:
    """Runs Python of the environment that a variable names; returns its standard output."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python with this client")
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_litellm_gets_the_offline_reply(live: LiveServer, offline: MedusaSession) -> None:
    output = run("LITELLM_PYTHON", "-c", LITELLM, live.url, live.service.model_name)
    messages: Any = [{"role": "user", "content": "hello"}]
    expected = offline.generate(messages, GenerationOptions(max_new_tokens=24)).text
    assert json.loads(output.splitlines()[-1]) == [expected, expected]


def test_lm_evals_score_is_the_one_computed_directly(
    live: LiveServer, offline: MedusaSession, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = TASK | {"dataset_kwargs": {"data_files": {"validation": str(data)}}}
    (tmp_path / "local_choice.yaml").write_text(json.dumps(task))  # JSON is YAML.
    model = f"model={live.service.model_name},base_url={live.url}/v1/completions,num_concurrent=2"
    model += f",tokenizer={offline.bundle.path},max_length=400"
    run(
        "LM_EVAL_PYTHON",
        *("-m", "lm_eval", "--model", "local-completions", "--tasks", "local_choice"),
        *("--model_args", model, "--include_path", str(tmp_path)),
        *("--output_path", str(tmp_path / "out")),
    )
    (result,) = (tmp_path / "out").rglob("results*.json")
    scores = json.loads(result.read_text())["results"]["local_choice"]
    assert scores["acc,none"] == pytest.approx(score_directly(offline))


def score_directly(session: MedusaSession) -> float:
    """The share of questions whose likeliest choice is the right one."""
    options = GenerationOptions(max_new_tokens=1, logprobs=0, prompt_logprobs=True)
    right = []
    for question in QUESTIONS:
        sums = []
        start = len(session.encode(question["q"])) - 1
        for choice in question["choices"]:
            reply = session.generate(f"{question['q']} {choice}", options)
            sums.append(sum(entry.logprob for entry in reply.prompt_logprobs[start:]))
        right.append(int(np.argmax(sums)) == question["a"])
    return float(np.mean(right))


def test_schemathesis_finds_nothing_that_the_schema_does_not_say(live: LiveServer) -> None:
    run(
        "SCHEMATHESIS_PYTHON",
        *("-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--url", live.url),
        *("--phases", "fuzzing", "--max-examples", "100", "--request-timeout", "30"),
        # Some values contradict each other, which a schema of single fields cannot say.
        *("--exclude-checks", "positive_data_acceptance"),
        *("--seed", "1"),
    )


def test_guidellm_measures_every_token_of_several_clients(
    live: LiveServer, offline: MedusaSession, tmp_path: Path
) -> None:
    before = live.session.scheduler.counts.new_tokens
    report = tmp_path / "report.json"
    run(
        "GUIDELLM_PYTHON",
        *("-m", "guidellm", "run", "--backend", f"kind=openai_http,target={live.url}"),
        *("--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=12"),
        *("--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8"),
        *("--tokenizer", f"kind=huggingface_auto,model={offline.bundle.path}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark["scheduler_metrics"]["requests_made"] == {
        "successful": 12,
        "errored": 0,
        "incomplete": 0,
        "total": 12,
    }
    requests = benchmark["requests"]["successful"]
    assert [each["output_tokens"] for each in requests] == [8] * 12
    assert all(each["time_to_first_token_ms"] > 0 for each in requests)
    assert live.session.scheduler.counts.new_tokens - before >= 8 * 12
