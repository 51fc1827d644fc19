"""The errors a user can cause. Each carries one sentence: the thing at fault and what to do about it."""

from __future__ import annotations


class RoadworthyError(Exception):
    """Any failure that Roadworthy explains in one sentence; the command line prints it and exits with 2."""


class InputError(RoadworthyError):
    """A file, option or value handed in by the user is wrong. The text names it and says what to do."""


class UnsupportedError(RoadworthyError):
    """The input is valid, but holds something Roadworthy does not understand (an operator, an output layout)."""


class MissingExtraError(RoadworthyError):
    """An optional dependency is needed and absent. The text says which extra to install."""


class TrainingError(RoadworthyError):
    """A training went wrong on the way (a loss became NaN). The text names the layer, and what to do about it."""
