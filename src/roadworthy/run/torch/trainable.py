"""What a training loop asks of a network, whichever arithmetic stands behind it: float, or as it is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from roadworthy.model.model import Model


class Trainable(Protocol):
    """A network with parameters. One image at a time: batches are sums of gradients over images."""

    output_names: tuple[str, ...]
    value_names: frozenset[str]
    """Every value that `taps` may name."""

    def prepare(self, step: int, seed: int) -> None:
        """Called before the images of optimizer step `step`, and before an evaluation: whatever is worked out from the
        parameters, and whatever is drawn for the step; a function of the parameters, `step` and `seed` alone."""
        ...

    def leaves(self) -> list[Tensor]:
        """What the loss of an image is differentiated by, from here to the next `prepare`: the parameters that are
        trained, or with them what was made of them once for all images of the step."""
        ...

    def collect(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the parameters that are trained, in their order, from those of `leaves` summed over images; None
        for what no loss depends on. Once after each `leaves`."""
        ...

    def __call__(self, x: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs in graph order, then taps, as floats.   x: in the shape of the model's input."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Names of the parameters by kind, each once: "weights", "biases" (with slopes and the like), "scales"."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def model(self, step: str) -> Model:
        """The trained model: weights (and encodings) as they are now.   step: the line in its history."""
        ...
