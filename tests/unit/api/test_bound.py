"""Grammars of answers in the formats of all families: what they allow is read back as what was wanted.

No model is asked: tokens are drawn at random from those that the grammar allows, by the tail's own matcher.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tokenizers

from dnet_core.api import formats
from dnet_core.api.bound import chat_grammar, text_grammar
from dnet_core.api.errors import ApiError
from dnet_core.api.formats import AnswerFormat, ReasoningFormat, ToolFormat
from dnet_core.api.harmony import HarmonyParser
from dnet_core.api.output import CallArguments, CallBegun, CallWriter, Content, OutputParser, Reasoning
from dnet_core.api.prompts import Prompt, ReasoningState
from dnet_core.api.structured import Wanted
from dnet_core.api.tool_requests import BoundTool, CallRule
from dnet_core.errors import GrammarError
from dnet_core.generate.detokenize import Detokenizer
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.grammar import build
from dnet_core.grammar.matcher import GrammarTokenizer
from tests.tiny_tokenizers import byte_level

THINK = ReasoningFormat("<think>", "</think>")
WRITTEN = (
    formats.GENERIC,
    formats.HERMES,
    formats.LLAMA_3,
    formats.HARMONY,
    formats.DEEPSEEK,
    formats.DEEPSEEK_V3_1,
    formats.GRANITE_3,
    formats.PHI_4,
    formats.COMMAND_A,
    formats.COMMAND_R,
    formats.NEMOTRON,
    formats.QWEN3_CODER,
    formats.GLM47,
    formats.MINIMAX,
    formats.PYTHONIC,
    *(
        found
        for _, found in formats._BY_TEMPLATE
        if found.family in ("mistral", "kimi_k2") and found.write is not None
    ),
)
ALONE = (formats.LLAMA_3, formats.HARMONY)  # one call is all that the family writes
WEATHER = BoundTool(
    "weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    True,
    "tools[0].function.parameters",
)
NEWS = BoundTool(
    "news", {"type": "object", "properties": {}, "additionalProperties": False}, True, "tools[1]"
)
NOTHING = CallRule((), False, True)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [1, None, "x</think>"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON = Wanted("response_format", build.json_schema(SCHEMA))


class Model:
    """A tokenizer, as the head and as the tail see it."""

    def __init__(self, directory: Path, special: tuple[str, ...]) -> None:
        directory.mkdir()
        byte_level(directory)
        path = str(directory / "tokenizer.json")
        backend = tokenizers.Tokenizer.from_file(path)
        backend.add_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in special])
        backend.save(path)
        self.tokenizer = Tokenizer.load(directory)
        self.tail = GrammarTokenizer(directory)
        self.shown = [token for text in special if (token := self.tokenizer.token_id(text)) is not None]

    def walk(self, grammar: str, seed: int, limit: int = 600) -> str:
        """The text of tokens that `grammar` allows, drawn at random until nothing may follow."""
        drawn = random.Random(seed)
        matcher = self.tail.matcher(grammar)
        text = Detokenizer(self.tokenizer, self.shown)
        said = ""
        for _ in range(limit):
            if matcher.is_done:
                return said + text.flush()
            allowed = [int(i) for i in matcher.allowed(self.tokenizer.vocab_size).nonzero()[0]]
            # A text goes on as long as it may: control tokens and ends are drawn more often than others.
            ends = [i for i in allowed if i in self.tokenizer.control_tokens]
            token = drawn.choice(ends if ends and drawn.random() < 0.2 else allowed)
            if token in self.tokenizer.eos_token_ids:
                return said + text.flush()
            said += "".join(text.add(t) for t in (token, *matcher.take(token)))
        raise AssertionError(f"no end after {limit} tokens: {said[-200:]}")

    def takes(self, grammar: str, text: str) -> bool:
        """Whether `grammar` allows the answer `text`, written as the tokenizer writes it."""
        matcher, encode = self.tail.matcher(grammar), self.tokenizer.encode
        tokens = list(encode(text, add_special_tokens=False))
        while tokens:
            token = tokens.pop(0)
            if matcher.is_done or not matcher.allowed(self.tokenizer.vocab_size)[token]:
                return False
            forced = matcher.take(token)
            told, rest = (
                "".join(self.tokenizer.token_text(t) or "" for t in some) for some in (forced, tokens)
            )
            if not rest.startswith(told):
                return False
            while told:  # what is forced may be cut into other tokens
                piece = self.tokenizer.token_text(tokens.pop(0)) or ""
                assert told.startswith(piece), "the text of an answer has one spelling in these vocabularies"
                told = told.removeprefix(piece)
        return matcher.is_done


CONTROL = tuple(
    dict.fromkeys(
        text
        for form in WRITTEN
        for text in (form.start, form.end, *form.inner)
        if text and form is not formats.COMMAND_R
    )
)


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """All markers are tokens of their own, as in the models that were trained on them."""
    markers = (*CONTROL, *formats.RESPONSE_TOKENS, "</think>")
    return Model(tmp_path_factory.mktemp("models") / "tokens", markers)


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Markers are text like any other."""
    return Model(tmp_path_factory.mktemp("models") / "text", ())


