"""Retrieve, then chat: answer a question from a few documents.

The documents' embeddings go into a FAISS index; those nearest to the question go before the model.
Needs a server with both kinds of model, and two clients:

    pip install openai faiss-cpu
    EMBEDDING_MODEL_ID=sentence-transformers/all-MiniLM-L6-v2 make serve
    python examples/retrieval/ask.py "How long are refunds possible?"
"""

import argparse
import os

import faiss
import numpy as np
from openai import OpenAI

DOCUMENTS = [
    "Refunds are possible within 30 days after delivery, if the box is unopened.",
    "Parcels leave the warehouse on working days before noon and arrive within three days.",
    "The support line answers from 9 to 17 o'clock, Monday to Friday.",
    "Gift cards never expire and cannot be exchanged for cash.",
    "Every kettle has a warranty of two years; its battery has one year.",
]


def embed(client: OpenAI, texts: list[str]) -> np.ndarray:
    """Make vectors of length 1: float32 [texts, width]."""
    answer = client.embeddings.create(model="embedder", input=texts)
    return np.array([row.embedding for row in answer.data], dtype=np.float32)


def retrieve(client: OpenAI, question: str, count: int) -> list[str]:
    """Find the documents that are nearest to the question."""
    vectors = embed(client, DOCUMENTS)
    index = faiss.IndexFlatIP(vectors.shape[1])  # the inner product of normalised vectors: cosine
    index.add(vectors)
    _, places = index.search(embed(client, [question]), count)
    return [DOCUMENTS[place] for place in places[0]]


def answer(client: OpenAI, question: str, context: list[str]) -> str:
    """Let the language model answer from the context."""
    facts = "\n".join(f"- {text}" for text in context)
    chat = client.chat.completions.create(
        model="tgi",
        messages=[
            {"role": "system", "content": f"Answer from these facts only:\n{facts}"},
            {"role": "user", "content": question},
        ],
        max_tokens=80,
        temperature=0,
    )
    return chat.choices[0].message.content or ""


def main() -> None:
    """Answer the question on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--url", default=os.environ.get("LLM_URL", "http://localhost:8080/v1"))
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.url, api_key=os.environ.get("API_KEY", "-"))
    context = retrieve(client, arguments.question, 2)
    print("Found:", *context, sep="\n  ")
    print("Answer:", answer(client, arguments.question, context))


if __name__ == "__main__":
    main()
