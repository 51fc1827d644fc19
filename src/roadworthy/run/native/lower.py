"""`lower`: from a model to a plan. Translation decides what is computed, placement where it lies, emission writes it.

HANDLERS says which function translates which operation: by its integer form, or in float by its operator.
"""

from __future__ import annotations

from collections.abc import Sequence

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.run.arithmetic import Arithmetic, Operation
from roadworthy.run.native import moves, pointwise, pools, siblings
from roadworthy.run.native.emit import emit
from roadworthy.run.native.layers import layer
from roadworthy.run.native.place import place
from roadworthy.run.native.plan import Plan
from roadworthy.run.native.task_text import FIXED, task_text
from roadworthy.run.native.translate import Handler, Translator, unsupported

FORMS: dict[str, Handler] = {
    "unit": layer,
    "add": pointwise.add_codes,
    "mul": pointwise.mul_codes,
    "concat": moves.concat,
    "average": pools.average,
    "linear": pools.resize,
    "table": pointwise.table,
}
"""Integer form -> translation; moves go by their operator, whether on codes or not."""

OPERATORS: dict[str, Handler] = {
    "Reshape": moves.move_reshape,
    "Flatten": moves.move_reshape,
    "Squeeze": moves.move_reshape,
    "Unsqueeze": moves.move_reshape,
    "Transpose": moves.move_transpose,
    "Slice": moves.move_slice,
    "Split": moves.move_split,
    "Gather": moves.move_gather,
    "DepthToSpace": moves.move_depth_to_space,
    "SpaceToDepth": moves.move_space_to_depth,
    "Identity": moves.move_identity,
    "Dropout": moves.move_identity,
    "Cast": moves.move_cast,
    "Expand": moves.move_expand,
    "Concat": moves.concat,
    "Pad": moves.pad,
    "MaxPool": pools.max_pool,
    "GlobalMaxPool": pools.max_pool,
    "AveragePool": pools.average,
    "GlobalAveragePool": pools.average,
    "ReduceMean": pools.average,
    "ReduceMax": pools.max_pool,
    "Resize": pools.resize,
    "Softmax": pointwise.softmax,
    "BatchNormalization": pointwise.batch_norm,
    **dict.fromkeys(pointwise.PAIRS, pointwise.float_function),
    **dict.fromkeys(
        ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Exp", "Log", "Sqrt",
         "Abs", "Neg", "Reciprocal", "Elu", "Softplus", "Gelu", "Mish", "Swish"),
        pointwise.float_function,
    ),
}  # fmt: skip


def handler(operation: Operation) -> Handler:
    """The function that translates an operation. Raises UnsupportedError for an operator without a row, by name."""
    if operation.unit is not None:
        return layer
    node = operation.nodes[0]
    found = FORMS.get(operation.form) or (OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None)
    if found is None:
        raise unsupported(node, "the native engine has no such operator")
    return found


def lower(
    model: Model, outputs: Sequence[str] = (), tap: Sequence[str] = (), merge_siblings: bool = False,
    arithmetic: Arithmetic = "float",
) -> Plan:  # fmt: skip
    """The plan of a model.

    outputs: names of the values to return; empty: the model's outputs.   tap: further values, returned as float32
    behind the outputs; asking for them changes no other result.   merge_siblings: convolutions of one input are
    computed as one where that needs no copy (in the float form; results are the same).   arithmetic: how accumulators
    become codes, by float32 multipliers or in "fixed" point.
    Raises InputError for a name that is no value of the graph, UnsupportedError for what the engine cannot compute, and
    in fixed point for an operation in float between integer ones.
    """
    values = g.values(model.ir)
    wanted = tuple(outputs) or model.output_names
    for name in (*wanted, *tap):
        if name not in values:
            raise InputError(f"the model has no value named {name!r}; `outputs` and `tap` take names of the graph")
    network = Translator(model, handler, arithmetic).run(wanted, tap)
    if merge_siblings and arithmetic == "float":
        siblings.merge_siblings(network)
    return emit(network, place(network), task_text(model.task) + (FIXED if arithmetic == "fixed" else ""))