def answer_form(tools: ToolFormat, reasoning: ReasoningFormat | None = None) -> AnswerFormat:
    return AnswerFormat(reasoning, tools, tools is formats.HARMONY, True, (), frozenset())


def prompt_of(form: AnswerFormat, state: ReasoningState = ReasoningState.ENDED) -> Prompt:
    return Prompt((), form, (), state)


def templates(rule: CallRule) -> list[dict[str, object]]:
    return [
        {"type": "function", "function": {"name": tool.name, "parameters": tool.schema}}
        for tool in rule.tools
    ]


def parsed(text: str, form: AnswerFormat, rule: CallRule, *, opened: bool = False) -> dict[str, Any]:
    """What the endpoint makes of an answer."""
    calls = CallWriter(templates(rule), one_only=not rule.many)
    parser = HarmonyParser(calls) if form.is_harmony else OutputParser(form, calls, in_reasoning=opened)
    parts = [part for char in text for part in parser.feed(char)] + parser.finish()
    begun = [part for part in parts if isinstance(part, CallBegun)]
    arguments = [
        "".join(p.text for p in parts if isinstance(p, CallArguments) and p.place == b.place) for b in begun
    ]
    return {
        "reasoning": "".join(part.text for part in parts if isinstance(part, Reasoning)),
        "content": "".join(part.text for part in parts if isinstance(part, Content)),
        "calls": [(b.name, json.loads(text)) for b, text in zip(begun, arguments, strict=True)],
    }


def check_calls(calls: list[tuple[str, Any]], rule: CallRule) -> None:
    schemas = {tool.name: tool.schema for tool in rule.tools}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])


SPOKEN = [
    pytest.param(form, model, id=f"{model}-{form.family}")
    for form in WRITTEN
    for model in ("with_tokens", "with_text")
    if (form, model) != (formats.HARMONY, "with_text")  # its messages end with tokens, or never
]


@pytest.mark.parametrize(("form", "model"), SPOKEN)
@pytest.mark.parametrize("many", [True, False])
async def test_what_must_be_called_is_called(
    form: ToolFormat, model: str, many: bool, request: pytest.FixtureRequest
) -> None:
    made: Model = request.getfixturevalue(model)
    rule = CallRule((WEATHER, NEWS), True, many)
    grammar = await chat_grammar(made.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    counts = set()
    for seed in range(12):
        found = parsed(made.walk(grammar, seed), answer_form(form), rule)
        check_calls(found["calls"], rule)
        assert found["content"].strip() == ""
        counts.add(len(found["calls"]))
    assert min(counts) == 1
    assert (max(counts) > 1) == (many and form not in ALONE)


@pytest.mark.parametrize(("form", "model"), SPOKEN)
async def test_what_may_be_called_is_called_right(
    form: ToolFormat, model: str, request: pytest.FixtureRequest
) -> None:
    """Any text, but once a call has begun it fits its function: it never comes back as content."""
    made: Model = request.getfixturevalue(model)
    rule = CallRule((WEATHER, NEWS), False, False)
    grammar = await chat_grammar(made.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    num_calls = num_texts = 0
    for seed in range(30):
        found = parsed(made.walk(grammar, seed, 4000), answer_form(form), rule)
        check_calls(found["calls"], rule)
        num_calls += bool(found["calls"])
        num_texts += not found["calls"]
        assert form.start not in found["content"] or not form.start
    assert num_texts
    if model == "with_tokens" and form not in (formats.COMMAND_R, formats.LLAMA_3):
        assert num_calls


FLAT = (formats.QWEN3_CODER, formats.GLM47, formats.MINIMAX, formats.PYTHONIC)
LOOK_UP = BoundTool(
    "look_up",
    {
        "type": "object",
        "properties": {
            "note": {"type": "string", "minLength": 1, "maxLength": 9, "description": "any"},
            "unit": {"type": "string", "enum": ["°C", "K"]},
            "share": {"type": "number", "minimum": 0, "maximum": 9},
            "sure": {"type": "boolean"},
            "days": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 5},
                "maxItems": 3,
            },
        },
        "required": ["sure", "note"],
        "additionalProperties": False,
    },
    True,
    "tools[2]",
)


