"""Colours and styles of the current theme, for everything that paints its own lines.

Identity is letter *and* colour: device A is blue in every theme, and is called A where there is no colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

_DEVICE_HUES = ("#4f9cf9", "#f5a73b", "#4ec98a", "#b98cf0", "#3fc1d6", "#e87fae", "#a9c23f", "#e0775a")
_ANSI_HUES = tuple(f"ansi_{name}" for name in ("blue", "yellow", "green", "magenta", "cyan", "bright_red"))
_LIGHT_DARKEN = 0.18


@dataclass(frozen=True, slots=True)
class Look:
    """What the painters use of a theme. Backgrounds are left to the stylesheet unless a part stands out."""

    dark: bool
    foreground: Color
    background: Color
    muted: Color
    primary: Color
    accent: Color
    success: Color
    warning: Color
    error: Color
    raised: Color  # behind the user's own words and code

    @property
    def text(self) -> Style:
        return Style(color=self.foreground.rich_color)

    @property
    def dim(self) -> Style:
        return Style(color=self.muted.rich_color)

    @property
    def bad(self) -> Style:
        return Style(color=self.vivid(self.error).rich_color)

    @property
    def is_ansi(self) -> bool:
        """Whether the theme leaves the colours to the terminal: then none may be mixed."""
        return self.background.ansi is not None

    def vivid(self, color: Color) -> Color:
        """Move `color` away from the background, for text in it."""
        if color.ansi is not None:
            return color
        return color.lighten(0.12) if self.dark else color.darken(0.15)

    def device(self, index: int) -> Color:
        """The colour of the device with this index in the ring."""
        if self.is_ansi:
            return Color.parse(_ANSI_HUES[index % len(_ANSI_HUES)])
        hue = Color.parse(_DEVICE_HUES[index % len(_DEVICE_HUES)])
        return hue if self.dark else hue.darken(_LIGHT_DARKEN)


def fg(color: Color, *, bold: bool = False) -> Style:
    return Style(color=color.rich_color, bold=bold)


def look_of(theme: Theme, variables: Mapping[str, str]) -> Look:
    """The look of `theme`, whose resolved `variables` are the app's `theme_variables`."""
    names = ("foreground", "background", "primary", "accent", "success", "warning", "error")
    return _look(theme.dark, tuple(variables[name] for name in names))


@lru_cache(maxsize=4)
def _look(dark: bool, values: tuple[str, ...]) -> Look:
    foreground, background, primary, accent, success, warning, error = map(Color.parse, values)
    ansi = foreground.ansi is not None
    return Look(
        dark=dark,
        foreground=foreground,
        background=background,
        muted=Color.parse("ansi_bright_black") if ansi else background.blend(foreground, 0.62),
        primary=primary,
        accent=accent,
        success=success,
        warning=warning,
        error=error,
        raised=background if ansi else background.blend(foreground, 0.08),
    )
