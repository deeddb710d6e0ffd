"""F9: the command for another device, and a list that ticks itself as soon as one is seen."""

from __future__ import annotations

import sys
from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from dnet_core.types.devices import PeerSource
from dnet_tui.look import fg, look_of
from dnet_tui.state import ClusterView
from dnet_tui.widgets.key_bar import Hint, KeyBar


class JoinScreen(ModalScreen[None]):
    """Shows how another device joins; `key` stands on the screen only when it is asked for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f9", "dismiss", "Close", id="join.close"),
        Binding("c", "copy", "Copy", id="join.copy", tooltip="Copy the command, key included"),
        Binding("k", "show_key", "Show the key", id="join.key", tooltip="Show or hide the key"),
    ]

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def __init__(self, key: str, view: ClusterView) -> None:
        super().__init__()
        self._key = key
        self._shows_key = False
        self._text = Static(id="join-text", markup=False)
        self.set_reactive(JoinScreen.view, view)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="join-box"):
            yield self._text
            yield KeyBar(
                Hint("join.copy", "copies the command"),
                Hint("join.key", "shows the key"),
                Hint("join.close", "closes"),
            )

    def on_mount(self) -> None:
        box = self.query_one("#join-box")
        box.border_title = "Add a device"
        box.focus()
        self._show()

    def watch_view(self, old: ClusterView, new: ClusterView) -> None:
        if self.is_mounted and checklist(old) != checklist(new):
            self._show()

    def command(self, *, shows_key: bool) -> str:
        return f"uv run dnet-shard --join {self._key if shows_key else '…'}"

    def _show(self) -> None:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        heading = fg(look.primary)
        parts = [
            Text("on the other Mac, in the folder of this program", heading),
            Text(self.command(shows_key=self._shows_key), fg(look.foreground, bold=True)),
            Text("The key is a secret: whoever has it can use this cluster.", look.dim),
            Text(),
            Text("what has to hold; it ticks itself", heading),
        ]
        for done, text in checklist(self.view):
            mark = {True: ("✓ ", fg(look.success)), False: ("✗ ", look.bad), None: ("○ ", look.dim)}[done]
            parts.append(Text.assemble(mark, (text, look.text if done is not None else look.dim)))
        self._text.update(Group(*parts))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.command(shows_key=True))
        self.notify("Copied: the command with the key.")

    def action_show_key(self) -> None:
        self._shows_key = not self._shows_key
        self._show()


def checklist(view: ClusterView) -> list[tuple[bool | None, str]]:
    """What is known: True it holds, False it does not and why, None it is not known yet."""
    others = [d.peer for d in view.devices if d.peer.source is not PeerSource.LOCAL and d.lost is None]
    refused = [peer for peer in others if peer.cannot_join is not None]
    joined = [peer for peer in others if peer.cannot_join is None]
    here = any(d.peer.source is PeerSource.LOCAL and d.lost is None for d in view.devices)
    lines: list[tuple[bool | None, str]] = [
        (True if here else None, "the shard of this machine runs"),
        (bool(others) or None, "another device is seen on the same network"),
    ]
    lines += [(False, f"{peer.name} {peer.cannot_join}") for peer in refused]
    if joined:
        names = " and ".join(peer.name for peer in joined)
        lines.append((True, f"{names}: same version, same key"))
    else:
        lines.append((None, "it has the same version of dnet, and this cluster's key"))
    if not others:
        lines.append((None, "no firewall on either side keeps dnet from accepting connections"))
        if sys.platform == "darwin":
            where = "System Settings > Privacy & Security > Local Network"
            lines.append((None, f"both terminals may use the local network ({where})"))
    return lines
