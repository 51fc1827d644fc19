"""The runner protocol: the one thing every runtime has in common.

`run(feeds, taps)` returns the outputs of the network and, beside them, any intermediate value that was asked for by
name; aligning two runtimes is then one function that knows neither of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy.typing import NDArray


class Runner(Protocol):
    """A loaded model on one runtime. Not shared between threads; free it by dropping it."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        """Run once.

        feeds: value name -> array in the model's input shape.   taps: names of intermediate values to return as well.
        Returns value name -> array: all outputs in graph order, then the taps.
        Raises KeyError when a tap is not a value of the graph.
        """
        ...


@dataclass(frozen=True)
class Target:
    """Where a model is to run: what that place can do, as data, and how to load a model there.

    name: the word used on the command line.
    int8_ops: operators that the runtime computes in int8 when their inputs and outputs carry Q/DQ nodes.
    passthrough_ops: operators that only move or select values; input and output share one encoding.
    fused_activations: activations computed inside an int8 convolution, so that no tensor lies between the two.
    unit_activations: activations that the runtime computes in float behind a dequantized convolution at no great
        cost, so that the unit's output alone is quantized. Where an activation is in neither set, the convolution's
        own output must be quantized as well for the convolution to run in int8.
    channel_activations: a value that only depthwise convolutions read has one scale and zero point per channel: the
        range of a depthwise layer's channels differs a hundredfold, and each reads its own channel alone.
    tables: an int8 layer may compute its activation as a table of 256 codes over an 8-bit pre-activation, where that
        costs no accuracy; the value in front of the activation then has codes of its own.
    whole: every layer gains from int8, those at the tail as well, whose results are float; Concats on codes need no
        common range (an input of other codes is translated); pictures are quantized to the very levels they have.
    activation_bits: how many bits the codes of activations may have; layers between codes of 16 bits compute in float
        where the runtime has no kernels for them, and give what a device that has them would.
    symmetric_activations: activations must be quantized with the zero point in the middle.
    quantized_bias: biases are stored as int32 at scale (input scale x weight scale).
    load: model bytes, threads -> runner.   available: whether it is installed here.   missing: what to say where not.
    simulated: this machine only simulates the place, so that its speed here says nothing: nobody measures it, no budget
        asks for it, and `auto` never takes it.
    file: the name of what is shipped.   deploy: model bytes -> the bytes of that file, which `load` takes as well.
    """

    name: str
    int8_ops: frozenset[str]
    passthrough_ops: frozenset[str]
    fused_activations: frozenset[str]
    unit_activations: frozenset[str]
    symmetric_activations: bool
    quantized_bias: bool
    load: Callable[[bytes, int], Runner]
    available: Callable[[], bool] = lambda: True
    channel_activations: bool = False
    tables: bool = False
    whole: bool = False
    activation_bits: tuple[int, ...] = (8,)
    simulated: bool = False
    missing: str = ""
    file: str = "model.onnx"
    deploy: Callable[[bytes], bytes] = lambda model: model

    def runner(self, model: bytes, threads: int = 0) -> Runner:
        """Load a serialized ONNX model; threads=0 uses every core."""
        return self.load(model, threads)
