"""A PyTorch module as a `Model`: exported, checked against the module, its parameters under their own names.

    model = from_torch(module, (1, 3, 416, 416))     eval mode, one image, float32
    model = Finetune(...)(model, samples)            anything that Roadworthy does
    arrays = to_state_dict(model)                    the weights, by the module's names and in its shapes

The module is traced by `torch.export` and translated by `torch.onnx` (extra `[train]`). What cannot be traced or
translated is named with the path of the module that made it ("backbone.stage2.0.attn"), and nodes are named by that
path, so that every later word about a layer is in the module's language.

The check: on random tensors and on those that were handed in, ONNX Runtime's result y for the model and the module's
own m have to satisfy, for every output,   max |y - m| <= max(tolerance * max |m|, 4 * max |m - m64|),   m64 being the
module in float64: nobody can ask for more than a few times what the module's own float32 loses.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from roadworthy.errors import InputError, MissingExtraError, RoadworthyError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.read import one_line
from roadworthy.model.task import Task
from roadworthy.model.torch_names import name_nodes, name_outputs, named

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20
INPUT = "input"
"""What the model's input is called."""
RANDOM_INPUTS = 2
"""Tensors of the check beside those handed in: one normal, one uniform in 0..1."""


def from_torch(
    module: nn.Module,
    example: Tensor | NDArray | Sequence[int],
    *,
    inputs: Sequence[Tensor | NDArray] = (),
    output_names: Sequence[str] | None = None,
    task: Task | None = None,
    tolerance: float = 1e-4,
) -> Model:
    """A module as a model; the module is left as it was, its mode included.

    example: one input tensor (1, C, H, W), or its shape; the size is fixed by it.   inputs: further tensors to check
    the result on, such as preprocessed images.   output_names: for the outputs in order; by default the keys of a
    dict, else `output`, or `output_0` and so on.   task: the contract, as `load` takes it.   tolerance: see the top.
    Raises MissingExtraError without the extra `[train]`, UnsupportedError naming the path of a module that cannot be
    traced or translated, InputError where the result differs from the module, with the measured difference, and for
    an example or names that do not fit.
    """
    import_export()
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"from_torch takes an nn.Module, not {type(module).__name__}; load the checkpoint into one")
    x = _example(example)
    what = type(module).__name__
    with _evaluated(module) as plain, torch.no_grad():
        names = _names(_call(plain, x, what), output_names, what)
        proto = _exported(plain, x, names, what)
        model = named(
            _loaded(proto, what, task), proto, set(dict(plain.named_parameters())), set(dict(plain.named_buffers()))
        )
        checks = [x, *_random(x.shape), *(_example(i, tuple(x.shape)) for i in inputs)]
        _check(model, plain, checks, what, tolerance)
    return model


def import_export() -> None:
    """Raises MissingExtraError, naming the extra, where PyTorch or its translator to ONNX is not installed."""
    missing = [name for name in ("torch", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"a PyTorch module needs {' and '.join(missing)}: install it with `pip install 'roadworthy[train]'`"
        )


# The module.


def _example(example: Any, wanted: tuple[int, ...] | None = None) -> Tensor:
    import torch

    if isinstance(example, torch.Tensor):
        x = example.detach().cpu().float()
    elif isinstance(example, np.ndarray):
        x = torch.from_numpy(np.array(example, np.float32))
    else:
        shape = tuple(example)
        if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"the example is a tensor or a shape such as (1, 3, 416, 416), not {example!r}")
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if wanted is not None and tuple(x.shape) != wanted:
        raise InputError(f"an input to check on has the shape {tuple(x.shape)}, but the example {wanted}")
    if x.ndim == 0 or x.shape[0] != 1:
        raise InputError(f"the example has the shape {tuple(x.shape)}; hand in one image, with a first axis of 1")
    return x


def _random(shape: Sequence[int]) -> list[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator), torch.rand(*shape, generator=generator)][:RANDOM_INPUTS]


