"""What a run has to say at its end: plain JSON, written once. Nothing decides by it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from common import log, printable


@dataclass
class Report:
    """What an invocation did, or found.

    The lists always exist; those of `details` only for the action that has them.
    """

    version: str
    action: str = "migrate"
    # Name and duration_ms; for status, all there are.
    applied: list[dict[str, Any]] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    users: dict[str, str] = field(default_factory=dict)  # by login: what was done with it
    warnings: list[str] = field(default_factory=list)
    database: str = ""
    lock_wait_ms: int = 0
    drift: Optional[int] = None  # how many objects differ, where that was asked and is known
    details: dict[str, Any] = field(default_factory=dict)
    duration_ms: int = 0

    def warn(self, warnings: Iterable[str]) -> None:
        """Each once in a run, in the report and in the log; on one line, whatever name is in it."""
        for text in warnings:
            warning = printable(text).replace("\n", "\\u000a")
            if warning not in self.warnings:
                self.warnings.append(warning)
                log("warning", logging.WARNING, text=warning)

    def as_json(self) -> dict[str, Any]:
        """For the caller of the function."""
        return {
            "status": "ok",
            "action": self.action,
            "version": self.version,
            "applied": self.applied,
            "adopted": self.adopted,
            "pending": self.pending,
            "users": self.users,
            "warnings": self.warnings,
            "database": self.database,
            "lock_wait_ms": self.lock_wait_ms,
            **self.details,
            "duration_ms": self.duration_ms,
        }

    def log_end(self, failure: Optional[BaseException]) -> None:
        """The last line of the log: what CloudWatch's metric filters count."""
        fields: dict[str, Any] = {}
        if self.action != "migrate":
            fields["action"] = self.action
        if failure:
            fields["error"] = type(failure).__name__
            fields["reason"] = str(failure)
        if self.action != "status":  # its lists are of all runs
            fields["applied"] = len(self.applied)
            fields["adopted"] = len(self.adopted)
        fields["pending"] = len(self.pending)
        fields["failed"] = 1 if failure else 0
        if self.drift is not None:
            fields["drift"] = self.drift
        if self.users:
            fields["users"] = self.users
        fields["lock_wait_ms"] = self.lock_wait_ms
        fields["duration_ms"] = self.duration_ms
        if failure:
            log("failed", logging.ERROR, **fields)
        else:
            log("done", **fields)