@pytest.mark.parametrize("form", FLAT, ids=lambda form: form.family)
@pytest.mark.parametrize("model", ["with_tokens", "with_text"])
async def test_arguments_that_stand_flat(
    form: ToolFormat, model: str, request: pytest.FixtureRequest
) -> None:
    """Some are required, in whatever order the schema names them; of others any may be there."""
    made: Model = request.getfixturevalue(model)
    optional = replace(LOOK_UP, name="optional", schema={**LOOK_UP.schema, "required": []})
    rule = CallRule((LOOK_UP, optional), True, True)
    assert form.can_bind(rule)
    grammar = await chat_grammar(made.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    told = [parsed(made.walk(grammar, seed, 4000), answer_form(form), rule) for seed in range(25)]
    for found in told:
        check_calls(found["calls"], rule)
        assert found["content"].strip() == ""
    named = {name for found in told for _, arguments in found["calls"] for name in arguments}
    assert named == LOOK_UP.schema["properties"].keys()


SAID = {
    formats.QWEN3_CODER.family: (
        "<tool_call>\n<function=say>\n<parameter=text>\n{}\n</parameter>\n</function>\n</tool_call>"
    ),
    formats.GLM47.family: (
        "<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
    ),
    formats.MINIMAX.family: (
        '<minimax:tool_call>\n<invoke name="say">\n<parameter name="text">{}</parameter>\n</invoke>\n'
        "</minimax:tool_call>"
    ),
    formats.PYTHONIC.family: '<|tool_call_start|>[say(text="{}")]<|tool_call_end|>',
}
HARMLESS = ("the fox", "a<b", "</param", "</function>", "nullify", "a  b", "[x](y)", "it's")


@pytest.mark.parametrize("form", FLAT, ids=lambda form: form.family)
@pytest.mark.parametrize("model", ["with_tokens", "with_text"])
async def test_a_text_cannot_end_its_argument_or_its_call(
    form: ToolFormat, model: str, request: pytest.FixtureRequest
) -> None:
    """What the grammar lets a model say is what the parser reads."""
    made: Model = request.getfixturevalue(model)
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    rule = CallRule((BoundTool("say", schema, True, "tools[0]"),), True, False)
    grammar = await chat_grammar(made.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    marks = ("</parameter>", "</invoke>", "</arg_value>", form.start, form.end, '"', "\\", '")]', "\n")
    taken = []
    for text in (*HARMLESS, "null", "NULL", " a", "a ", *(f"a{mark}b" for mark in marks)):
        said = SAID[form.family].format(text)
        if made.takes(grammar, said):
            taken.append(text)
            found = parsed(said, answer_form(form), rule)["calls"]
            assert found == [("say", {"text": text})], said
    assert set(taken) >= set(HARMLESS)
    assert ("null" in taken) == (form is formats.PYTHONIC)
    assert f"a{form.end}b" not in taken or form is formats.PYTHONIC


@pytest.mark.parametrize("form", FLAT, ids=lambda form: form.family)
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "pattern": "^a"}}},
        {"properties": {"a": {"type": "string", "format": "date"}}},
        {"properties": {"a": {"type": ["string", "null"]}}},
        {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}},
        {"properties": {"a": {"type": "object"}}},
        {"properties": {"a": {"type": "array", "items": {"type": "string"}}}},
        {"properties": {"a": {"type": "string", "enum": ["null", "b"]}}},
        {"properties": {"a": {"type": "string", "enum": [" b"]}}},
        {"properties": {"a": {"type": "string", "maxLength": -1}}},
        {"properties": {"a b": {"type": "string"}}},
        {"properties": {"a": True}},
        {"properties": [], "required": []},
        {"properties": {}, "required": ["a"]},
        {"properties": {}, "minProperties": 1},
    ],
)
def test_what_cannot_be_written_flat_is_asked_for_as_json(form: ToolFormat, schema: dict[str, Any]) -> None:
    tool = BoundTool("f", {"type": "object", **schema}, True, "tools[0]")
    assert not form.can_bind(CallRule((WEATHER, tool), True, True))


def test_names_that_python_cannot_write() -> None:
    for name, argument in (("f-g", "a"), ("f", "class"), ("f.import", "a"), ("f", "a-b")):
        tool = BoundTool(name, {"properties": {argument: {"type": "integer"}}}, True, "tools[0]")
        assert not formats.PYTHONIC.can_bind(CallRule((tool,), True, True))
        assert formats.QWEN3_CODER.can_bind(CallRule((tool,), True, True))


