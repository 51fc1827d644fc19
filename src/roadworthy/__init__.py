"""Roadworthy: compress a trained vision model, prove that it still agrees with the original, and ship it."""

from __future__ import annotations

__version__ = "0.1.0"
