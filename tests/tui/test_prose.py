"""Streamed Markdown ends as fresh Markdown does, for every kind of document and however it is cut."""

from __future__ import annotations

import random

import pytest
from markdown_it import MarkdownIt
from rich.style import Style
from textual.color import Color
from textual.strip import Strip

from dnet_tui.blocks import Renderer, printable
from dnet_tui.look import Look
from dnet_tui.prose import Prose

LOOK = Look(
    dark=True,
    foreground=Color.parse("#e0e0e0"),
    background=Color.parse("#121212"),
    muted=Color.parse("#909090"),
    primary=Color.parse("#0178d4"),
    accent=Color.parse("#ffa62b"),
    success=Color.parse("#4ebf71"),
    warning=Color.parse("#ffa62b"),
    error=Color.parse("#ba3c5b"),
    raised=Color.parse("#222222"),
)
RENDERER = Renderer(LOOK)

DOCUMENTS = {
    "prose": "One *two* **three** `four`\nstill the first paragraph.\n\nThe second, with [a link](http://a.b).\n",
    "headings": "# One\ntext\n## Two\n\nSetext\n===\n\nnot setext\n--\nend",
    "list": "Before\n- one\n- two\n  - nested\n  - more\n\n  a paragraph inside\n- three\n\nAfter\n\n"
    "7. seven\n8. eight\n",
    "rule or item": "- a\n---x\n- b\n\n---\n\ntext\n***\n- - -\n",
    "fence": "Look:\n```python\ndef f(x):\n\n    return x\n```\nand\n\n"
    "    indented\n\n~~~\n``` inside\n~~~\nend\n",
    "open fence": "```\nnever closed\n\n# not a heading\n",
    "quote": "> one\n> > deeper\nlazy\n\n> - list\n>   in a quote\n\nend\n",
    "table": "para\n| a | b |\n|---|--:|\n| 1 | `2` |\n| 3 | **4** |\n\nend | of it\n",
    "links": "A [late] one and [another][late].\n\n[late]: http://a.b 'title'\n\nuse [late] again\n",
    "html": "<div>\nshown\n</div>\n\ntext <b>bold</b> <think>hm</think>\n",
    "wide": "漢字かな交じり文 " * 20 + "\n\n👩‍👩‍👧 emoji é\n",
    "blank lines": "\n\n\na\n\n\n\nb   \n\n\n",
    "escapes": "a \x1b[31mred\x07 \u202eback\r\nnext\tline\n",
}


def streamed(text: str, cuts: list[int], width: int) -> list[str]:
    prose = Prose(RENDERER, width)
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        prose.append(text[start:stop])
    return [strip.text.rstrip() for strip in prose.strips]


def fresh(text: str, width: int) -> list[str]:
    return streamed(text, [], width)


def is_settled_by_its_end(name: str) -> bool:
    return name != "links"  # a definition reaches back: the app renders an answer once in full at its end


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_split_in_two_ends_the_same(name: str) -> None:
    text = printable(DOCUMENTS[name])
    expected = fresh(text, 60)
    for cut in range(1, len(text)):
        if is_settled_by_its_end(name):
            assert streamed(text, [cut], 60) == expected, repr(text[:cut])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_prefix_of_a_stream_looks_like_the_same_text_at_once(name: str) -> None:
    if not is_settled_by_its_end(name):
        return
    text = printable(DOCUMENTS[name])
    prose = Prose(RENDERER, 40)
    for end in range(1, len(text) + 1):
        prose.append(text[end - 1])
        assert [s.text.rstrip() for s in prose.strips] == fresh(text[:end], 40), repr(text[:end])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_at_its_end_a_stream_is_the_same_cell_by_cell(name: str) -> None:
    """Late links and colours included: a code block that streamed was highlighted in pieces until then."""
    text = DOCUMENTS[name]
    shown = Prose(RENDERER, 40)
    shown.show(text)
    for cuts in ([], list(range(1, len(text), 3))):
        prose = Prose(RENDERER, 40)
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            prose.append(text[start:stop])
        prose.finish()
        prose.polish()
        assert [list(strip) for strip in prose.strips] == [list(strip) for strip in shown.strips]


@pytest.mark.parametrize(
    "text",
    [
        "one  two",
        "漢字 かな",
        "👩‍👩‍👧 é",
        "&lt;b&gt; \\*no\\* [x] :smile:",
        "end  ",
        "a\u00a0b",
        "a\tb",
        "*em*",
        "`c`",
    ],
)
def test_plain_text_is_what_markdown_makes_of_it(text: str) -> None:
    (block,) = [list(MarkdownIt("commonmark").parse(text))]
    by_rich = [list(strip) for strip in RENDERER._render(block, 40)]
    assert [list(strip) for strip in RENDERER.blocks(block, 40, {}, final=True)] == by_rich


