"""Stop strings, matched on text across token boundaries.

    stops ("\\n\\n", "END"):   "fine.\\n"  ->  "fine." is safe, "\\n" is held back
                             "\\nmore"   ->  matched "\\n\\n"; nothing after it is ever shown

The stop string that is complete first ends the text: it is where generation would have stopped. How the text
was cut into pieces makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first of `stops` in a text that arrives in pieces. Owned by one generation."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""  # the end of the text so far that could still become a stop string
        self._matched = False

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece; return text that is safe to show, and the stop string if one is complete.

        The safe text ends before the stop string. Nothing may be fed after a match.
        """
        assert not self._matched, "the text has ended at a stop string"
        text = self._held + text
        found = [(text.index(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if found:
            # First to end; of two that end together the longer one, so that none of it is shown.
            stop_at, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self._matched, self._held = True, ""
            return text[: stop_at - len(stop)], stop
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        safe = len(text) - num_held
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """Return what was held back, when the text has ended by itself."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins, less than all of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
