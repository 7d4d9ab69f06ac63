"""A reply that is a Python object: the model can only write what the schema allows.

    python examples/structured_output.py build/smollm2-135m

It needs the extra `grammar`, and pydantic.
"""

import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from medusa_trt import GenerationOptions, Grammar, MedusaSession

TEXT = "The blue bicycle costs 250 euros and has been repaired twice."


class Offer(BaseModel):
    """What is read out of the text."""

    item: Annotated[str, Field(max_length=20)]
    price: Annotated[int, Field(ge=0, le=9999)]
    condition: Literal["new", "used", "broken"]


def main(bundle: str) -> Offer:
    """Asks for an offer, and reads the reply as one."""
    question = f"Describe this offer as JSON: {TEXT}"
    options = GenerationOptions(grammar=Grammar.from_json_schema(Offer), max_new_tokens=200)
    with MedusaSession(bundle) as session:
        reply = session.generate([{"role": "user", "content": question}], options)
    offer = Offer.model_validate_json(reply.text)
    print(repr(offer))
    return offer


if __name__ == "__main__":
    main(*sys.argv[1:])
