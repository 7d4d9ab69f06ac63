"""`medusa-trt card` and `push`: model cards, and bundles and heads on the Hugging Face hub."""

import sys

from medusa_trt.cli.parser import Verb
from medusa_trt.sharing.card import CardOptions, write_card
from medusa_trt.sharing.upload import PushOptions
from medusa_trt.sharing.upload import push as upload


def card(options: CardOptions) -> None:
    """Writes a model card."""
    print(f"wrote {write_card(options)}", file=sys.stderr)


def push(options: PushOptions) -> None:
    """Uploads a folder, and prints the address of the commit."""
    print(upload(options, lambda text: print(text, file=sys.stderr, flush=True)))


VERBS = {"card": Verb(CardOptions, card), "push": Verb(PushOptions, push)}
