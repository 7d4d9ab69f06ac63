"""Runs plain decoding and Medusa side by side on one session, and measures each reply.

Machines are noisy. So all modes reply to a prompt before the next prompt comes, and their order
changes from prompt to prompt and from round to round. `summary.py` makes figures of the replies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from medusa_trt.calibration.bench.options import BenchOptions, Mode
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.replies import generate_whole_reply
from medusa_trt.errors import PromptError, TreeError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.conversation import Conversation
from medusa_trt.runtime.manifest import Manifest
from medusa_trt.runtime.options import GREEDY, GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import GenerationStats, MedusaSession, Prompt
from medusa_trt.tree_configs import MedusaTree, load_tree

_WARM_UP_TOKENS = 16
_PLAIN = load_tree("plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRow(GenerationStats):
    """One measured reply.

    Attributes:
        round: number of the round, from 1.
        prompt_id: id of the prompt.
        category: category of the prompt.
        turn: number of the turn, from 1.
        mode: name of the mode.
        finish_reason: why the reply ended.
        token_ids: the reply.
    """

    round: int
    prompt_id: str
    category: str
    turn: int
    mode: str
    finish_reason: str
    token_ids: tuple[int, ...]


def drop_missing_heads(options: BenchOptions, bundle: Bundle) -> BenchOptions:
    """Leaves the heads alone out of the default comparison of a bundle without heads.

    Raises:
        BundleError: the user asks for the heads of such a bundle.
    """
    if bundle.manifest.heads is not None or "heads" not in options.compared:
        return options
    if options.compared != BenchOptions().compared:
        bundle.manifest.require_heads("bench --modes heads")
    return replace(options, compared=tuple(mode for mode in options.compared if mode != "heads"))


def fill_thresholds(options: BenchOptions, manifest: Manifest) -> BenchOptions:
    """Sets ε and δ of typical acceptance as in replies, where the user has set none."""
    filled = manifest.fill_thresholds(
        GenerationOptions(
            sampling=SamplingOptions(temperature=options.temperature),
            posterior_threshold=options.posterior_threshold,
            posterior_alpha=options.posterior_alpha,
        )
    )
    return replace(
        options,
        posterior_threshold=filled.posterior_threshold,
        posterior_alpha=filled.posterior_alpha,
    )


def find_fixed_tree(session: MedusaSession, tree: MedusaTree | None) -> MedusaTree | None:
    """Returns the tree of Medusa's modes; None if the session grows one at each step."""
    grows = tree is None and session.decoder.drafter.grows_trees
    return None if grows else tree or session.bundle.tree


def check_runnable(
    session: MedusaSession, prompts: Sequence[BenchPrompt], options: BenchOptions
) -> None:
    """Refuses a benchmark that would fail or mean nothing, before the long work.

    Raises:
        TreeError: the tree drafts nothing, or the heads cannot fill it.
        PromptError: a conversation might not fit into the session; its prompt is named.
    """
    tree = options.tree or session.bundle.tree
    session.bundle.manifest.check_tree(tree)
    if tree.num_nodes == 1:
        raise TreeError(
            f"tree {tree.name} drafts nothing, so there is nothing to compare: choose another one"
        )
    for prompt in prompts:
        dialogue = _Dialogue(session)
        for turn in prompt.turns[:-1]:
            dialogue.add(turn, "")
        needed = len(session.encode(dialogue.prompt(prompt.turns[-1])))
        needed += options.max_new_tokens * len(prompt.turns)
        if needed > session.max_length:
            raise PromptError(
                f"prompt {prompt.id} needs up to {needed} tokens with its replies, the session "
                f"holds {session.max_length}: lower --max-new-tokens or raise --max-length"
            )


def warm_up(session: MedusaSession, prompt: BenchPrompt, options: BenchOptions) -> float:
    """Generates a short reply to the prompt's first turn in each mode.

    Returns:
        The estimated seconds that a reply of `max_new_tokens` takes in all modes together.
    """
    short = replace(options, max_new_tokens=min(_WARM_UP_TOKENS, options.max_new_tokens))
    first = BenchPrompt(prompt.id, prompt.category, prompt.turns[:1])
    total_s = 0.0
    for mode in options.modes:
        for row in _converse(session, first, mode, short, options.seed, round_=0):
            token_s = row.decode_s / max(1, row.new_tokens - 1)
            total_s += row.prefill_s + token_s * options.max_new_tokens
    return total_s


def measure_replies(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    options: BenchOptions,
    modes: Sequence[Mode] = (),
) -> Iterator[ReplyRow]:
    """Generates every conversation in every mode, and yields each reply as it is measured.

    Without `modes` they are those of the options.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the last conversation may be incomplete in some modes.
        GenerationError: the engine failed.
    """
    for round_ in range(options.rounds):
        for index, prompt in enumerate(prompts):
            seed = (options.seed + index) % 2**64
            for mode in _order(modes or options.modes, index, round_):
                yield from _converse(session, prompt, mode, options, seed, round_=round_ + 1)


def _order(modes: Sequence[Mode], index: int, round_: int) -> list[Mode]:
    """Rotates the modes from prompt to prompt, and reverses them in every other round."""
    shift = index % len(modes)
    order = [*modes[shift:], *modes[:shift]]
    return order[::-1] if round_ % 2 else order


def _converse(
    session: MedusaSession,
    prompt: BenchPrompt,
    mode: Mode,
    options: BenchOptions,
    seed: int,
    *,
    round_: int,
) -> Iterator[ReplyRow]:
    sampling = SamplingOptions(temperature=options.temperature, seed=seed)
    generation_options = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        tree=(mode.tree or options.tree) if mode.drafts else _PLAIN,
        sampling=GREEDY if mode.acceptance == "greedy" else sampling,
        acceptance=mode.acceptance,
        posterior_threshold=options.posterior_threshold,
        posterior_alpha=options.posterior_alpha,
        lookup_ngram=GenerationOptions().lookup_ngram if mode.copies else 0,
    )
    _forget(session)
    dialogue = _Dialogue(session)
    for turn, text in enumerate(prompt.turns, start=1):
        reply = generate_whole_reply(session, dialogue.prompt(text), generation_options)
        dialogue.add(text, reply.text)
        yield ReplyRow(
            **asdict(reply.stats),
            round=round_,
            prompt_id=prompt.id,
            category=prompt.category,
            turn=turn,
            mode=mode.name,
            finish_reason=reply.finish_reason,
            token_ids=tuple(reply.token_ids),
        )


def _forget(session: MedusaSession) -> None:
    """Replaces the cache's content by one token, so that each conversation is prefilled whole.

    Otherwise only the first mode would prefill a prompt, and the others would find it cached.
    """
    session.generate([0], GenerationOptions(max_new_tokens=1, tree=_PLAIN))


class _Dialogue:
    """A conversation in the model's chat template, or as plain text if it has none."""

    def __init__(self, session: MedusaSession) -> None:
        self._conversation = Conversation() if session.text.has_chat_template else None
        self._text = ""

    def prompt(self, text: str) -> Prompt:
        """The conversation until now, and the user's next text."""
        if self._conversation is not None:
            return self._conversation.messages(text)
        return f"{self._text}{text}\n"

    def add(self, text: str, reply: str) -> None:
        """Appends the user's text and the model's reply."""
        if self._conversation is not None:
            self._conversation.add(text, reply)
        self._text += f"{text}\n{reply}\n"
