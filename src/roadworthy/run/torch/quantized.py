"""A model with its encodings as an `nn.Module` that computes what is deployed, and has gradients.

Forward is run/reference.py: every value that has an encoding takes the very codes that the engine gives it. All
constants come from `run/arithmetic`, worked out anew from the parameters by `prepare`; sums of products are exact
in float32, as integers below 2^24 are (in float64 where a layer's weights could lead beyond).

    w~ = round(w / s_w)                    codes of a weight
    acc = sum c_x w~ + round(b / (s_x s_w))
    c = epilogue(acc)                      run/torch/finish.py

Parameters are the float weights and biases by the names of their initializers and, where scales are trained (LSQ,
Esser et al. 2020), "scale:NAME" of a weight or of a value: the logarithm of scale over initial scale, so that a step
of an optimizer is a share of the scale and no scale becomes negative. Values whose codes pass from one to the other
without change share one scale. Zero points stay, and so does the input's scale: it is the image's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, power_of_two_above
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar
from roadworthy.run.torch.coded import Layer, State, lay, operands_of, run
from roadworthy.run.torch.finish import Finish
from roadworthy.run.torch.module import GraphModule
from roadworthy.run.torch.surrogates import GRADIENTS, noise_mask

EXACT = 2**24
"""Integers up to here are exact in float32, whatever the order of a sum."""
EVALUATION = -1
"""The step for which `prepare` draws no noise."""


@dataclass(frozen=True)
class QatSettings:
    """How a quantized network is trained.

    gradient: a key of GRADIENTS, what stands for the derivative of rounding.   noise: the share of each weight that is
    quantized in a step (Quant-Noise); 1: all of it.   train_scales: None: as the gradient says ("lsq" trains them).
    """

    gradient: str = "lsq"
    noise: float = 1.0
    train_scales: bool | None = None


class QuantizedModule(GraphModule):
    """A network of codes. `forward`, parameters and write-back as GraphModule has them, for the model's encodings too.

    Raises UnsupportedError for an operator that the bridge does not know, and for activations with other than 8 bits;
    InputError for a model without encodings, or with other settings than there are.
    """

    def __init__(self, model: Model, settings: QatSettings | None = None) -> None:
        settings = settings or QatSettings()
        if not model.encodings:
            raise InputError(f"{model.source} has no encodings; quantize it before it is trained as quantized")
        if settings.gradient not in GRADIENTS:
            raise InputError(f"the gradient {settings.gradient!r} is unknown; known are {', '.join(GRADIENTS)}")
        if not 0.0 < settings.noise <= 1.0:
            raise InputError(f"noise is the share of weights quantized in a step, 0 to 1, not {settings.noise}")
        super().__init__(model)
        self.settings = settings
        self._model = replace(model, ir=g.clone(model.ir))
        self.gradient = GRADIENTS[settings.gradient]
        self._operations = ar.operations(self._model)
        self._forms = [o.form for o in self._operations]
        self._values = g.values(self._model.ir)
        self._root = _tied(self._model, self._operations)
        trained = self.gradient.trains_scales if settings.train_scales is None else settings.train_scales
        self._free = self._free_scales() if trained else frozenset()
        for name in sorted(self._free):
            scale = np.asarray(model.encodings[name].scale)
            self._register(f"scale:{name}", torch.zeros(scale.shape), True)
        self._last = _last_operations(self._operations)
        self.layers: dict[str, Layer] = {}
        self._made: list[tuple[Tensor, Tensor]] = []
        self._shared: dict[str, Tensor] = {}
        self._stored: Mapping[str, Encoding] = {}
        self.current: Mapping[str, Encoding] = {}
        self.prepare(EVALUATION, 0)

    # What a training loop asks for

    def prepare(self, step: int, seed: int) -> None:
        """Work out every constant from the parameters; draw the weights quantized in `step`, if not all are."""
        self._made, self._shared = [], {}  # what was made of the parameters is of their last state
        for name, parameter in self.named_parameters():
            if not name.startswith("scale:"):
                g.set_constant(self._values[name], parameter.detach().cpu().numpy())
        held = self._current_encodings()
        self._stored = held
        self.current = ar.code_encodings(replace(self._model, encodings=held))
        self.layers = {}
        for operation in self._operations:
            if operation.unit is not None and operation.form == "unit":
                self.layers[operation.unit.name] = self._layer(operation.unit, step, seed)

    def leaves(self) -> list[Tensor]:
        """Codes of weights, biases in steps and scales, made of the parameters once; then the parameters themselves,
        for what reads them as they are. `forward` takes these from here to the next `prepare`."""
        self._made, self._shared = [], {}
        state = State(self, frozenset())

        def leaf(made: Tensor) -> Tensor:
            if not made.requires_grad:
                return made
            self._made.append((made, made.detach().contiguous().requires_grad_()))
            return self._made[-1][1]

        with torch.enable_grad():
            for operation in self._operations:
                if operation.unit is not None and operation.form == "unit":
                    unit, layer = operation.unit, self.layers[operation.unit.name]
                    self.layers[unit.name] = replace(layer, operands=operands_of(state, unit, layer).each(leaf))
            self._shared = {name: leaf(self.scale(name)) for name in self.current if self._key(name) is not None}
        return [made for _, made in self._made] + super().leaves()

    def collect(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Through what was made of the parameters, back to them; and what went to them directly."""
        through, direct = gradients[: len(self._made)], gradients[len(self._made) :]
        known = [(made, slope) for (made, _), slope in zip(self._made, through) if slope is not None]
        self._made = []
        if not known:
            return list(direct)
        made, slopes = zip(*known)
        found = torch.autograd.grad(made, super().leaves(), slopes, allow_unused=True)
        return [a if b is None else b if a is None else a + b for a, b in zip(direct, found)]

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Parameter names by kind: "weights", "biases", "scales"."""
        weights = {str(o.unit.weight.name) for o in self._operations if o.unit is not None}
        found: dict[str, list[str]] = {"weights": [], "biases": [], "scales": []}
        for name, _ in self.named_parameters():
            kind = "scales" if name.startswith("scale:") else "weights" if name in weights else "biases"
            found[kind].append(name)
        return found

    def model(self, step: str) -> Model:
        """The model with the weights and encodings of now.

        Raises InputError for parameters that are not finite, and where a layer that computed in integers no longer can.
        """
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise InputError(f"the parameter {name!r} became NaN or infinite; train with a lower learning rate")
        self.prepare(EVALUATION, 0)
        ir = g.clone(self._model.ir)
        made = replace(self._model, ir=ir, encodings=MappingProxyType(dict(self._stored)))
        for operation, form in zip(ar.operations(made), self._forms):
            if operation.form != form:
                raise InputError(
                    f"{operation.nodes[0].name!r} cannot be computed in integers any more after training:"
                    f" {operation.refusal or 'its constants left their range'}; train with a lower learning rate"
                )
        return replace(made, history=(*self._model.history, step))

    # Forward

    def forward(self, x: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs in graph order, then taps, as floats.   x: in the shape of the model's input, float32.

        Raises KeyError for an unknown tap, InputError for another shape.
        """
        self.check(x, taps)
        state = self._compute(x, {*self.output_names, *taps})
        return {name: state.real_by_name(name) for name in (*self.output_names, *taps)}

    def codes(self, x: Tensor) -> dict[str, Tensor]:
        """The codes of every value that is held as codes, as unsigned bytes, by name."""
        with torch.no_grad():
            state = self._compute(x, None)
        return {
            name: (codes + lay(self.current[name].zero_point, self.current[name], codes)).to(torch.uint8)
            for name, codes in state.codes.items()
        }

    def _compute(self, x: Tensor, wanted: AbstractSet[str] | None) -> State:
        state = State(self, wanted or frozenset())
        state.put(self.input_name, x)
        for operation, dying in zip(self._operations, self._last):
            run(state, operation)
            for name in dying:
                if wanted is not None and name not in wanted:
                    state.codes.pop(name, None)
                    state.reals.pop(name, None)
        return state

    # Constants

    def _free_scales(self) -> frozenset[str]:
        """Names of the weights, and of one value per tie, whose scale is trained."""
        held = {n: e for n, e in self._model.encodings.items() if n in self._values}
        activations = [e for n, e in held.items() if g.constant(self._values[n]) is None]
        if activations and all(np.array_equal(power_of_two_above(e.scale), e.scale) for e in activations):
            return frozenset()  # a device that only shifts
        fixed = self._root.get(self.input_name)
        trained = {str(o.unit.weight.name) for o in self._operations if o.unit is not None}
        return frozenset(
            n
            for n in held
            if (n in trained if g.constant(self._values[n]) is not None else self._root.get(n, n) == n and n != fixed)
        )

    def _key(self, name: str) -> str | None:
        """The name under which the scale of a value is trained; None where it is not."""
        root = self._root.get(name, name)
        return root if root in self._free else None

    def scale(self, name: str) -> Tensor:
        """The scale of a value or weight, a scalar or one per channel, with its gradient."""
        if name in self._shared:
            return self._shared[name]
        initial = torch.from_numpy(np.array(self._model.encodings[name].scale, np.float32))
        key = self._key(name)
        return initial if key is None else initial * torch.exp(self.constant(f"scale:{key}"))

    def _current_encodings(self) -> dict[str, Encoding]:
        found = dict(self._model.encodings)
        if self._free:
            for name in found:
                if name in self._values and self._key(name) is not None:
                    scale = self.scale(name).detach().cpu().numpy()
                    if not (np.isfinite(scale).all() and (scale > 0).all()):
                        raise InputError(
                            f"the scale of {name!r} left the range of float32; train with a lower learning rate"
                        )
                    found[name] = replace(found[name], scale=scale)
        return found

    def _layer(self, unit: Unit, step: int, seed: int) -> Layer:
        encodings = self.current
        epilogue = ar.unit_epilogue(unit, encodings)
        source, weight = encodings[str(unit.input.name)], encodings[str(unit.weight.name)]
        output, before = encodings.get(str(unit.output.name)), encodings.get(str(ar.pre_activation(unit).name))
        codes = ar.weights_codes(unit, weight).astype(np.int64)
        axes = (0, 1) if ar.is_depthwise(unit) else (1, 2, 3)
        steps = epilogue.bias.astype(np.int64) + source.zero_point * codes.sum(axes)
        reach = np.maximum(source.zero_point, source.qmax - source.zero_point) * np.abs(codes).sum(axes)
        shape = (1, -1, 1, 1) if unit.anchor.op_type == "Conv" else (-1,)
        quantized = None
        if step != EVALUATION and self.settings.noise < 1.0:
            array = self.constant(str(unit.weight.name))
            quantized = noise_mask(tuple(array.shape), self.settings.noise, seed, step, str(unit.weight.name))
        return Layer(
            Finish.of(epilogue, np.zeros((), np.int64) if output is None else output.zero_point, shape, self.gradient),
            torch.from_numpy(steps.astype(np.float32)),
            shape,
            bool((reach + np.abs(steps)).max() >= EXACT),
            quantized,
            epilogue.kind == "table" and before is not None,
        )


def _tied(model: Model, operations: Iterable[ar.Operation]) -> dict[str, str]:
    """Value name -> the one that stands for all whose codes pass unchanged into each other."""
    parent: dict[str, str] = {n: n for n in model.encodings}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for operation in operations:
        for node in operation.nodes:
            if node.op_type not in ar.MOVES and node.op_type != "Concat":
                continue
            results = [str(v.name) for v in (*node.outputs, operation.output) if v.name in model.encodings]
            for value in node.inputs:
                name = "" if value is None else str(value.name)
                if name not in model.encodings or g.constant(value) is not None:
                    continue
                for result in results:
                    if model.encodings[name] == model.encodings[result]:
                        parent[max(root(name), root(result))] = min(root(name), root(result))
    return {n: root(n) for n in parent}


def _last_operations(operations: Sequence[ar.Operation]) -> list[list[str]]:
    """For each operation, the values that no later one reads."""
    last: dict[str, int] = {}
    for k, operation in enumerate(operations):
        for node in operation.nodes:
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name:
                    last[str(value.name)] = k
    dying: list[list[str]] = [[] for _ in operations]
    for name, k in last.items():
        dying[k].append(name)
    return dying
