"""From the text between a model's tool markers to calls.

JSON in all the shapes that models write it is read here; the formats that are not JSON are read by mlx-lm's
own parsers, which are plain Python: they are imported as a package of their own, without mlx_lm itself,
because that would bring MLX into the head.

    json_calls("[{...}, {...}]")      Qwen, Hermes, Granite, Phi, Mistral, Command-R, Llama, ...
    deepseek_calls("...")             DeepSeek V3 and V3.1
    llama_calls("f.call(x=1)")        Llama 3 behind its Python tag; JSON, too
    mlx_lm_parser("gemma4")           a module of mlx_lm.tool_parsers
    exact_parser("glm47")             the same, where all arguments are texts in tags
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

JsonDict = dict[str, object]

PARSE_FAILURES = (
    *(ValueError, LookupError, TypeError, AttributeError, SyntaxError),
    *(RecursionError, OverflowError),
)
"""What parsers raise on text that is not in their format; a model may write anything."""

_NUMBERS = {
    "integer": re.compile(r"-?(0|[1-9][0-9]*)"),
    "number": re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"),
}
_BORROWED = "dnet_core.api.mlx_lm_tool_parsers"
_SEPARATORS = re.compile(r"[\s;,]*")
_DEEPSEEK_CALL = re.compile(
    r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)(?:<｜tool▁call▁end｜>|$)", re.DOTALL
)
_DEEPSEEK_V3 = re.compile(r"(?P<name>.*?)\n```json\n(?P<arguments>.*?)\n?```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model makes. `arguments` is JSON text of an object."""

    name: str
    arguments: str


CallParser = Callable[[str, Sequence[JsonDict]], list[ToolCall]]
"""Text between the markers and the request's tools -> calls. Raises one of PARSE_FAILURES."""


def json_calls(text: str, tools: Sequence[JsonDict]) -> list[ToolCall]:
    """Read one or more JSON values, each a call or a list of calls."""
    text = text.strip().removeprefix("```json").removesuffix("```")
    return [_call(value) for found in _json_values(text) for value in _flat(found)]


def deepseek_calls(text: str, tools: Sequence[JsonDict]) -> list[ToolCall]:
    """V3 writes `function<sep>NAME` and a fenced block, V3.1 `NAME<sep>{...}`."""
    calls = []
    for before, after in _DEEPSEEK_CALL.findall(text):
        fenced = _DEEPSEEK_V3.fullmatch(after.strip())
        name, arguments = (fenced["name"], fenced["arguments"]) if fenced else (before, after)
        calls.append(ToolCall(name.strip(), _arguments(arguments)))
    if not calls:
        raise ValueError("no call between the markers")
    return calls


def llama_calls(text: str, tools: Sequence[JsonDict]) -> list[ToolCall]:
    """JSON, or calls in Python: `NAME.call(x="y")` of the built-in tools, `NAME(x="y")`."""
    if text.lstrip().startswith(("{", "[")):
        return json_calls(text, tools)
    body = ast.parse(text.strip()).body
    calls = [_python_call(line.value) for line in body if isinstance(line, ast.Expr)]
    if len(calls) != len(body):
        raise ValueError("a program is no call")
    return calls


def _python_call(value: ast.expr) -> ToolCall:
    match value:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=name), attr="call") | ast.Name(id=name),
            args=[],
            keywords=keywords,
        ):
            arguments = {str(given.arg): ast.literal_eval(given.value) for given in keywords}
            return ToolCall(name, _json(arguments))
    raise ValueError("not a call with named arguments")


@cache
def mlx_lm_parser(name: str) -> CallParser:
    """The parser of mlx-lm's module `name`."""
    module = importlib.import_module(f"{_borrowed_package()}.{name}")

    def parse(text: str, tools: Sequence[JsonDict]) -> list[ToolCall]:
        found = module.parse_tool_call(text, list(tools))
        return [_call(value) for value in _flat(found)]

    return parse


