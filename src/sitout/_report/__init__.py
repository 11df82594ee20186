"""A study as a reader sees it: one self-contained HTML page, a terminal table, plain text."""

from __future__ import annotations

from ._page import html
from ._terminal import plain, table

__all__ = ["html", "plain", "table"]