@contextlib.contextmanager
def _evaluated(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode; a float32 copy on the CPU where it is something else."""
    import torch

    tensors = [*module.parameters(), *module.buffers()]
    if any(t.device.type != "cpu" or (t.is_floating_point() and t.dtype != torch.float32) for t in tensors):
        yield copy.deepcopy(module).cpu().float().eval()
        return
    modes = {part: part.training for part in module.modules()}
    try:
        yield module.eval()
    finally:
        for part, training in modes.items():
            part.training = training


class _Path:
    """Where in the module Python is: the modules entered and not left, by their paths."""

    def __init__(self, module: nn.Module) -> None:
        self.open: list[str] = []
        self._hooks: list[Any] = []
        for path, part in module.named_modules():
            self._hooks.append(
                part.register_forward_pre_hook(self._enter(f"{path or 'module'} ({type(part).__name__})"))
            )
            self._hooks.append(part.register_forward_hook(self._leave))

    def _enter(self, called: str) -> Any:
        return lambda part, args: self.open.append(called)

    def _leave(self, part: Any, args: Any, result: Any) -> None:
        self.open.pop()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@contextlib.contextmanager
def _located(module: nn.Module, what: str, doing: str) -> Iterator[None]:
    """Whatever fails in a forward pass, with the path of the innermost module."""
    path = _Path(module)
    try:
        yield
    except RoadworthyError:
        raise
    except Exception as error:
        where = path.open[-1] if path.open else what
        raise UnsupportedError(f"{where} cannot be {doing}: {_said(error)}") from error
    finally:
        path.close()


def _call(module: nn.Module, x: Tensor, what: str) -> Any:
    with _located(module, what, f"run on an input of shape {tuple(x.shape)}"):
        return module(x)


def leaves(result: Any, name: str = "") -> list[tuple[str, Any]]:
    """The tensors of a nested result in order, with the keys that lead to them."""
    if isinstance(result, Mapping):
        items: list[tuple[str, Any]] = [(str(k), v) for k, v in result.items()]
    elif isinstance(result, list | tuple):
        fields = getattr(result, "_fields", range(len(result)))
        items = [(str(k), v) for k, v in zip(fields, result)]
    else:
        return [] if result is None else [(name, result)]
    return [leaf for key, value in items for leaf in leaves(value, f"{name}.{key}" if name else key)]


def _names(result: Any, given: Sequence[str] | None, what: str) -> list[str]:
    import torch

    found = leaves(result)
    if not found or not all(isinstance(value, torch.Tensor) for _, value in found):
        odd = next((type(v).__name__ for _, v in found if not isinstance(v, torch.Tensor)), "nothing")
        raise InputError(f"{what} returns {odd}; return tensors, or lists, tuples or dicts of tensors")
    if given is None:
        own = [name if name and not name[0].isdigit() else f"output_{name}".rstrip("_") for name, _ in found]
        given = own
    if len(given) != len(found) or len({INPUT, *given}) != len(given) + 1 or not all(given):
        raise InputError(
            f"{what} has {len(found)} outputs; hand in as many different output_names (none of them {INPUT!r}), not"
            f" {list(given)}"
        )
    return list(given)


# Export.


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter logs what it does not find installed, warns of its own future, and prints what it traced."""
    sink = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.fx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _exported(module: nn.Module, x: Tensor, names: list[str], what: str) -> onnx.ModelProto:
    import torch

    with _quiet():
        with _located(module, what, "traced by torch.export"):
            program = torch.export.export(module, (x,), strict=False)
        try:
            made = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False, input_names=[INPUT]
            )
            assert made is not None
            _simplify(made.model, {name for name, _ in module.named_parameters()})
            proto = made.model_proto
        except Exception as error:
            raise UnsupportedError(_untranslated(program, error, what)) from error
    name_outputs(proto, names)
    return proto


