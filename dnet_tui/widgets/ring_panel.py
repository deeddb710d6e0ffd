"""The ring in order: every hop with what it runs over, and the answers that are being made."""

from __future__ import annotations

from textual.events import Click
from textual.reactive import reactive

from dnet_tui.figures import DeviceFigures, device_figures
from dnet_tui.look import Look, fg
from dnet_tui.state import Session
from dnet_tui.units import bytes_text, count_text, hop_text, medium_text
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.panel import Line, Panel
from dnet_tui.widgets.timeline import title

_MOST_ANSWERS = 4


class RingPanel(Panel):
    """Paints who hands on to whom in `view`, with round trips."""

    DEFAULT_CSS = "RingPanel { height: auto; }"

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        ring = [f for f in device_figures(self.view) if f.assignment is not None]
        if not ring:
            return [title("Ring", "", width, look), [("no layers loaded", look.dim)]]
        if len(ring) == 1:
            only = ring[0]
            return [title("Ring", "", width, look), [(f"{only.letter} {only.name} alone: no hops", look.dim)]]
        plan = self.view.plan
        rounds = f"{plan.rounds} rounds" if plan is not None and plan.rounds > 1 else ""
        lines = [title("Ring", rounds, width, look)]
        lines += [_hop(f, look) for f in ring]
        return lines

    def on_click(self, event: Click) -> None:
        y = event.get_content_offset_capture(self).y
        ring = [f for f in device_figures(self.view) if f.assignment is not None]
        if 1 <= y <= len(ring) > 1:
            self.post_message(DeviceList.Opened(ring[y - 1].name))


def _hop(f: DeviceFigures, look: Look) -> Line:
    assert f.hop is not None, "a ring of several has a hop from each"
    own = look.bad if f.is_lost else fg(look.device(f.index), bold=True)
    medium = medium_text(f.hop.medium) if f.hop.medium is not None else "not measured"
    trip = hop_text(f.hop.round_trip_s) if f.hop.round_trip_s is not None else "–"
    rate = f"{bytes_text(f.hop.bytes_per_s)}/s" if f.hop.bytes_per_s is not None else "–"
    return [
        (f.letter, own),
        (f" → {f.hop.letter}  ", look.dim),
        (f"{medium:<14}", look.text),
        (f"{trip:>9}", look.text),
        (f"{rate:>12}", look.dim),
    ]


class AnswersPanel(Panel):
    """Paints the sessions of `view`, and whose they are: the chat's, or come over the API."""

    DEFAULT_CSS = "AnswersPanel { height: auto; }"

    num_own: reactive[int] = reactive(0, init=False, repaint=False)
    """How many are the chat's: one, or two while a stopped one ends and the next begins."""

    def watch_num_own(self) -> None:
        self.repaint()

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        sessions = list(self.view.sessions.values())
        lines = [title("Answers in flight", self._origins(len(sessions)), width, look)]
        lines += [[(_session(s), look.text)] for s in sessions[:_MOST_ANSWERS]]
        if len(sessions) > _MOST_ANSWERS:
            lines[-1] = [(f"and {len(sessions) - _MOST_ANSWERS + 1} more", look.dim)]
        return lines

    def _origins(self, count: int) -> str:
        """`chat 1`, `chat 1 · API 2`, `none`."""
        own = min(count, self.num_own)
        parts = [f"chat {own}"] if own else []
        parts += [f"API {count - own}"] if count > own else []
        return " · ".join(parts) or "none"


def _session(session: Session) -> str:
    if not session.answer_tokens:
        return f"reading {count_text(session.read_tokens)}/{count_text(session.prompt_tokens)} tok"
    rate = f" · {session.tokens_per_s:.1f} tok/s" if session.tokens_per_s is not None else ""
    return f"prompt {count_text(session.prompt_tokens)} · {session.answer_tokens} tok{rate}"