@cache
def exact_parser(name: str) -> CallParser:
    """The same, but numbers are told as the model wrote them; `name` reads an argument by its type.

    The module makes floats of them on its way: of 12345678901234567 the last digit would be another.
    """
    module = importlib.import_module(f"{_borrowed_package()}.{name}")
    read_all = mlx_lm_parser(name)

    def parse(text: str, tools: Sequence[JsonDict]) -> list[ToolCall]:
        numbers = {name: known for tool in tools for name, known in _numbers(tool).items()}
        calls = []
        found: Any = module.parse_tool_call(text, [_with_texts(tool) for tool in tools])
        for value in found if isinstance(found, list) else [found]:
            known = numbers.get(value["name"], {})
            told = {}
            for key, said in value["arguments"].items():
                is_number = key in known and said is not None
                if is_number and not known[key].fullmatch(said):
                    return read_all(text, tools)
                told[key] = said if is_number else _json(said)
            arguments = ", ".join(f"{_json(key)}: {said}" for key, said in told.items())
            calls.append(replace(_call({**value, "arguments": {}}), arguments=f"{{{arguments}}}"))
        return calls

    return parse


def _numbers(tool: JsonDict) -> dict[str, dict[str, re.Pattern[str]]]:
    """By function the arguments that are numbers, and how JSON writes them."""
    match tool:
        case {"function": {"name": str(name), "parameters": {"properties": dict(properties)}}}:
            types = {
                key: schema.get("type") for key, schema in properties.items() if isinstance(schema, dict)
            }
            return {
                name: {key: _NUMBERS[kind] for key, kind in types.items() if kind in ("integer", "number")}
            }
    return {}


def _with_texts(tool: JsonDict) -> JsonDict:
    """`tool`, whose numbers are texts."""
    match tool:
        case {"function": {"parameters": {"properties": dict(properties), **others}, **function}}:
            texts = {key: {"type": "string"} for known in _numbers(tool).values() for key in known}
            parameters = {**others, "properties": {**properties, **texts}}
            return {**tool, "function": {**function, "parameters": parameters}}
    return tool


def mlx_lm_markers(name: str) -> tuple[str, str]:
    """What opens and closes calls in the format of mlx-lm's module `name`."""
    module = importlib.import_module(f"{_borrowed_package()}.{name}")
    return module.tool_call_start, module.tool_call_end


def _borrowed_package() -> str:
    """Make mlx_lm/tool_parsers importable by a name that does not import mlx_lm."""
    if _BORROWED not in sys.modules:
        spec = importlib.util.find_spec("mlx_lm")
        assert spec is not None, "mlx-lm is a dependency"
        assert spec.origin is not None, "mlx-lm is a package with an __init__.py"
        package = ModuleType(_BORROWED)
        package.__path__ = [str(Path(spec.origin).parent / "tool_parsers")]
        sys.modules[_BORROWED] = package
    return _BORROWED


def _json_values(text: str) -> Iterator[object]:
    decoder = json.JSONDecoder()
    at = _end_of_separators(text, 0)
    if at == len(text):
        raise ValueError("no call between the markers")
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        at = _end_of_separators(text, at)


def _end_of_separators(text: str, at: int) -> int:
    match = _SEPARATORS.match(text, at)
    assert match is not None, "matches the empty text"
    return match.end()


def _flat(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _call(value: object) -> ToolCall:
    """Read a call of the shape `{name, arguments}`, `{tool_name, parameters}` or `{function: {...}}`."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise TypeError("a call must be an object")
    name = next((value[key] for key in ("name", "tool_name", "function") if key in value), None)
    if not isinstance(name, str):
        raise TypeError("a call must have a name")
    given = [value[key] for key in ("arguments", "parameters", "input") if key in value]
    return ToolCall(name.removeprefix("functions."), _arguments(given[0] if given else {}))


def _arguments(value: object) -> str:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise TypeError("arguments must be an object")
    return _json(value)


def _json(value: object) -> str:
    """The JSON of `value`. Halves of a character, as Python keeps them, are put together or replaced."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
