"""The threads of a shard: one that computes with MLX, and one that reads streamed layers for it.

MLX streams belong to threads: an array is evaluated on the thread that made it, and only evaluated ones go
from the loader thread to the compute thread. Work comes through one bounded inbox each, in order, and never
blocks on the network; results leave through callbacks that hand them to the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from dnet_core.errors import RingError

Work = Callable[[], None]
Result = TypeVar("Result")

INBOX_ITEMS = 4096
"""Far above sessions x chunks in flight: reaching it means that senders ignore their windows."""


class MlxThread:
    """Runs work in order on its own thread. `with` starts it and ends it after the item in hand."""

    def __init__(self, name: str = "compute") -> None:
        self._inbox: queue.Queue[Work] = queue.Queue(INBOX_ITEMS)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ending = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self.post(lambda: None)  # wakes it; work that still waits is dropped

    def _run(self) -> None:
        while not self._ending:
            self._inbox.get()()

    def post(self, work: Work) -> None:
        """Queue `work`, which must not raise. Callable from any thread. Raises RingError when full."""
        try:
            self._inbox.put_nowait(work)
        except queue.Full:
            raise RingError(f"the shard is overloaded: {INBOX_ITEMS} frames wait to be computed") from None

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Queue `function` for its result or its exception; it may be cancelled until it begins."""
        done: Future[Result] = Future()

        def work() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to the waiting caller
                done.set_exception(error)
            else:
                done.set_result(result)

        self.post(work)
        return done

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the thread and wait for its result or its exception.

        Cancelling the wait does not stop a function that has begun.
        """
        return await asyncio.wrap_future(self.submit(function))

    async def carry_out(self, function: Callable[[], Result]) -> Result:
        """Like `call`, but the function runs even when nobody waits for it any more."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(function)))
