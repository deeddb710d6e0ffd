"""Chat templates, rendered as Hugging Face renders them.

A template is Jinja code that came with a model, so it runs in Jinja's immutable sandbox and sees plain JSON
values only. The environment (block trimming, loop controls, `tojson`, `raise_exception`, `strftime_now`, the
limited `dict` and `namespace`) is the one of transformers 5, `utils/chat_template_utils.py`; tests compare
the two texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from dnet_core.errors import RequestError
from dnet_core.types.generation import Message

ChatMessage = Message | Mapping[str, object]
"""One turn: ours, or a mapping in OpenAI's form (`role`, `content`, `tool_calls`, ...)."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
RESERVED_VARIABLES = frozenset({"messages"})


def render(template: str, messages: Sequence[ChatMessage], variables: Mapping[str, object]) -> str:
    """Render `messages` with `template`; `variables` are what else the template may read.

    Raises RequestError with the template's own message when it refuses (roles that do not alternate, a
    missing tool result, ...) or breaks.
    """
    if reserved := RESERVED_VARIABLES & variables.keys():
        raise RequestError(f"the chat template's variable '{min(reserved)}' cannot be set by a request")
    chat = chat_dicts(messages)
    try:
        return _compiled(template).render({**_plain_dict(variables), "messages": chat})
    except TemplateError as error:
        raise RequestError(f"the model's chat template refuses these messages: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What Jinja lets through when a template adds None to a string and the like.
        raise RequestError(f"the model's chat template fails on these messages: {error}") from error


def render_plain(messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
    """Render for a model that has no template: `User: text` lines, an empty line between turns.

    A base model continues such a transcript; nothing here is a control token. Content in parts keeps its
    text parts.
    """
    turns = [
        f"{str(message.get('role', 'user')).capitalize()}: {_content_text(message.get('content'))}"
        for message in chat_dicts(messages)
    ]
    if add_generation_prompt:
        turns.append("Assistant:")
    return "\n\n".join(turns)


def chat_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, object]]:
    """Turn messages into what templates expect: plain dicts without None, reasoning under all its names."""
    if not messages:
        raise RequestError("a conversation needs at least one message")
    return [_chat_dict(message) for message in messages]


def _chat_dict(message: ChatMessage) -> dict[str, object]:
    if isinstance(message, Message):
        return {"role": str(message.role), "content": message.content}
    chat = {key: value for key, value in _plain_dict(message).items() if value is not None}
    reasoning = next((chat[name] for name in REASONING_FIELDS if name in chat), None)
    if reasoning is None:
        return chat
    return {"thinking": reasoning, **chat, "reasoning_content": reasoning}


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def _plain_dict(value: Mapping[str, object]) -> dict[str, object]:
    return {_plain_key(key): _plain(item) for key, item in value.items()}


def _plain_key(key: object) -> str:
    return str.__str__(key) if isinstance(key, str) else str(key)


def _plain(value: object) -> object:
    """Rebuild `value` from plain JSON types: methods of richer objects are not for a template to call."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum or another subclass becomes the string it is
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return _plain_dict(value)
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    raise RequestError(f"a {type(value).__name__} cannot be handed to a chat template: send JSON values")


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks training targets; here it is its body and no more."""

    tags = {"generation"}  # noqa: RUF012  the name and kind that Jinja's base class declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope, as the call block of transformers is one: what is set inside is not seen outside.
        return [nodes.Scope(body).set_lineno(line)]


class _TemplateDict:
    """The `dict` a template may call, without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Sequence[object], value: object = None) -> dict[object, object]:
        return dict.fromkeys(keys, value)


class _TemplateNamespace(Namespace):
    """Jinja's `namespace` without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args  # so that a name may be `self`, as with Jinja's own
        assert isinstance(self, _TemplateNamespace), "called by Jinja as a method"
        names: dict[str, object] = dict(*values, **kwargs)
        for name in names:
            _refuse_private(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escapes: a model reads it, not a browser."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005  templates ask for the user's local date


@lru_cache(maxsize=16)  # a model has one or two templates, and few models are in use at once
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment.from_string(template)
