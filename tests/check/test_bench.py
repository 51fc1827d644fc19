"""The benchmark: gating on made-up series, figures on runners of known speed, and what happens when a worker fails."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import platform
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roadworthy.check import bench as module
from roadworthy.check.bench import Entry, Sample, bench, summarize, turn
from roadworthy.check.bench_worker import END_TO_END, RUNTIME, Worker, settle
from roadworthy.check.canary import gate
from roadworthy.check.machine import environment
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError, RoadworthyError, UnsupportedError

SHORT = {"threads": 1, "rounds": 3, "frames_per_sample": 4, "seconds": 0.5}


def network(size=64, channels=16, shape=None):
    """Two convolutions and a Relu, about 25 kB."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(channels, 3, 3, 3)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.normal(size=(2 * channels, channels, 3, 3)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or [1, 3, size, size])]
    outputs = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()


MODEL = network()


def fake(name, label=None, **fields):
    return Entry(label or name, MODEL, f"bench_fakes:{name}", **fields)


# --- which samples count


def test_a_slow_canary_on_either_side_drops_the_sample():
    levels = [100, 99, 52, 98, 97, 51, 50, 52, 96, 98, 101]
    brackets = list(itertools.pairwise(levels))
    assert gate(brackets) == [True, False, False, True, False, False, False, False, True, True]


def test_ordinary_jitter_drops_nothing_and_a_tighter_threshold_does():
    levels = 100 * (1 + 0.05 * np.sin(np.arange(41)))
    brackets = list(itertools.pairwise(levels))
    assert all(gate(brackets))
    assert not all(gate(brackets, threshold=0.99))


def test_a_machine_that_is_evenly_slow_is_quiet():
    assert all(gate([(50.0, 51.0)] * 20))


def test_one_lucky_canary_does_not_condemn_the_rest():
    brackets = [(100.0, 100.0)] * 40
    brackets[7] = (100.0, 190.0)
    assert all(gate(brackets))


def test_a_sample_that_waited_for_a_core_is_dropped():
    assert gate([(100.0, 100.0)] * 3, [0.0, 0.3, 0.01]) == [True, False, True]


def test_no_samples_no_verdicts():
    assert gate([]) == []


# --- figures from samples


def sample(number, entry, ms, level=100.0, kind=RUNTIME, waited=0.0):
    return Sample(number, entry, kind, level, level, (ms,) * 3, waited=waited)


def test_figures_rest_on_quiet_samples_alone():
    samples = []
    for number in range(8):
        slow = number in (2, 5)
        samples += [sample(number, 0, 40.0 if slow else 10.0, 50.0 if slow else 100.0), sample(number, 1, 5.0)]
    (first, second), notes = summarize(samples, ["a", "b"])
    assert notes == []
    assert first["ratio"] == 1.0 and second["ratio"] == 2.0 and second["ratio_spread"] == (2.0, 2.0)
    assert (first["samples"], first["dropped"], second["dropped"]) == (8, 2, 0)
    runtime = first["runtime"]
    assert (runtime.median_ms, runtime.p90_ms, runtime.min_ms, runtime.frames) == (10.0, 10.0, 10.0, 18)
    assert runtime.qps == pytest.approx(100.0)


def test_percentiles_and_throughput_against_sums_by_hand():
    frames = tuple(float(ms) for ms in range(1, 12))  # 1..11: median 6, 90th percentile 10, sum 66
    samples = [Sample(number, 0, RUNTIME, 1.0, 1.0, frames) for number in range(3)]
    runtime = summarize(samples, ["a"])[0][0]["runtime"]
    assert (runtime.median_ms, runtime.p90_ms, runtime.min_ms, runtime.frames) == (6.0, 10.0, 1.0, 33)
    assert runtime.qps == pytest.approx(1000 * 33 / (3 * 66))


def test_pairing_by_round_removes_a_drift_of_the_machine():
    samples = []
    for number in range(10):
        samples += [sample(number, 0, 10.0 + number), sample(number, 1, 0.25 * (10.0 + number))]
    (_, second), _ = summarize(samples, ["a", "b"])
    assert second["ratio_spread"] == (4.0, 4.0)