LONG_STRING = 'text = """\n' + "".join(f"line {i}\n" for i in range(20)) + '"""\n'


@pytest.mark.parametrize("frame", ["{}", "- item\n\n{}", "> {}", "before\n\n{}\nafter\n\n{}\nlast"])
def test_long_code_is_highlighted_as_a_whole_step_by_step(frame: str) -> None:
    """A string goes on over the pieces in which the code streamed."""
    prefix = {"-": "  ", ">": "> "}.get(frame[0], "")
    code = f"```python\n{LONG_STRING}```\n".replace("\n", f"\n{prefix}").removesuffix(prefix)
    text = frame.replace("{}", code if frame[0] != "-" else f"  {code}")
    once, streamed_ = Prose(RENDERER, 40), Prose(RENDERER, 40)
    once.show(text)
    for start in range(0, len(text), 7):
        streamed_.append(text[start : start + 7])
    streamed_.finish()
    pieces = streamed_.strips
    assert [s.text for s in pieces] == [s.text for s in once.strips]
    assert [list(s) for s in pieces] != [list(s) for s in once.strips], "else there is nothing to test"
    num_steps = 0
    while not streamed_.is_polished:
        changed = streamed_.polish(0)
        num_steps += 1
        if changed is not None:
            assert pieces[: changed[0]] == streamed_.strips[: changed[0]]
            assert pieces[changed[1] :] == streamed_.strips[changed[1] :]
            pieces = streamed_.strips
    assert num_steps > 10
    assert [list(s) for s in streamed_.strips] == [list(s) for s in once.strips]


@pytest.mark.parametrize("between", ["\n", "\x0b\n"], ids=["newline", "a newline to the lexer only"])
def test_a_lexer_that_adds_newlines_adds_no_lines(between: str) -> None:
    code = "*** Test Cases ***\nOne\n" + between.join(f"    Log    {i}" for i in range(24))
    prose = Prose(RENDERER, 40)
    prose.append(f"```robotframework\n{code}\n```\nafter\n")
    prose.finish()
    before = [strip.text for strip in prose.strips]
    prose.polish()
    assert [strip.text for strip in prose.strips] == before
    assert sum("Log" in line for line in before) == 24
    assert len(before) == 26 + 2, "the code, a blank line, and what is after it"


def test_the_end_renders_nothing_again_that_is_settled() -> None:
    prose = Prose(RENDERER, 60)
    prose.append("See [the note] first.\n\n" + "plain\n\n" * 50 + "last\n")
    settled = prose.strips[: prose.num_settled]
    assert prose.finish() == prose.num_strips
    assert all(old is new for old, new in zip(settled, prose.strips, strict=False))


def test_a_late_definition_renders_only_what_may_use_it() -> None:
    prose = Prose(RENDERER, 60)
    for text in (
        "plain\n\n",
        "See [the note] first.\n\n",
        "plain\n\n",
        "more\n\n",
        "[the note]: http://a.b\n",
    ):
        prose.append(text)
    before = prose.strips
    assert prose.finish() == 2
    changed = [y for y, (old, new) in enumerate(zip(before, prose.strips, strict=False)) if old is not new]
    assert changed == [2]
    assert prose.strips[2].text == "See the note first."


def test_below_a_settled_block_only_new_lines_count_as_changed() -> None:
    prose = Prose(RENDERER, 60)
    prose.append("Before\n\n" + "".join(f"- item {i}\n" for i in range(30)))
    before = prose.num_strips
    assert prose.append("- item 30\n") == before


@pytest.mark.parametrize("block", ["list", "fence", "table", "quote"])
def test_what_was_rendered_is_not_rendered_again(block: str) -> None:
    """However long the block that streams: all but its end are the very same strips."""
    row = {
        "list": "- item {}\n",
        "fence": "value_{} = 1\n",
        "table": "| a {} | b |\n",
        "quote": "> - item {}\n",
    }
    head = {"fence": "```python\n", "table": "| one two | b |\n|---|---|\n"}.get(block, "")
    prose = Prose(RENDERER, 60)
    prose.append(head + "".join(row[block].format(i) for i in range(10, 60)))
    before = prose.strips
    changed = prose.append(row[block].format(60))
    same = sum(old is new for old, new in zip(before, prose.strips, strict=False))
    assert len(prose.strips) > 50
    assert same >= len(before) - 13, "at most one piece of code is highlighted again"
    assert changed >= len(before) - 13


