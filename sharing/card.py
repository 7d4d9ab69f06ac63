"""Model cards: what a bundle or a head checkpoint is, how good, how fast, and how it is run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from medusa_trt import __version__
from medusa_trt.calibration.bench.report import BenchReport
from medusa_trt.calibration.bench.summary import ModeSummary
from medusa_trt.errors import MedusaError, require_extra
from medusa_trt.files import read_text, replace_file, text_from_bytes
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.tensors import MANIFEST_FILE

CARD_FILE = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """Write the model card of a bundle or of heads, as the Hugging Face hub shows it.

    Attributes:
        source: a bundle's folder, or a folder of heads.
        repository: the hub id that it will have.
        base_model: the hub id of the model that it belongs to (default: what heads say; the card
            of a bundle names none).
        license: the licence, as the hub spells it: apache-2.0, llama3.2 (default: not stated).
        results: what `medusa-trt bench --json` measured with it; the flag may be repeated, for
            several machines (default: no speeds).
        output: the file to write (default: README.md in the folder).
        overwrite: replace a card that exists.
    """

    source: Annotated[Path, "SOURCE"]
    repository: Annotated[str, "--repository ID"] = "OWNER/NAME"
    base_model: Annotated[str | None, "--base-model ID"] = None
    license: Annotated[str | None, "--license NAME"] = None
    results: Annotated[tuple[Path, ...], "--results FILE"] = ()
    output: Annotated[Path | None, "--output FILE"] = None
    overwrite: bool = False


def write_card(options: CardOptions) -> Path:
    """Writes a card, and returns its path.

    Raises:
        MedusaError: the folder is neither a bundle nor heads, results cannot be read or are of
            another bundle, or there is a card already.
    """
    output = options.output or options.source / CARD_FILE
    if output.exists() and not options.overwrite:
        raise MedusaError(f"{output} exists: give --overwrite, or another --output")
    if (options.source / MANIFEST_FILE).exists():
        text = _describe_bundle(Bundle.open(options.source), options)
    else:
        text = _describe_heads(options)
    with replace_file(output) as temporary:
        temporary.write_text(text, "utf-8")
    return output


def _describe_bundle(bundle: Bundle, options: CardOptions) -> str:
    manifest = bundle.manifest
    model, heads, target = manifest.model, manifest.heads, manifest.target
    reports = [_read_results(path, bundle) for path in options.results]
    drafts = "no heads: drafts are copied from the text"
    if heads is not None:
        drafts = (
            f"{heads.num_heads} with {_count(heads.num_layers, 'layer')} each, which draft from "
            f"{heads.draft_vocab_size:,} tokens"
        )
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    about = _table(
        ["", ""],
        [
            ["model", f"{model.name} ({model.architecture}): {model.num_layers} layers, hidden "
             f"size {model.hidden_size:,}, {model.vocab_size:,} tokens"],
            ["heads", drafts],
            ["runs on", f"{target.name}, {target.precision} weights, {target.cache_dtype} cache"],
            ["longest text", f"{model.max_length:,} tokens"],
            ["tree", f"{manifest.tree_name}: {bundle.tree.num_nodes} nodes, "
             f"{bundle.tree.max_depth} deep"],
            ["size", text_from_bytes(size_bytes)],
            ["made with", ", ".join(f"{name} {version}" for name, version in
             manifest.versions.items())],
        ],
    )  # fmt: skip
    quality = _table(
        ["on", "positions", "same most likely token", "KL divergence", "largest logit difference"],
        [
            [place, f"{test.num_positions:,}", f"{test.argmax_agreement:.1%}",
             f"{test.kl_divergence:.2g}", f"{test.max_logit_difference:.2g}"]
            for place, test in manifest.verified.items()
        ],
    )  # fmt: skip
    no_speed = (
        f"Not measured: `medusa-trt bench {options.repository}` compares Medusa with plain "
        "decoding.\n"
    )
    title = f"{model.name}, {target.precision}" + (", with Medusa heads" if heads else "")
    return f"""{_front_matter(options, options.base_model, ["onnx"])}
# {title}