def test_a_machine_that_is_never_quiet_is_said_to_be_and_nothing_is_lost():
    samples = []
    for number in range(6):
        quiet = number == 0
        samples += [
            sample(number, 0, 10.0 if quiet else 30.0, waited=0.0 if quiet else 0.4),
            sample(number, 1, 5.0 if quiet else 10.0, waited=0.0 if quiet else 0.4),
        ]
    (first, second), (note,) = summarize(samples, ["a", "b"])
    assert note == "machine never quiet: 10 of 12 samples disturbed; figures include them"
    assert first["dropped"] == second["dropped"] == 5
    assert second["ratio"] == 3.0 and first["runtime"].frames == 18


def test_few_samples_on_a_quiet_machine_need_no_excuse():
    _, notes = summarize([sample(0, 0, 1.0), sample(0, 1, 1.0)], ["a", "b"])
    assert notes == []


def test_the_order_turns_until_every_slot_stood_everywhere():
    slots = [(0, RUNTIME), (1, RUNTIME), (2, RUNTIME), (0, END_TO_END)]
    orders = [turn(slots, number) for number in range(2 * len(slots))]
    for place in range(len(slots)):
        assert {order[place] for order in orders} == set(slots)
    assert all(sorted(order) == sorted(slots) for order in orders)
    assert [turn(slots[:2], number)[0][0] for number in range(2)] == [0, 1]


# --- measuring


def test_runners_of_known_speed():
    said = []
    result = bench(
        [fake("six_ms"), fake("two_ms")],
        threads=1,
        rounds=3,
        seconds=1.0,
        frames_per_sample=5,
        progress=lambda fraction, text: said.append((fraction, text)),
    )
    slow, fast = result["six_ms"], result["two_ms"]
    # A sleep lasts at least what was asked; waking up takes 0.1 to 0.3 ms on top.
    assert 6.0 <= slow.runtime.min_ms <= slow.runtime.median_ms < 9.0
    assert slow.runtime.median_ms <= slow.runtime.p90_ms
    assert 2.0 <= fast.runtime.min_ms < 3.5
    assert slow.ratio == 1.0 and 2.2 < fast.ratio <= 3.05
    assert fast.ratio == pytest.approx(slow.runtime.median_ms / fast.runtime.median_ms)
    assert fast.ratio_spread is not None and fast.ratio_spread[0] <= fast.ratio_spread[1]
    assert fast.runtime.frames % 5 == 0 and fast.samples == result.rounds >= 3
    assert 100 < slow.runtime.qps <= 167 and slow.file_bytes == len(MODEL)
    assert slow.end_to_end is None and slow.stages_ms is None
    fractions = [fraction for fraction, _ in said]
    assert fractions[-1] == 1.0 and all(0 <= fraction <= 1 for fraction in fractions)
    with pytest.raises(KeyError):
        result["nobody"]


def test_an_entry_against_itself_has_ratio_one():
    """Same model twice on ONNX Runtime. A biased order or a biased clock would fail each time; a restless machine
    may spoil one attempt, hardly three."""
    model = network(96, 24)
    for _ in range(3):
        result = bench([Entry("a", model), Entry("b", model)], threads=1, seconds=1.0, rounds=8)
        if 0.8 < result["b"].ratio < 1.25:
            break
    else:
        pytest.fail(f"ratio of a model to itself: {result['b'].ratio:.2f}")
    assert result["b"].runtime.median_ms > 0.05  # it computed something
    assert 0 < result["a"].load_ms < 5000
    assert 0 < result.canary["median_gflops"] <= 1.2 * result.canary["reference_gflops"]


def test_the_result_is_plain_json():
    result = bench([fake("two_ms")], **SHORT)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["threads"] == 1 and data["rounds"] == result.rounds
    assert data["quiet"] is not any("never quiet" in note for note in data["notes"])
    (row,) = data["entries"]
    for key in ("label", "target", "ratio", "median_ms", "p90_ms", "qps", "load_ms", "peak_mb", "file_bytes"):
        assert row[key] is not None, key
    assert row["ratio"] == 1.0 and row["end_to_end_ms"] is None
    assert data["environment"]["threads"] == 1


def test_memory_is_that_of_the_worker_alone():
    ballast = np.ones(400_000_000, np.uint8)  # a child of fork and exec inherits the peak of its parent
    hungry = bench([fake("hungry")], **SHORT)["hungry"]
    assert ballast[0] == 1
    assert hungry.base_mb < 200
    assert 145 < hungry.peak_mb - hungry.base_mb < 165


def test_prints_of_a_runtime_do_not_disturb_the_pipe(capfd):
    bench([fake("chatty")], **SHORT)
    assert capfd.readouterr().out == ""