def test_random_splits_of_everything_together() -> None:
    chance = random.Random(11)
    names = [name for name in DOCUMENTS if is_settled_by_its_end(name)]
    for _ in range(40):
        chance.shuffle(names)
        text = printable("\n\n".join(DOCUMENTS[name] for name in names[:5]))
        cuts = sorted(chance.sample(range(1, len(text)), 25))
        assert streamed(text, cuts, 50) == fresh(text, 50), (names[:5], cuts)


@pytest.mark.parametrize("width", [1, 8, 11, 33])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_width_breaks_it_and_no_line_is_wider(name: str, width: int) -> None:
    prose = Prose(RENDERER, width)
    prose.append(DOCUMENTS[name])
    nested = name in {"list", "quote", "table", "rule or item"}  # their gutters may not fit 8 cells
    assert nested or all(strip.cell_length <= max(width, 8) for strip in prose.strips)


def test_late_definitions_are_right_when_rendered_at_once() -> None:
    assert "[late]" not in "\n".join(fresh(DOCUMENTS["links"], 60))


def test_only_the_last_block_is_rendered_again() -> None:
    prose = Prose(RENDERER, 60)
    prose.append("one\n\ntwo\n\nthree\n\n")
    settled = prose.strips[: prose.num_settled]
    assert [strip.text.strip() for strip in settled] == ["one", "", "two"]
    prose.append("four and five")
    assert all(a is b for a, b in zip(prose.strips, settled, strict=False))


def test_a_model_cannot_steer_the_terminal() -> None:
    shown = "\n".join(fresh(DOCUMENTS["escapes"], 60))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "␛[31mred␇" in shown
    text = RENDERER.text("a\x1b]0;title\x07", LOOK.text, 20)
    assert all("\x1b" not in strip.text for strip in text)


MARKS = (
    "The *ring* hands `an  activation` from **one *of* two** to [the next](http://a.b)"
    " as ~~no~~ snake_case * 2. "
)
LONG = {
    "plain": "The ring hands an activation from one device to the next and the last one samples. " * 60,
    "marks": MARKS * 50,
    "lines": (MARKS + "\n") * 40,
    "breaks": (MARKS + " \n") * 40,
    "brackets": "As [1] says, and [see *that* too], it is ~5 GB in [all]. " * 60,
    "an open bracket": "[a link that " + "goes on and on and " * 150 + "ends](http://a.b) here. " * 20,
    "an open mark": "a `code span that " + "goes on and on and " * 150 + "ends` here " + MARKS * 20,
    "bold all over": "**" + "every word of it " * 150 + "** " + MARKS * 20,
    "wide": "漢字かな 交じり文 👩‍👩‍👧 é " * 200,
    "one word": "x" * 4000 + " " + MARKS * 20,
    "a late link": "[late] " * 10 + MARKS * 40 + "\n\n[late]: http://a.b\n",
    "then others": "# Title\n\n- one\n\n" + MARKS * 40 + "\n\n" + MARKS * 40 + "\n- a list\n\n" + MARKS * 30,
    "a heading after all": MARKS * 30 + "\n===\n\nend\n",
    "quoted": "> " + MARKS * 30,
    "tabs": "one\ttwo " * 300,
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_paragraph_looks_the_same_at_every_moment(name: str) -> None:
    """Its front is not rendered again, and yet all letters and styles are those of the whole text."""
    text = LONG[name]
    prose, shown = Prose(RENDERER, 47), ""
    for start in range(0, len(text), 211):
        prose.append(text[start : start + 211])
        shown += text[start : start + 211]
        plain = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        whole = RENDERER.blocks(plain.parse(shown), 47, {}, final=False)
        if name != "a late link":  # those wait for the end
            assert [letters(strip) for strip in prose.strips] == [letters(strip) for strip in whole], start
    prose.finish()
    whole_text = Prose(RENDERER, 47)
    whole_text.show(text)
    assert [list(strip) for strip in prose.strips] == [list(strip) for strip in whole_text.strips]


def letters(strip: Strip) -> list[tuple[str, Style]]:
    """Each letter with its style, without the spaces at the end."""
    found = [(letter, segment.style or Style()) for segment in strip for letter in segment.text]
    while found and found[-1][0] == " " and found[-1][1].bgcolor is None:
        found.pop()
    return found


@pytest.mark.parametrize("name", ["plain", "marks", "lines", "brackets", "wide"])
def test_the_front_of_a_long_paragraph_is_not_rendered_again(name: str) -> None:
    prose = Prose(RENDERER, 40)
    prose.append(LONG[name])
    prose.append("and so on ")  # from here on it is known to be long
    for _ in range(5):
        before = prose.strips
        changed = prose.append("some words more ")
        assert len(before) > 70
        assert changed > len(before) - 40
        assert all(old is new for old, new in zip(before[:changed], prose.strips, strict=False))