NUMBERS = ("12345678901234567", "-0", "1.5", "1e22", "1e999", "123456789012345678901234.5", "9" * 400)


@pytest.mark.parametrize("form", FLAT, ids=lambda form: form.family)
@pytest.mark.parametrize("kind", ["integer", "number"])
async def test_numbers_stay_as_they_are_written(form: ToolFormat, kind: str, with_text: Model) -> None:
    """Those that a grammar allows: none of them comes back as content."""
    schema = {"type": "object", "properties": {"text": {"type": kind}}, "required": ["text"]}
    rule = CallRule((BoundTool("say", schema, True, "tools[0]"),), True, False)
    grammar = await chat_grammar(with_text.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    taken = []
    for number in NUMBERS:
        said = SAID[form.family].replace('"{}"', "{}").format(number)
        if not with_text.takes(grammar, said):
            continue
        taken.append(number)
        (call,) = form.parse(said.removeprefix(form.start).removesuffix(form.end), templates(rule))
        # Python's own values are read where calls are Python: its integers are exact, too.
        exact = float if form is formats.PYTHONIC and kind == "number" else Decimal
        assert json.loads(call.arguments, parse_float=exact, parse_int=exact) == {"text": exact(number)}
    assert {"12345678901234567", "-0"} <= set(taken)
    assert ("1.5" in taken) == ("1e22" in taken) == (kind == "number")


@pytest.mark.parametrize("form", FLAT, ids=lambda form: form.family)
async def test_a_choice_may_be_any_character(form: ToolFormat, with_text: Model) -> None:
    choice = 'a "😀" \\'
    schema = {"type": "object", "properties": {"text": {"enum": [choice], "type": "string"}}}
    tool = BoundTool("say", {**schema, "required": ["text"]}, True, "tools[0]")
    rule = CallRule((tool,), True, False)
    grammar = await chat_grammar(with_text.tokenizer, prompt_of(answer_form(form)), None, rule)
    assert grammar is not None
    said = with_text.walk(grammar, 0)
    assert "😀" in said
    assert parsed(said, answer_form(form), rule)["calls"] == [("say", {"text": choice})]


async def test_a_bare_object_is_a_call(with_text: Model) -> None:
    """Llama 3 has no marker: what begins with a brace is a call, and nothing else is."""
    prompt, rule = prompt_of(answer_form(formats.LLAMA_3)), CallRule((WEATHER, NEWS), False, False)
    grammar = await chat_grammar(with_text.tokenizer, prompt, None, rule)
    assert grammar is not None
    matcher, encode = with_text.tail.matcher(grammar), with_text.tokenizer.encode
    (brace,) = encode("{", add_special_tokens=False)
    assert matcher.allowed(with_text.tokenizer.vocab_size)[brace]
    forced = matcher.take(brace)
    assert with_text.tokenizer.decode(forced).startswith('"name"')
    for text in (" {", "\n"):
        (token,) = encode(text, add_special_tokens=False)[:1]
        assert not with_text.tail.matcher(grammar).allowed(with_text.tokenizer.vocab_size)[token]


@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.family)
@pytest.mark.parametrize("wanted", [None, JSON])
async def test_one_function_and_an_answer_that_may_be_one_or_the_other(
    form: ToolFormat, wanted: Wanted | None, with_tokens: Model
) -> None:
    rule = CallRule((WEATHER,), wanted is None, False)
    grammar = await chat_grammar(with_tokens.tokenizer, prompt_of(answer_form(form)), wanted, rule)
    assert grammar is not None
    for seed in range(8):
        found = parsed(with_tokens.walk(grammar, seed), answer_form(form), rule)
        if found["calls"]:
            check_calls(found["calls"], rule)
        else:
            assert wanted is not None
            jsonschema.validate(json.loads(found["content"]), SCHEMA)