def test_end_to_end_covers_preprocessing_and_decoding():
    frames = [np.full((48, 96, 3), 100, np.uint8), np.full((120, 64, 3), 100, np.uint8)]
    task = {
        "preprocess": Preprocess(size_hw=(64, 64)),
        "decode": DecodeSpec(kind="yolox", num_classes=3, input_hw=(64, 64), strides=(8, 16, 32)),
    }
    result = bench([fake("boxes", frames=frames, **task)], **SHORT)
    boxes = result["boxes"]
    assert boxes.end_to_end is not None and boxes.stages_ms is not None
    assert boxes.end_to_end.median_ms > boxes.runtime.min_ms >= 2.0
    assert set(boxes.stages_ms) == {"preprocess", "run", "decode"}
    assert boxes.stages_ms["run"] >= 2.0 and min(boxes.stages_ms.values()) > 0
    assert sum(boxes.stages_ms.values()) == pytest.approx(boxes.end_to_end.median_ms, rel=0.25)
    assert boxes.end_to_end_ratio == 1.0 and result.rows()[0]["end_to_end_ms"] == boxes.end_to_end.median_ms


@pytest.mark.parametrize("kind", ["classify", "raw"])
def test_end_to_end_of_a_classifier_and_of_raw_outputs(kind):
    decode = DecodeSpec(kind=kind, num_classes=3, input_hw=(64, 64), scores_are_logits=True)
    frames = [np.zeros((80, 64, 3), np.uint8)]
    entry = fake("logits", frames=frames, preprocess=Preprocess((64, 64), resize="stretch"), decode=decode)
    (row,) = bench([entry], **SHORT).rows()
    assert row["end_to_end_ms"] > row["stages_ms"]["preprocess"] > 0
    assert (row["stages_ms"]["decode"] > 0.002) == (kind == "classify")  # a softmax takes microseconds, nothing less


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_real_targets_load_and_run(target):
    if target == "openvino":
        pytest.importorskip("openvino")
    result = bench([Entry("net", network(shape=["N", 3, 40, 40]), target)], **SHORT)
    assert result["net"].runtime.median_ms > 0
    assert result["net"].peak_mb >= result["net"].base_mb > 20


# --- failures