A bundle of medusa-trt {__version__}: the model{"" if heads is None else " and its Medusa heads"} as
ONNX graphs, with the tokenizer. Several tokens are drafted at once and verified in one forward pass
under a tree attention mask ([Medusa](https://arxiv.org/abs/2401.10774)). Greedy replies are, token
for token, those of plain decoding with the same bundle.

```
pip install 'medusa-trt[{target.name},hub]'
medusa-trt generate {options.repository} "Why is the sky blue?"
medusa-trt serve {options.repository}
```

{about}

## Quality

Compared with the original model when it was exported:

{quality}

## Speed

{"".join(map(_describe_speed, reports)) or no_speed}
"""


def _describe_speed(report: BenchReport) -> str:
    """Describes a benchmark: the machine, the prompts and a row for each mode."""
    machine, setup = report.machine, report.setup
    threads = "all cores" if setup.threads is None else _count(setup.threads, "thread")
    modes = _table(
        ["", "tokens/s", "tokens per step", "times plain decoding"],
        [_row_from_mode(mode) for mode in report.summary.modes],
    )
    noise = "" if report.is_complete else " It was interrupted."
    return f"""{machine.cpu}, {_count(machine.num_cores, "core")}, {threads}; {setup.tree_text};
{_count(report.num_prompts_done, "prompt")} of {setup.prompts}, at most {setup.max_new_tokens} new \
tokens, temperature {setup.temperature:g}; medians. `{report.command}`, {report.date[:10]}.{noise}

{modes}

"""


def _row_from_mode(mode: ModeSummary) -> list[str]:
    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    speed = None if mode.tokens_per_s is None else mode.tokens_per_s.median
    speedup = None if mode.speedup is None else mode.speedup.median
    return [mode.name, show(speed, 0), show(mode.mean_accept_length, 2), show(speedup, 2)]


def _read_results(path: Path, bundle: Bundle) -> BenchReport:
    """Reads what `bench --json` wrote.

    Raises:
        MedusaError: the file is something else, or was measured with another model or precision.
    """
    try:
        report = msgspec.json.decode(read_text(path).encode(), type=BenchReport)
    except msgspec.MsgspecError as error:
        raise MedusaError(
            f"{path} is no result of medusa-trt bench --json ({error}): measure again"
        ) from error
    manifest, setup = bundle.manifest, report.setup
    measured = (setup.model, setup.target, setup.precision)
    expected = (manifest.model.name, manifest.target.name, manifest.target.precision)
    if measured != expected:
        raise MedusaError(
            f"{path} was measured with {', '.join(measured)}, and this bundle is "
            f"{', '.join(expected)}: give results of this bundle"
        )
    return report


def _describe_heads(options: CardOptions) -> str:
    with require_extra("reading heads", "export"):
        from medusa_trt.export.heads.loading import load_heads
    if options.results:
        raise MedusaError("--results has speeds of a bundle, and these are heads: leave it out")
    loaded = load_heads(options.source)
    facts = loaded.facts
    base_model = options.base_model or facts.base_model
    tokens = facts.draft_vocab_size or facts.vocab_size
    about = _table(
        ["", ""],
        [
            ["model", base_model or "not stated"],
            ["heads", f"{facts.num_heads} with {_count(facts.num_layers, 'layer')} each"],
            ["hidden size", f"{facts.hidden_size:,}"],
            ["drafts from", "unknown" if tokens is None else f"{tokens:,} tokens"],
            ["format", loaded.format],
            ["parameters", f"{loaded.num_parameters:,}"],
        ],
    )
    model = base_model or "MODEL"
    return f"""{_front_matter(options, base_model, [])}
# Medusa heads for {base_model or "a model that their config does not name"}

Extra decoding heads that guess several later tokens at once, for
[Medusa](https://arxiv.org/abs/2401.10774) decoding. The model stays as it is.

```
pip install 'medusa-trt[ort-cpu,export,hub]'
medusa-export --model {model} --heads {options.repository} --output bundle
medusa-trt generate bundle "Why is the sky blue?"
```

{about}
"""


def _front_matter(options: CardOptions, base_model: str | None, tags: Sequence[str]) -> str:
    """The lines of YAML that the hub reads; JSON texts are YAML."""
    values = {
        "library_name": "medusa-trt",
        "pipeline_tag": "text-generation",
        "tags": ["medusa", "speculative-decoding", *tags],
        "base_model": base_model,
        "license": options.license,
    }
    lines = [
        f"{name}: {msgspec.json.encode(value).decode()}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(["---", *lines, "---"])


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
