"""A conversation: the reply appears token by token, and the model sees what was said before.

    python examples/chat.py build/smollm2-135m

An empty line ends it. The session keeps the text of earlier turns in its KV cache, so each
turn only reads what is new.
"""

import sys

from medusa_trt import GenerationOptions, MedusaSession

OPTIONS = GenerationOptions(max_new_tokens=200)


def main(bundle: str) -> None:
    """Reads lines and answers them."""
    messages = []
    with MedusaSession(bundle) as session:
        while question := input("> ").strip():
            messages.append({"role": "user", "content": question})
            text = ""
            for event in session.stream(messages, OPTIONS):
                print(event.text, end="", flush=True)
                text += event.text
            print()
            messages.append({"role": "assistant", "content": text})


if __name__ == "__main__":
    main(*sys.argv[1:])
