"""Runs a function in a process of its own that may crash or never end."""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


class IsolatedError(Exception):
    """What went wrong in the process: an exception, a crash, the time limit."""


def isolated(function: Callable[..., object], seconds: float, *arguments: object) -> object:
    """What `function(*arguments)` gives, in a fork of this process.

    Raises:
        IsolatedError: with the kind of failure and its message.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise IsolatedError(f"not done after {seconds:.0f} s")
        is_good, value = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise IsolatedError(f"crashed ({how})") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not is_good:
        raise IsolatedError(value)
    return value


def _work(sender: Connection, function: Callable[..., object], arguments: tuple) -> None:
    try:
        sender.send((True, function(*arguments)))
    except BaseException as error:
        sender.send((False, f"{type(error).__name__}: {error}"))
