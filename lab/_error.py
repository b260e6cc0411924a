"""The lab's one exception, apart from the rest because each part of the lab raises it."""

from __future__ import annotations


class LabError(Exception):
    """What went wrong, where, and what to do: one message for a person."""
