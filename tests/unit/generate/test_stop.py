"""Stop strings, by example."""

from __future__ import annotations

import pytest

from dnet_core.generate.stop import StopMatcher


def test_holds_back_only_what_may_become_a_stop_string() -> None:
    matcher = StopMatcher(("\n\n", "END"))
    assert matcher.feed("fine.\n") == ("fine.", None)
    assert matcher.feed("E") == ("\n", None)
    assert matcher.feed("Nx") == ("ENx", None)
    assert matcher.feed("EN") == ("", None)
    assert matcher.feed("D and more") == ("", "END")
    assert matcher.flush() == ""


def test_end_of_text_releases_what_was_held() -> None:
    matcher = StopMatcher(("stop",))
    assert matcher.feed("non-sto") == ("non-", None)
    assert matcher.flush() == "sto"
    assert matcher.flush() == ""


def test_the_first_to_be_complete_wins() -> None:
    assert StopMatcher(("abcd", "bc")).feed("xabcd") == ("xa", "bc")
    # Two that end together: none of the longer one is shown.
    assert StopMatcher(("b", "ab")).feed("xab") == ("x", "ab")


def test_no_stop_strings_hold_nothing() -> None:
    assert StopMatcher(()).feed("anything") == ("anything", None)


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(("a",))
    matcher.feed("a")
    with pytest.raises(AssertionError, match="ended"):
        matcher.feed("b")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))
