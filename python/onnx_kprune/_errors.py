"""What can go wrong, and what a user should know."""

from __future__ import annotations


class Error(RuntimeError):
    """What the program says when it cannot do what it was asked for: one line, with what to do."""


class UsageError(Error, ValueError):
    """An option or a wish that makes no sense, or that cannot be met."""


class KPruneWarning(UserWarning):
    """What should be known about a result."""


def of_program(status: int, printed: list[str]) -> Error:
    """The error of a program that ended so, in one line of what it printed."""
    lines = [line.strip(" \n\u00d7\u2502\u2570\u2500\u25b6") for line in printed]
    lines = [line for line in lines if line and not line.startswith(("Usage:", "For more information", "onnx-kprune <"))]
    text = " ".join(lines).removeprefix("error: ").replace(" help: ", "; ")
    return (UsageError if status == 2 else Error)(text or f"onnx-kprune ended with status {status} and said nothing")
