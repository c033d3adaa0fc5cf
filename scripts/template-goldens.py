#!/usr/bin/env python3
"""What transformers makes of chat templates: goldens for the tests of crates/jinja and crates/prompt.

    template-goldens.py folder FOLDER CONVERSATIONS.json > GOLDENS.json
    template-goldens.py cases CASES.json

`folder` renders every conversation with every *.jinja of the folder, up to where the assistant goes on.
`cases` renders small templates with the values that stand beside them and writes what comes out into the
same file. Needs transformers with jinja2 3.1.6 or newer; no model. The time is fixed, because templates
tell it.
"""

import datetime
import json
import pathlib
import sys

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedTime


def outcome(render):
    try:
        return {"text": render()}
    except Exception as error:  # Whatever the template does to Python is its outcome.
        return {"error": f"{type(error).__name__}: {error}"}


def chat(source, messages):
    def render():
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=True, **TOKENS
        )
        return rendered[0]

    return outcome(render)


def folder(path, conversations):
    conversations = json.loads(pathlib.Path(conversations).read_text())
    templates = {}
    for file in sorted(pathlib.Path(path).glob("*.jinja")):
        source = file.read_text()
        templates[file.stem] = {
            one["name"]: chat(source, one["messages"]) for one in conversations
        }
    return templates


def cases(path):
    path = pathlib.Path(path)
    file = json.loads(path.read_text())
    values = chat_template_utils._plain_template_data(file["values"])
    made = [
        {"template": source, **outcome(lambda: chat_template_utils._compile_jinja_template(source).render(**values))}
        for source in (case["template"] for case in file["cases"])
    ]
    path.write_text(dump({"values": file["values"], "cases": made}))


def dump(made):
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


match sys.argv[1:]:
    case ["folder", path, conversations]:
        sys.stdout.write(dump(folder(path, conversations)))
    case ["cases", path]:
        cases(path)
    case _:
        sys.exit(__doc__)
