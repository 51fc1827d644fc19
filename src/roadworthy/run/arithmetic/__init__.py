"""The one place where the constants of integer layers are worked out; see docs/engine.md, "One arithmetic"."""

from __future__ import annotations

from roadworthy.run.arithmetic.epilogue import Epilogue as Epilogue
from roadworthy.run.arithmetic.epilogue import canonical_weights as canonical_weights
from roadworthy.run.arithmetic.epilogue import int8_refusal as int8_refusal
from roadworthy.run.arithmetic.epilogue import is_depthwise as is_depthwise
from roadworthy.run.arithmetic.epilogue import is_u8 as is_u8
from roadworthy.run.arithmetic.epilogue import pre_activation as pre_activation
from roadworthy.run.arithmetic.epilogue import unit_bias as unit_bias
from roadworthy.run.arithmetic.epilogue import unit_epilogue as unit_epilogue
from roadworthy.run.arithmetic.epilogue import unit_scale as unit_scale
from roadworthy.run.arithmetic.epilogue import weights_codes as weights_codes
from roadworthy.run.arithmetic.functions import BINARY as BINARY
from roadworthy.run.arithmetic.functions import NONE as NONE
from roadworthy.run.arithmetic.functions import UNARY as UNARY
from roadworthy.run.arithmetic.functions import Function as Function
from roadworthy.run.arithmetic.functions import evaluate as evaluate
from roadworthy.run.arithmetic.functions import evaluate_pair as evaluate_pair
from roadworthy.run.arithmetic.functions import exact as exact
from roadworthy.run.arithmetic.functions import softmax as softmax
from roadworthy.run.arithmetic.geometry import Taps as Taps
from roadworthy.run.arithmetic.geometry import Windows as Windows
from roadworthy.run.arithmetic.geometry import linear_taps as linear_taps
from roadworthy.run.arithmetic.geometry import nearest_pixels as nearest_pixels
from roadworthy.run.arithmetic.geometry import windows as windows
from roadworthy.run.arithmetic.nodes import function_of_node as function_of_node
from roadworthy.run.arithmetic.nodes import function_of_unit as function_of_unit
from roadworthy.run.arithmetic.operations import MOVES as MOVES
from roadworthy.run.arithmetic.operations import Operation as Operation
from roadworthy.run.arithmetic.operations import averages as averages
from roadworthy.run.arithmetic.operations import code_encodings as code_encodings
from roadworthy.run.arithmetic.operations import operations as operations
from roadworthy.run.arithmetic.operations import plain_function as plain_function
from roadworthy.run.arithmetic.operations import reduced_axes as reduced_axes
from roadworthy.run.arithmetic.polynomial import fit_polynomial as fit_polynomial
from roadworthy.run.arithmetic.polynomial import polynomial as polynomial
from roadworthy.run.arithmetic.polynomial import polynomial_range as polynomial_range
from roadworthy.run.arithmetic.tables import AddConstants as AddConstants
from roadworthy.run.arithmetic.tables import MulConstants as MulConstants
from roadworthy.run.arithmetic.tables import add_constants as add_constants
from roadworthy.run.arithmetic.tables import average_constants as average_constants
from roadworthy.run.arithmetic.tables import clamp_codes as clamp_codes
from roadworthy.run.arithmetic.tables import function_table as function_table
from roadworthy.run.arithmetic.tables import mul_constants as mul_constants
from roadworthy.run.arithmetic.tables import requant_table as requant_table
from roadworthy.run.arithmetic.tables import u8_encoding as u8_encoding
