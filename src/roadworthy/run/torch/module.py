"""The graph as an `nn.Module`: the nodes in order, each by its row in OPERATORS."""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.run.torch.batchnorm import norms
from roadworthy.run.torch.moves import Operator
from roadworthy.run.torch.operators import operator_of
from roadworthy.run.torch.parameters import kinds

EVALUATION = -1
"""The step for which `prepare` draws nothing."""


class GraphModule(nn.Module):
    """A float graph, `Trainable`. What `parameters.kinds` names is a parameter, all other constants are buffers.

    Both are registered under the name of their initializer ("head.0.weight" lies in the submodules `head` and `0`), so
    that `named_parameters` and `state_dict` speak the graph's language. `.double()` and `.to()` work as usual.
    `forward` writes nothing but its result, so that several threads may call it at the same time.
    """

    settings: Any = None
    """What else a subclass is made with."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model, self.source = model, model.source
        self.input_name, self.input_shape = model.input_name, model.input_shape
        self.output_names = model.output_names
        self.value_names = frozenset(g.values(model.ir))
        self._nodes = g.nodes(model.ir)
        self._operators: list[Operator] = []
        for node in self._nodes:
            operator = operator_of(node)
            if operator is None:
                raise UnsupportedError(
                    f"{node.op_type} {node.name!r} is an operator that the PyTorch bridge does not know, so"
                    f" {model.source} gets no gradients"
                )
            self._operators.append(operator)
        self._kinds = kinds(model)
        self._home: dict[str, tuple[nn.Module, str]] = {}
        for name, array in constants(model).items():
            self._register(name, torch.from_numpy(np.array(array)), name in self._kinds)
        self._dying = _last_uses(self._nodes)
        self.norms = norms(self._nodes)

    def check(self, x: Tensor, taps: Sequence[str]) -> None:
        """Raises KeyError for a tap that is no value of the graph, InputError for an input of another shape."""
        if tuple(x.shape) != self.input_shape:
            raise InputError(
                f"the input {self.input_name!r} has the shape {tuple(x.shape)}, but the model takes {self.input_shape}"
            )
        for name in taps:
            if name not in self.value_names:
                raise KeyError(name)

    def forward(self, x: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs in graph order, then taps (names of any values of the graph, constants included).

        x: in the shape of the model's input, of the parameters' own type.   Raises KeyError for an unknown tap,
        InputError for another shape.
        """
        self.check(x, taps)
        found: dict[str, Tensor] = {}
        for _ in self.walk(x, taps, found):
            pass
        return found

    def walk(
        self, x: Tensor, taps: Sequence[str], found: dict[str, Tensor], stops: Container[str] = ()
    ) -> Generator[tuple[str, list[Tensor | None]], list[Tensor | None] | None, None]:
        """`forward`, without its checks, that can be stopped on the way.

        stops: names of nodes; in front of each, name and inputs are yielded, and other inputs may be sent back.
        found: where the results go.
        """
        wanted = {*self.output_names, *taps}
        values: dict[str, Tensor] = {self.input_name: x}
        for node, operator, dying in zip(self._nodes, self._operators, self._dying):
            inputs = [None if v is None or not v.name else self._value(values, v.name) for v in node.inputs]
            if stops and node.name in stops:
                inputs = (yield str(node.name), inputs) or inputs
            for value, made in zip(node.outputs, operator(node, inputs)):
                values[str(value.name)] = made
            for name in dying:  # what nobody reads any more frees its memory, unless a gradient needs it
                if name not in wanted:
                    values.pop(name, None)
        found.update({name: self._value(values, name) for name in (*self.output_names, *taps)})

    def prepare(self, step: int, seed: int) -> None:
        """A float network draws nothing."""

    def leaves(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [p for _, p in self.named_parameters() if p.requires_grad]

    def collect(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients as they are."""
        return list(gradients)

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Names of the parameters: "weights" and "biases" (with slopes, and scale and shift of normalizations)."""
        names = [name for name, _ in self.named_parameters()]
        return {kind: [n for n in names if self._kinds[n] == kind] for kind in ("weights", "biases")}

    def model(self, step: str) -> Model:
        """The graph with the parameters as they are now. Raises as `write_back` does."""
        return write_back(self._model, self, step)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        """Parameters and buffers are copied; the graph, a value, is shared."""
        made = type(self)(self._model) if self.settings is None else type(self)(self._model, self.settings)  # type: ignore[call-arg]
        memo[id(self)] = made
        for name, (home, leaf) in self._home.items():
            other = made._home[name][0]
            if leaf in home._parameters:
                old = self.constant(name)
                other._parameters[leaf] = nn.Parameter(old.detach().clone(), old.requires_grad)
            else:
                other._buffers[leaf] = self.constant(name).clone()
        made.prepare(EVALUATION, 0)
        return made.train(self.training)

    def constant(self, name: str) -> Tensor:
        """The parameter or buffer of an initializer. Raises KeyError where the graph has none of that name."""
        home, leaf = self._home[name]
        return cast(Tensor, home._parameters[leaf] if leaf in home._parameters else home._buffers[leaf])

    def _value(self, values: dict[str, Tensor], name: str) -> Tensor:
        return values[name] if name in values else self.constant(name)

    def _register(self, name: str, tensor: Tensor, trained: bool) -> None:
        """A name with dots lies in submodules. `_parameters` and its like are written to directly, as an initializer
        may be called `type` or `forward`, which `register_parameter` refuses; nothing is looked up as an attribute."""
        *path, leaf = name.split(".") if all(name.split(".")) else [name]
        home: nn.Module = self
        for part in path:
            if part not in home._modules:
                home._modules[part] = nn.Module()
            home = cast(nn.Module, home._modules[part])
        self._home[name] = home, leaf
        if trained:
            home._parameters[leaf] = nn.Parameter(tensor)
        else:
            home._buffers[leaf] = tensor


def constants(model: Model) -> dict[str, NDArray]:
    """The arrays of all initializers by name."""
    found = {name: g.constant(value) for name, value in g.values(model.ir).items()}
    return {name: array for name, array in found.items() if array is not None}


def _last_uses(nodes: Sequence[g.Node]) -> list[list[str]]:
    """For each node, the values that no later node reads."""
    last: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.name:
                last[value.name] = k
    dying: list[list[str]] = [[] for _ in nodes]
    for name, k in last.items():
        dying[k].append(name)
    return dying


def write_back(model: Model, module: GraphModule, step: str) -> Model:
    parameters = {name: p.detach().cpu().numpy() for name, p in module.named_parameters()}
    for norm in module.norms:
        parameters |= {n: module.constant(n).detach().cpu().numpy() for n in (norm.mean, norm.variance)}
    ir = g.clone(model.ir)
    values = g.values(ir)
    for name, array in parameters.items():
        old = g.constant(values.get(name))
        if old is None or old.shape != array.shape:
            what = "it does not have" if old is None else f"has the shape {old.shape} there, not {array.shape}"
            raise InputError(f"the parameter {name!r} cannot be written into {model.source}: {what}; was the module"
                             " made of another model?")  # fmt: skip
        if not np.isfinite(array).all():
            raise InputError(f"the parameter {name!r} became NaN or infinite; train with a lower learning rate")
        new = array.astype(old.dtype)
        if not np.array_equal(new, old):
            g.set_constant(values[name], new)
    return model.with_ir(ir, step)


def run(module: GraphModule, x: NDArray, taps: Sequence[str]) -> dict[str, NDArray]:
    """One run without gradients, arrays in and out; what a module in float64 computes is rounded to float32."""
    held = (*module.parameters(), *module.buffers())
    kind = next((t.dtype for t in held if t.is_floating_point()), torch.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(np.array(x, np.float32)).to(kind), taps)
    return {name: (t.float() if t.dtype == torch.float64 else t).numpy().copy() for name, t in found.items()}
