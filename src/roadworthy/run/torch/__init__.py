"""PyTorch: any supported graph as an `nn.Module`, its weights written back, and a runner.

    module = module_of(model)                 parameters have the names of the graph's initializers
    found  = module(x, taps=("conv3",))       value name -> tensor: outputs in graph order, then the taps
    model  = write_back(model, module)        the trained weights as initializers

PyTorch is the extra `[train]`; it is imported when one of these functions is called, and nowhere else in the package
but `zoo`, `train` and `model/from_torch.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from roadworthy.errors import MissingExtraError
from roadworthy.model.model import Model

if TYPE_CHECKING:
    from roadworthy.run.torch.module import GraphModule


def available() -> bool:
    """Whether PyTorch is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None


def need_torch(what: str) -> None:
    """Raises MissingExtraError, naming the extra, where PyTorch is not installed.   what: what needs it."""
    if not available():
        raise MissingExtraError(f"{what} needs PyTorch: install it with `pip install 'roadworthy[train]'`")


def module_of(model: Model) -> GraphModule:
    """The float graph of a model as an `nn.Module`; encodings are not looked at.

    Raises MissingExtraError without PyTorch, UnsupportedError naming node and operator for one that it does not know.
    """
    need_torch("a network as a PyTorch module")
    from roadworthy.run.torch.module import GraphModule

    return GraphModule(model)


def write_back(model: Model, module: GraphModule, step: str = "train") -> Model:
    """The model with the module's parameters as its initializers; encodings stay as they are.

    step: the line in the model's history.   Raises InputError for a parameter that is not finite or has another
    shape than its initializer, and for a module that was made of another graph.
    """
    need_torch("writing parameters back")
    from roadworthy.run.torch import module as m

    return m.write_back(model, module, step)


class TorchRunner:
    """A model's float graph on PyTorch; the Runner protocol.

    exact: compute in float64, and round once at the end: the witness where two float32 runners differ, at four times
    the time.   Raises as `module_of` does.
    """

    def __init__(self, model: Model, exact: bool = False) -> None:
        self._module = module_of(model)
        if exact:
            self._module.double()
        self.input_names: tuple[str, ...] = (model.input_name,)
        self.output_names: tuple[str, ...] = model.output_names

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        """Outputs, then taps. Raises KeyError for a tap that is no value of the graph."""
        from roadworthy.run.torch import module as m

        return m.run(self._module, feeds[self.input_names[0]], taps)
