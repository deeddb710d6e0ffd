"""Answers in the formats of many model families, read whole, letter by letter and cut at random."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.api import formats
from dnet_core.api.formats import AnswerFormat, ReasoningFormat, ToolFormat
from dnet_core.api.harmony import HarmonyParser
from dnet_core.api.output import (
    CallArguments,
    CallBegun,
    CallWriter,
    Content,
    OutputParser,
    Part,
    Reasoning,
)

THINK = ReasoningFormat("<think>", "</think>")
PLAIN = AnswerFormat(THINK, formats.HERMES, False, True, (), frozenset())
TOOLS: list[dict[str, object]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                },
            },
        },
    }
    for name in ("weather", "news")
]
ARGUMENTS = {"city": "São Paulo", "days": 3}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
CALL = ("weather", ARGUMENTS)
Call = tuple[str, Any]


def family(name: str) -> ToolFormat:
    """The format of a family, found as for a model: by what its template holds."""
    everything = [found for _, found in (*formats._BY_TEMPLATE, *formats._BY_TOKENS)]
    return next(found for found in [*everything, formats.GENERIC] if found.family == name)


def read(
    pieces: Sequence[str],
    form: AnswerFormat = PLAIN,
    *,
    tools: Sequence[dict[str, object]] = (),
    in_reasoning: bool = False,
    one_only: bool = False,
) -> list[Part]:
    calls = CallWriter(tools, one_only=one_only)
    parser = HarmonyParser(calls) if form.is_harmony else OutputParser(form, calls, in_reasoning=in_reasoning)
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    assert all(part.text for part in parts if not isinstance(part, CallBegun)), parts
    return parts


def content(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


def reasoning(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Reasoning))


def calls(parts: Sequence[Part]) -> list[Call]:
    begun = [part for part in parts if isinstance(part, CallBegun)]
    assert [part.place for part in begun] == list(range(len(begun)))
    assert len({part.id for part in begun}) == len(begun)
    texts = [
        "".join(p.text for p in parts if isinstance(p, CallArguments) and p.place == b.place) for b in begun
    ]
    return [(b.name, json.loads(text)) for b, text in zip(begun, texts, strict=True)]


ANSWERS: dict[str, tuple[str, list[Call], str]] = {
    "hermes": (f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>', [CALL], ""),
    "generic": (
        (
            f'I look.\n<tool_call>{{"name": "weather", "arguments": {JSON}}}</tool_call>\n'
            '<tool_call>{"arguments": {}, "name": "news"}</tool_call>'
        ),
        [CALL, ("news", {})],
        "I look.",
    ),
    "llama3": (f'{{"name": "weather", "parameters": {JSON}}}', [CALL], ""),
    "llama3 behind its tag": (f'<|python_tag|>{{"name": "weather", "parameters": {JSON}}}', [CALL], ""),
    "llama3 in Python": (
        '<|python_tag|>weather.call(city="São Paulo", days=3)\nnews()',
        [CALL, ("news", {})],
        "",
    ),
    "deepseek-v3.1": (
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
            f"{JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        [CALL],
        "",
    ),
    "deepseek": (
        (
            "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            f"{JSON}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>news<｜tool▁sep｜>{{}}<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>"
        ),
        [CALL, ("news", {})],
        "Let me look.",
    ),
    "granite3": (f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}]', [CALL], ""),
    "phi4": (
        f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}, {{"name": "news"}}]<|/tool_call|>',
        [CALL, ("news", {})],
        "",
    ),
    "command-a": (
        (
            '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "weather", '
            f'"parameters": {JSON}}}\n]<|END_ACTION|>'
        ),
        [CALL],
        "",
    ),
    "command-r": (f'Action: ```json\n[{{"tool_name": "weather", "parameters": {JSON}}}]\n```', [CALL], ""),
    "nemotron": (f'<TOOLCALL>[{{"name": "weather", "arguments": {JSON}}}]</TOOLCALL>', [CALL], ""),
    "mistral": (f'[TOOL_CALLS] [{{"name": "weather", "arguments": {JSON}}}]', [CALL], ""),
    "qwen3_coder": (
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nSão Paulo\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
        ),
        [CALL],
        "",
    ),
    "glm47": (
        (
            "<tool_call>weather<arg_key>city</arg_key><arg_value>São Paulo</arg_value>"
            "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
        ),
        [CALL],
        "",
    ),
    "minimax_m2": (
        (
            '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">São Paulo</parameter>\n'
            '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
        ),
        [CALL],
        "",
    ),
    "minicpm5": (
        (
            '<function name="weather"><param name="city">São Paulo</param>'
            '<param name="days">3</param></function>'
        ),
        [CALL],
        "",
    ),
    "muse_spark": (
        (
            '<atem:function_calls><atem:invoke name="weather"><atem:parameter name="city">São Paulo'
            '</atem:parameter><atem:parameter name="days">3</atem:parameter></atem:invoke>'
            "</atem:function_calls>"
        ),
        [CALL],
        "",
    ),
    "longcat": (
        (
            "<longcat_tool_call>weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>"
            "São Paulo</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3"
            "</longcat_arg_value>\n</longcat_tool_call>"
        ),
        [CALL],
        "",
    ),
    "kimi_k2": (
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            f"{JSON}<|tool_call_end|><|tool_calls_section_end|>"
        ),
        [CALL],
        "",
    ),
    "kimi_k3": (
        (
            '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument key="city" '
            'type="string"<|sep|>São Paulo<|close|>argument<|sep|><|open|>argument key="days" '
            'type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
        ),
        [CALL],
        "",
    ),
    "pythonic": (
        '<|tool_call_start|>[weather(city="São Paulo", days=3), news()]<|tool_call_end|>',
        [CALL, ("news", {})],
        "",
    ),
    "gemma4": ('<|tool_call>call:weather{city:<|"|>São Paulo<|"|>,days:3}<tool_call|>', [CALL], ""),
    "function_gemma": (
        "<start_function_call>call:weather{city:<escape>São Paulo<escape>,days:3}<end_function_call>",
        [CALL],
        "",
    ),
    "harmony": (
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
            f"to=functions.weather <|constrain|>json<|message|>{JSON}<|call|>"
        ),
        [CALL],
        "",
    ),
}
FAMILIES = sorted({found.family for _, found in (*formats._BY_TEMPLATE, *formats._BY_TOKENS)} | {"generic"})


def format_of(name: str) -> AnswerFormat:
    return replace(PLAIN, tools=family(name.partition(" ")[0]), is_harmony=name == "harmony")


@pytest.mark.parametrize("name", ["hermes", "phi4", "command-a", "command-r", "nemotron"])
def test_an_argument_may_hold_the_marker_that_ends_calls(name: str) -> None:
    form = replace(PLAIN, tools=family(name))
    wish = f'a"{form.tools.end}\\'
    said = ANSWERS[name][0].replace(JSON, json.dumps({"city": wish}))
    for pieces in ([said], list(said)):
        parts = read(pieces, form, tools=TOOLS)
        assert calls(parts)[0] == ("weather", {"city": wish})
        assert content(parts).strip() == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("phi4", r'<|tool_call|>[{"name": "weather", "arguments": {"city": "%s"}}]<|/tool_call|>'),
        ("pythonic", '<|tool_call_start|>[weather(city="%s")]<|tool_call_end|>'),
        ("llama3", '<|python_tag|>weather.call(city="%s")'),
    ],
)
def test_escaped_halves_of_a_character_can_be_sent(name: str, said: str) -> None:
    for escaped, read_as in ((r"\ud83d\ude00", "😀"), (r"\ud83d", "\ufffd"), (r"\ude00", "\ufffd")):
        parts = read([said % escaped], format_of(name), tools=TOOLS)
        ((_, told),) = calls_as_told(parts)
        assert json.loads(told.encode()) == {"city": read_as}


BROKEN = '<tool_call>{"name": f, "arguments": {"city": "a}</tool_call>'
NEWS = '<tool_call>{"name": "news", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("between", ["\n", "", " and ", "</tool_call>"])
def test_a_missing_quote_takes_no_later_call_with_it(between: str) -> None:
    for pieces in ([BROKEN + between + NEWS], [*BROKEN, *between, *NEWS]):
        parts = read(pieces, tools=TOOLS)
        assert calls(parts) == [("news", {})]
        assert content(parts) == (BROKEN + between).rstrip()


def test_a_call_that_follows_a_broken_one_is_told_at_once() -> None:
    parser = OutputParser(PLAIN, CallWriter(TOOLS, one_only=False), in_reasoning=False)
    assert calls(parser.feed(f"{BROKEN}\n{NEWS}")) == [("news", {})]


def test_a_broken_call_at_the_end_is_content() -> None:
    for text in (BROKEN, BROKEN + "\n", BROKEN + "\n<tool_c", BROKEN + " and so on."):
        assert content(read(list(text), tools=TOOLS)) == text


@pytest.mark.parametrize("name", [*FAMILIES, "llama3 behind its tag", "llama3 in Python"])
def test_every_family_has_its_calls_read(name: str) -> None:
    text, expected, said = ANSWERS[name]
    form = format_of(name)
    for pieces in ([text], list(text)):
        parts = read(pieces, form, tools=TOOLS)
        assert calls(parts) == expected
        assert content(parts) == said
    assert not calls(read([text], form)), "without tools nothing is a call"


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30)
@given(data=st.data())
def test_how_a_text_is_cut_makes_no_difference(name: str, data: st.DataObject) -> None:
    alphabet = ["<think>", "</think>", "\n", "{", "}", '"', " ", "a", "<", ANSWERS[name][0]]
    alphabet += [text for text in (family(name).start, family(name).end) if text]
    if name == "harmony":
        alphabet += ["<|end|>", "<|start|>assistant", "<|channel|>final", "<|message|>"]
    text = "".join(data.draw(st.lists(st.sampled_from(alphabet), max_size=8)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    opened = data.draw(st.booleans())
    whole, cut = (read(p, format_of(name), tools=TOOLS, in_reasoning=opened) for p in ([text], pieces))
    assert content(cut) == content(whole)
    assert reasoning(cut) == reasoning(whole)
    assert calls_as_told(cut) == calls_as_told(whole)


def calls_as_told(parts: Sequence[Part]) -> list[tuple[str, str]]:
    begun = [part for part in parts if isinstance(part, CallBegun)]
    return [
        (b.name, "".join(p.text for p in parts if isinstance(p, CallArguments) and p.place == b.place))
        for b in begun
    ]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "harmony"])
def test_what_is_no_call_comes_back_as_content(name: str) -> None:
    form = family(name)
    for broken in ("{ not a call", '{"name": "nobody", "arguments": {}}'):
        text = form.start + broken + form.end
        parts = read([text], format_of(name), tools=TOOLS)
        assert (content(parts), calls(parts)) == (text, [])


@pytest.mark.parametrize("name", ["qwen3_coder", "glm47", "minimax_m2", "pythonic", "phi4", "mistral"])
@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "inf", "12345678901234567", "9" * 5000])
def test_numbers_of_any_size_lose_nothing(name: str, number: str) -> None:
    """Their digits are told, in JSON, or the call comes back as content."""
    text = (
        re.sub(r"\b3\b", number, ANSWERS[name][0]).replace(", news()", "").replace(', {"name": "news"}', "")
    )
    parts = read([text], format_of(name), tools=TOOLS)
    for _, told in calls_as_told(parts):
        found = json.loads(told, parse_int=str, parse_float=str, parse_constant=pytest.fail)
        assert found["days"] == number
    assert calls_as_told(parts) or content(parts) == text


def test_arguments_are_sent_on_as_they_are_written() -> None:
    pieces = [
        '<tool_call>{"name": "weather", "arguments": ',
        '{"city": "',
        "</tool_call>",
        '"}',
        "}</tool_call>!",
    ]
    parts = read(pieces, tools=TOOLS)
    assert [type(part) for part in parts] == [CallBegun, CallArguments, CallArguments, CallArguments, Content]
    assert calls(parts) == [("weather", {"city": "</tool_call>"})]
    assert content(parts) == "!"


def test_a_call_that_is_cut_off_is_told_as_far_as_it_went() -> None:
    parts = read(['<tool_call>{"name": "weather", "arguments": {"city": "Pa'], tools=TOOLS)
    assert calls_as_told(parts) == [("weather", '{"city": "Pa')]


def test_one_call_only() -> None:
    text, _, _ = ANSWERS["generic"]
    assert calls(read([text], format_of("generic"), tools=TOOLS, one_only=True)) == [CALL]


def test_reasoning() -> None:
    parts = read(["<th", "ink>\nLet me", " see.\n", "</think>\n\n", "It is."])
    assert (reasoning(parts), content(parts)) == ("Let me see.", "It is.")
    parts = read(["Let me see.</think>It is."], in_reasoning=True)
    assert (reasoning(parts), content(parts)) == ("Let me see.", "It is.")
    parts = read(["never done  "], in_reasoning=True)
    assert (reasoning(parts), content(parts)) == ("never done", "")


def test_a_marker_in_the_middle_of_an_answer_is_text() -> None:
    text = "Write <think> and </think> so."
    assert content(read([text])) == text


def test_white_space_of_a_plain_answer_is_kept() -> None:
    text = "  a \n\n b \n"
    assert content(read(list(text))) == text
    assert content(read(list(text), tools=TOOLS)) == text


def test_harmony() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
        "<|end|><|start|>assistant<|channel|>final<|message|>It is < 5.<|return|>"
    )
    for pieces in ([text], list(text)):
        parts = read(pieces, format_of("harmony"))
        assert (reasoning(parts), content(parts)) == ("Hm.", "I look.It is < 5.")


def test_a_call_in_harmony_without_tools_is_text() -> None:
    text, _, _ = ANSWERS["harmony"]
    assert content(read([text], format_of("harmony"))) == JSON
