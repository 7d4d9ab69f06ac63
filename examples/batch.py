"""Many prompts: four replies are made at the same time, each as it would be alone.

python examples/batch.py build/smollm2-135m
"""

import sys

from medusa_trt import ChatPrompt, GenerationOptions, MedusaSession

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "How many legs has a spider?",
    "What is ice?",
    "Who wrote Hamlet?",
    "What do bees make?",
]


def main(bundle: str) -> None:
    """Answers all questions, and prints what each cost."""
    prompts = [ChatPrompt(messages=[{"role": "user", "content": text}]) for text in QUESTIONS]
    options = GenerationOptions(max_new_tokens=40)
    with MedusaSession(bundle, batch_size=4) as session:
        replies = session.generate_batch(prompts, options)
    for question, reply in zip(QUESTIONS, replies, strict=True):
        stats = reply.stats
        print(f"{question}\n  {reply.text.strip()}")
        print(f"  {stats.new_tokens} tokens, {stats.mean_accept_length:.2f} per step\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
