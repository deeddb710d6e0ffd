"""Which lines of a turn are drawn again when it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnet_core.types.generation import FinishReason, GenerationDone
from dnet_tui.chat import Answering, Finished, Reply, Thought, Turn
from dnet_tui.widgets.turn import TurnLines
from tests.tui.test_prose import RENDERER

THINKING = Reply("", Answering(6, 1.9, 11.8), Thought("Why do they ask?", 6, 0.45))
DONE = GenerationDone(
    finish_reason=FinishReason.STOP,
    prompt_tokens=9,
    completion_tokens=6,
    cached_tokens=0,
    ttft_s=1.9,
    decode_tokens_per_s=11.8,
)


@pytest.mark.parametrize(
    "reply",
    [replace(THINKING, text="Paris."), replace(THINKING, phase=Finished(DONE))],
    ids=["the answer begins", "it ends without one"],
)
def test_the_line_of_a_thought_is_drawn_again_when_the_thinking_is_over(reply: Reply) -> None:
    """With the same thought: the last of it came with the token before."""
    turn = Turn("The capital?", (THINKING,))
    lines = TurnLines(RENDERER, 80, turn, str, unfolded=False)
    (y,) = (y for y in range(lines.height) if lines.is_thought(y))
    assert "thinking 0.45 s" in lines.text(y)
    assert lines.update(replace(turn, replies=(reply,))) <= y
    assert "thought 0.45 s" in lines.text(y)
    assert lines.update(replace(turn, replies=(reply,))) > y, "nothing has changed"