def _simplify(ir: g.IrModel, parameters: set[str]) -> None:
    """Sequences of tensors and arithmetic on shapes go; parameters stay as they are, which the exporter's own
    optimization would merge with their neighbours."""
    from onnxscript import optimizer

    def should_fold(node: g.Node) -> bool | None:
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    optimizer.fold_constants(ir, onnx_shape_inference=True, should_fold=should_fold)


def _untranslated(program: Any, error: Exception, what: str) -> str:
    """Which module made the operator that the translation stopped at, in one sentence."""
    said = [str(error)]
    cause = error.__cause__
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    target = re.search(r"target=torch\.ops\.([\w.]+)\]", "\n".join(said))
    if target is None:
        return f"{what} cannot be translated to ONNX: {one_line(Exception(said[-1]))}"
    name = target[1]
    paths = _paths(program, name) or _paths(program.run_decompositions(), name)
    where = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more modules" if len(paths) > 3 else "")
    operator = ".".join(name.split(".")[:-1]) or name
    custom = operator.split(".")[0] not in ("aten", "prims", "prim")
    kind = "the custom operator" if custom else "the operator"
    if not custom and "No ONNX function" not in said[-1]:
        return (
            f"{where or what} uses {kind} {operator} in a way that ONNX does not have: {one_line(Exception(said[-1]))}"
        )
    return f"{where or what} uses {kind} {operator}, which ONNX does not have; write it with standard operators"


def _paths(program: Any, target: str) -> list[str]:
    """Paths and types of the modules that call an operator, each once."""
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == target:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path, kind = stack[-1] if stack else ("", "")
            found[f"{path or 'module'} ({str(kind).rsplit('.', 1)[-1]})" if kind else path or "module"] = None
    return list(found)


def _said(error: Exception) -> str:
    """The first sentence of an error; torch's own run over pages."""
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "its Python code branches on the values of a tensor; use torch.where, or take the branch out"
    return one_line(Exception(str(error).strip().split("\n\n")[0] or type(error).__name__))


# The model.


def _loaded(proto: onnx.ModelProto, what: str, task: Task | None) -> Model:
    name_nodes(proto)
    proto.graph.name = what
    proto.graph.doc_string = ""
    data = proto.SerializeToString(deterministic=True)
    model = load(data, task)
    return replace(
        model, ir=g.strip_docs(model.ir), source=what, sha256=hashlib.sha256(data).hexdigest(), size=len(data),
        history=("from_torch",),
    )  # fmt: skip


# The check.


def _check(model: Model, module: nn.Module, tensors: Sequence[Tensor], what: str, tolerance: float) -> None:
    import torch

    session = _session(model)
    exact: nn.Module | None = None
    for k, x in enumerate(tensors):
        made = dict(zip(model.output_names, session.run(None, {model.input_name: x.numpy()})))
        wanted = [value for _, value in leaves(module(x))]
        again = [value for _, value in leaves(module(x))]
        for index, (name, one) in enumerate(zip(model.output_names, wanted)):
            if not torch.equal(torch.nan_to_num(one), torch.nan_to_num(again[index])):
                raise InputError(f"{what} gives another {name!r} each time it is run; take out what is random")
            mine, theirs = made[name].astype(np.float64), one.double().numpy()
            if mine.shape != theirs.shape:
                raise InputError(f"the exported model gives {name!r} in shape {mine.shape}, {what} in {theirs.shape}")
            off, largest = _most(mine - theirs), _most(theirs)
            if off <= tolerance * largest:
                continue
            if exact is None:
                exact = copy.deepcopy(module).double()
            own = _most(leaves(exact(x.double()))[index][1].numpy() - theirs)
            if not off <= 4 * own:
                raise InputError(
                    f"the exported model differs from {what}: {name!r} is off by {off:.3g}, {off / (largest or 1):.2g}"
                    f" of its largest value, on input {k + 1} of {len(tensors)}; {tolerance:g} is allowed"
                )


def _most(x: NDArray) -> float:
    return float(np.abs(x).max()) if x.size else 0.0


def _session(model: Model) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.float_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime cannot load {model.source}: {one_line(error)}") from error
