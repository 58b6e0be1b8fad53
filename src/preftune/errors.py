"""Errors that speak to people: what is wrong, where, and what to do about it.

Each error knows the exit code that the command line leaves with: 1 when the work failed, 2 when it was asked for wrongly.
"""

from __future__ import annotations


class PreftuneError(Exception):
    """An error with a sentence for the person who reads it.

    what: what is wrong, with the value at fault. where: the file, line, field or step. fix: what to do.
    """

    exit_code = 1
    said = False  # by another process, so that a person reads it once

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        head = head if head.endswith((".", "?", "!")) else f"{head}."
        return f"{head} {self.fix}".strip()


class DataError(PreftuneError):
    """The data cannot be used as it is."""

    exit_code = 2


class ConfigError(PreftuneError):
    """A setting is unknown, out of bounds or at odds with another."""

    exit_code = 2


class ModelError(PreftuneError):
    """A model or tokenizer folder cannot be used as it is."""

    exit_code = 2


class DiskError(PreftuneError):
    """The disk is full or takes no writing; what was written before is kept."""

    exit_code = 2


class ShapeError(PreftuneError):
    """Two tensors that speak of the same tokens have different shapes."""


class Stopped(PreftuneError):
    """The work was asked to stop (Ctrl-C, SIGTERM), and everything that it needs to go on is saved."""

    exit_code = 0


class Refused(PreftuneError):
    """The gate does not let a model be released."""