@pytest.mark.parametrize("state", list(ReasoningState))
@pytest.mark.parametrize("model", ["with_tokens", "with_text"])
@pytest.mark.parametrize(
    "reasoning", [THINK, ReasoningFormat("Here is my thought process:", "Here is my response:")]
)
async def test_reasoning_comes_before_the_answer(
    reasoning: ReasoningFormat, state: ReasoningState, model: str, request: pytest.FixtureRequest
) -> None:
    made: Model = request.getfixturevalue(model)
    form = answer_form(formats.HERMES, reasoning)
    grammar = await chat_grammar(made.tokenizer, prompt_of(form, state), JSON, NOTHING)
    assert grammar is not None
    matcher = made.tail.matcher(grammar)
    encode = made.tokenizer.encode
    answer = '{"a":null,"b":true}'
    thought = f"Hm, {{ or </thin or Here is my res\n{reasoning.end}\n\n"
    text = {"free": reasoning.start + thought, "open": thought, "ended": ""}[state.value] + answer
    tokens = list(encode(text, add_special_tokens=False))
    while tokens:
        token = tokens.pop(0)
        assert matcher.allowed(made.tokenizer.vocab_size)[token], made.tokenizer.token_text(token)
        forced = list(matcher.take(token))
        told = "".join(made.tokenizer.decode([t]) for t in forced)
        rest = "".join(made.tokenizer.decode([t]) for t in tokens)
        assert rest.startswith(told)
        tokens = list(encode(rest[len(told) :], add_special_tokens=False)) if forced else tokens
    assert matcher.is_done
    found = parsed(text, form, NOTHING, opened=state is ReasoningState.OPEN)
    assert json.loads(found["content"]) == {"a": None, "b": True}
    if state is not ReasoningState.ENDED:
        assert found["reasoning"].startswith("Hm, {")


async def test_harmony_answers_in_its_final_message(with_tokens: Model) -> None:
    form = answer_form(formats.HARMONY)
    grammar = await chat_grammar(with_tokens.tokenizer, prompt_of(form), JSON, NOTHING)
    assert grammar is not None
    for seed in range(10):
        text = with_tokens.walk(grammar, seed, 4000)
        found = parsed(text, form, NOTHING)
        jsonschema.validate(json.loads(found["content"]), SCHEMA)


async def test_command_a_sets_its_markers_around_an_answer(with_tokens: Model) -> None:
    form = replace(answer_form(formats.COMMAND_A), dropped=formats.RESPONSE_TOKENS)
    grammar = await chat_grammar(with_tokens.tokenizer, prompt_of(form), JSON, NOTHING)
    assert grammar is not None
    text = with_tokens.walk(grammar, 1)
    assert text.startswith(formats.RESPONSE_TOKENS[0])
    jsonschema.validate(json.loads(parsed(text, form, NOTHING)["content"]), SCHEMA)


async def test_errors_name_the_field(with_text: Model) -> None:
    wrong = Wanted("response_format", build.json_schema({"type": "objekt"}))
    with pytest.raises(ApiError, match=r"response_format: .*objekt") as refused:
        await chat_grammar(with_text.tokenizer, prompt_of(answer_form(formats.HERMES)), wrong, NOTHING)
    assert (refused.value.status, refused.value.param) == (400, "response_format")
    with pytest.raises(ApiError, match=r"(?s)guided_regex: .*unclosed"):
        await text_grammar(with_text.tokenizer, Wanted("guided_regex", build.regex("[")))
    with pytest.raises(ApiError, match=r"(?s)guided_grammar: .*unknown name"):
        await text_grammar(with_text.tokenizer, Wanted("guided_grammar", build.lark("start: nobody")))
    bad = BoundTool("f", {"type": "object", "not": {}}, True, "tools[1].function.parameters")
    rule = CallRule((WEATHER, bad), True, True)
    with pytest.raises(ApiError, match="not") as refused:
        await chat_grammar(with_text.tokenizer, prompt_of(answer_form(formats.HERMES)), JSON, rule)
    assert refused.value.param == "tools[1].function.parameters"
    lenient = CallRule((WEATHER, replace(bad, strict=False)), True, True)
    assert await chat_grammar(with_text.tokenizer, prompt_of(answer_form(formats.HERMES)), None, lenient)


def alone(model: Model, part: dict[str, object]) -> str:
    writer = build.GrammarWriter(model.tokenizer.control_tokens)
    return writer.grammar(writer.part(part))


async def test_what_is_not_bound_is_free(with_text: Model) -> None:
    loose = CallRule((replace(WEATHER, strict=False),), False, True)
    assert (
        await chat_grammar(with_text.tokenizer, prompt_of(answer_form(formats.HERMES)), None, loose) is None
    )
    assert await text_grammar(with_text.tokenizer, None) is None


def test_a_grammar_that_has_become_too_complex_is_an_error(with_text: Model) -> None:
    matcher = with_text.tail.matcher(alone(with_text, build.regex("a")))
    assert matcher.allowed(with_text.tokenizer.vocab_size).any()
    with pytest.raises(GrammarError):
        matcher.take(with_text.tokenizer.encode("b", add_special_tokens=False)[0])
