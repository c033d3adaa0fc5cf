#!/usr/bin/env python3
"""Talks to a running daemon with the official `openai` package over the Unix socket.

    openai_client.py SOCKET MODEL

Prints one line for each check and ends with 0, or with a traceback at the first surprise.
Without the package it says so and ends with 77, which callers count as skipped.
The daemon must answer any prompt; what it says does not matter.
"""

import importlib
import sys

try:
    import openai
except ImportError:
    print("skipped: this Python has no `openai` package")
    sys.exit(77)

# Releases differ in which HTTP library they bring; the transport must be of the same one.
CLIENT = next(base for base in openai.DefaultHttpxClient.__mro__ if base.__name__ == "Client")
http = importlib.import_module(CLIENT.__module__.partition(".")[0])

QUESTION = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many has he now?"}]


def chat(client, model):
    reply = client.chat.completions.create(
        model=model, messages=QUESTION, n=2, seed=7, temperature=1.0, max_tokens=16, logprobs=True, top_logprobs=2
    )
    assert reply.object == "chat.completion", reply
    assert [choice.index for choice in reply.choices] == [0, 1], reply
    for choice in reply.choices:
        assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"), choice
        tokens = choice.logprobs.content
        assert tokens and all(token.logprob <= 0 for token in tokens), choice
        assert all(len(token.top_logprobs) == 2 for token in tokens), choice
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens, reply.usage
    assert reply.system_fingerprint.startswith("generation-"), reply
    assert "generation" in reply.model_extra["reflectd"], reply


def stream(client, model):
    options = dict(model=model, messages=QUESTION, temperature=0.0, max_tokens=16)
    whole = client.chat.completions.create(**options).choices[0].message.content
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in deltas)
    assert text == whole, (text, whole)
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] in (["stop"], ["length"]), deltas
    assert len({chunk.id for chunk in chunks}) == 1, chunks
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usage) == 1 and usage[0].prompt_tokens > 0, chunks
    assert "reflectd" in chunks[-1].model_extra, chunks[-1]


def left_early(client, model):
    reply = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=64, stream=True)
    next(iter(reply))
    reply.close()
    chat(client, model)


def models(client, model):
    assert model in [entry.id for entry in client.models.list()], "GET /v1/models lists the agent"


def errors(client, model):
    try:
        client.chat.completions.create(model="no-such-agent", messages=QUESTION)
        raise AssertionError("an unknown model was accepted")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    try:
        client.chat.completions.create(model=model, messages=QUESTION, temperature=-1.0)
        raise AssertionError("a negative temperature was accepted")
    except openai.BadRequestError as error:
        assert error.code == "invalid_value" and error.param == "temperature", error
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "more " * 100_000}])
        raise AssertionError("a prompt longer than the context was accepted")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error


def main(socket, model):
    # Retries would hide a first answer that is wrong.
    transport = http.HTTPTransport(uds=socket)
    with openai.OpenAI(
        base_url="http://reflectd/v1",
        api_key="unused",
        max_retries=0,
        timeout=120,
        http_client=openai.DefaultHttpxClient(transport=transport),
    ) as client:
        for check in (models, chat, stream, left_early, errors):
            check(client, model)
            print(f"ok {check.__name__}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
