"""However a text is cut into pieces, the stop strings found are those of the whole text."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.generate.stop import StopMatcher

# Few letters: overlaps, repeats and near misses are what can go wrong.
TEXT = st.text(alphabet="ab🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=5), max_size=4)


def whole_text_answer(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Walk through the text as it grows; the first prefix that ends in a stop string is where it stops."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(deadline=None)
@given(text=TEXT, stops=STOPS, data=st.data())
def test_any_splitting_gives_the_same(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)
    shown, matched = "", None
    for piece in pieces:
        safe, matched = matcher.feed(piece)
        shown += safe
        if matched is not None:
            break
    assert (shown + matcher.flush(), matched) == whole_text_answer(text, stops)


@settings(deadline=None)
@given(text=TEXT, stops=STOPS)
def test_what_is_held_back_could_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, matched = matcher.feed(text)
    held = matcher.flush()
    if matched is None:
        assert shown + held == text
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    else:
        assert not re.search("|".join(map(re.escape, stops)), shown)