def children_of(pid):
    """Process ids of the children that the main thread of a process started; empty where there is no /proc."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("refuses", UnsupportedError, "`refuses` on bench_fakes:refuses: there is no operator Frobnicate"),
        ("stumbles", RoadworthyError, "KeyError: 'missing'"),
        ("dies", RoadworthyError, r"died \(signal SIGSEGV\): about to fall"),
        ("absent", RoadworthyError, "AttributeError: .*absent"),
    ],
)
def test_a_failing_worker_becomes_one_sentence(name, kind, words):
    with pytest.raises(kind, match=words) as caught:
        bench([fake("two_ms"), fake(name)], **SHORT)
    assert "\n" not in str(caught.value)
    assert not children_of(os.getpid())


def test_a_hanging_worker_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "_LOAD_TIMEOUT_S", 1.0)
    begun = time.monotonic()
    with pytest.raises(RoadworthyError, match=r"`hangs` .* did not finish `start` within 1 s"):
        bench([fake("hangs")], **SHORT)
    assert time.monotonic() - begun < 6
    assert not children_of(os.getpid())


@pytest.mark.parametrize(
    ("entries", "options", "words"),
    [
        ([], {}, "nothing to measure"),
        ([fake("two_ms"), fake("two_ms")], {}, "two entries are called `two_ms`"),
        ([Entry("a", MODEL, "abacus")], {}, "no target `abacus`; choose from ort"),
        ([Entry("a", b"not a model")], {}, "`a` is not an ONNX model"),
        ([Entry("a", MODEL[:-100])], {}, "`a` is not an ONNX model"),
        ([Entry("a", network(shape=[1, 3, "H", "W"]))], {}, "`a`: input `x` has the dynamic shape"),
        ([fake("two_ms", frames=[np.zeros((9, 9, 3), np.uint8)])], {}, "frames but no preprocess"),
        (
            [fake("two_ms", frames=[np.zeros((9, 9), np.uint8)], preprocess=Preprocess((64, 64)))],
            {},
            r"give uint8 images of \(H, W, 3\)",
        ),
        ([fake("two_ms")], {"threads": 0}, "threads is 0"),
        ([fake("two_ms")], {"rounds": 0}, "rounds is 0"),
        ([fake("two_ms")], {"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(entries, options, words, monkeypatch):
    monkeypatch.setattr(module, "Worker", None)
    with pytest.raises(InputError, match=words):
        bench(entries, **options)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


PATIENCE_S = 90
"""What four interpreters may take to start, and to end, on a machine with ten times more work than cores. It is waited
for an event, so this is only spent where the test fails."""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_benchmark(blow, tmp_path):
    """The parent is killed, or interrupted as by Ctrl-C, while a worker sits in a frame that never returns."""
    script = (
        "import sys\n"
        "from roadworthy.check.bench import Entry, bench\n"
        "model = open(sys.argv[1], 'rb').read()\n"
        "bench([Entry(name, model, 'bench_fakes:hangs_and_tells') for name in 'ab'], threads=1)\n"
    )
    (tmp_path / "model.onnx").write_bytes(MODEL)
    pids = tmp_path / "pids"
    pids.mkdir()
    search = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "model.onnx")],
        env={**os.environ, "PYTHONPATH": search, "BENCH_TEST_PIDS": str(pids)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not any(pids.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = children_of(parent.pid)
        assert len(children) == 3 and any(int(path.name) in children for path in pids.iterdir())
    finally:
        parent.send_signal(blow)
        code = parent.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, children))
    assert code != 0


def test_a_signal_that_does_not_end_the_wait_is_seen_all_the_same():
    """It is handed to another thread, so the wait for the worker goes on, as when it comes right before the wait."""

    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    def handed() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        time.sleep(0.3)  # until the handler has been asked for

    worker, before = Worker("a worker"), signal.signal(signal.SIGUSR1, ring)
    thread = threading.Thread(target=handed)
    try:
        thread.start()
        begun = time.monotonic()
        with pytest.raises(Rung):
            worker.ask(40.0, do="start", target="bench_fakes:hangs", threads=1, nothing=b"", nothing_feeds={})
        assert time.monotonic() - begun < 20
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        worker.close()


def test_a_worker_whose_parent_died_before_it_woke_does_not_begin_to_work():
    """The message waits in the pipe already, and asks for a frame that never returns."""
    message = pickle.dumps({"do": "start", "target": "bench_fakes:hangs", "threads": 1, "nothing": b"",
                            "nothing_feeds": {}})  # fmt: skip
    search = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    code = "import os; from roadworthy.check.bench_worker import main; main(os.getpid())"  # nobody's child
    ran = subprocess.run(
        [sys.executable, "-c", code], input=struct.pack("<Q", len(message)) + message, capture_output=True,
        env={**os.environ, "PYTHONPATH": search}, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, b"")


def test_settling_sees_a_spinning_thread():
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert settle(limit_s=0.15) is False
    finally:
        stop.set()
        thread.join()
    assert settle(limit_s=2.0) is True


# --- the machine


def test_environment_names_what_is_installed():
    facts = environment(3)
    json.dumps(facts, allow_nan=False)
    assert facts["threads"] == 3 and 1 <= facts["cores"] <= facts["cores_online"]
    assert facts["cpu"] and facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["onnx"] == onnx.__version__
    assert facts["versions"]["onnxruntime"] == onnxruntime.__version__
    if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists():
        assert "sse4_2" in facts["isa"]


def test_reading_versions_imports_nothing():
    code = (
        "import sys\nfrom roadworthy.check.machine import environment\nenvironment()\n"
        "print([name for name in ('numpy', 'onnx', 'openvino', 'onnxruntime', 'cv2') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout.strip() == "[]"


def test_comparing_two_entries_uses_the_rounds_they_share() -> None:
    """The third entry takes 2 ms where the second takes 3, and both drift alike: the ratio stays 1.5."""
    samples = [sample(r, e, ms * (1 + 0.05 * r)) for r in range(12) for e, ms in enumerate((9.0, 3.0, 2.0))]
    figures, _ = summarize(samples, ["a", "b", "c"])
    entries = tuple(
        module.Measured(label=label, target="ort", load_ms=0, peak_mb=0, base_mb=0, file_bytes=1, **f)
        for label, f in zip("abc", figures, strict=True)
    )
    result = module.BenchResult(entries, threads=1, rounds=12, seconds=1, quiet=True, canary={}, environment={})
    ratio, interval = result.compare("b", "c")
    assert ratio == pytest.approx(1.5)
    assert interval is not None and interval == pytest.approx((1.5, 1.5), abs=1e-9)
    assert result.compare("c", "b")[0] == pytest.approx(1 / 1.5)
