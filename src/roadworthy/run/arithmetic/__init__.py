"""The one place where the constants of integer layers are worked out; see docs/engine.md, "One arithmetic"."""

from __future__ import annotations

from roadworthy.run.arithmetic.functions import BINARY as BINARY
from roadworthy.run.arithmetic.functions import NONE as NONE
from roadworthy.run.arithmetic.functions import UNARY as UNARY
from roadworthy.run.arithmetic.functions import Function as Function
from roadworthy.run.arithmetic.functions import evaluate as evaluate
from roadworthy.run.arithmetic.functions import evaluate_pair as evaluate_pair
from roadworthy.run.arithmetic.functions import exact as exact
from roadworthy.run.arithmetic.functions import softmax as softmax
