"""LangChain on a server of medusa-trt: it speaks OpenAI's API, so LangChain's client fits.

    pip install langchain-openai
    medusa-trt serve build/smollm2-135m
    python examples/langchain_client.py http://127.0.0.1:8000/v1 smollm2-135m

The second command serves the bundle of `make demo`, and the reply comes as a stream.
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main(address: str, model_name: str) -> str:
    """Asks one question through a chain of prompt, model and parser; prints the reply."""
    model = ChatOpenAI(
        base_url=address, api_key="none", model=model_name, temperature=0, max_tokens=60
    )
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You answer in one sentence."), ("user", "What is {thing}?")]
    )
    chain = prompt | model | StrOutputParser()
    text = ""
    for part in chain.stream({"thing": "rain"}):
        print(part, end="", flush=True)
        text += part
    print()
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
