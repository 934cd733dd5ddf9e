"""What a capture policy keeps, and why: against the original connector's code, tables, and chance."""

from __future__ import annotations

import logging
import math
import random
import struct
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import scores
from agent.capture.drift import DriftMeter, ks, psi
from agent.capture.judges import Bench
from agent.capture.policy import (
    AllOf,
    AnyOf,
    Asked,
    Capture,
    Drift,
    Entropy,
    LeastConfidence,
    Margin,
    Matching,
    Random,
    Rate,
    Strategy,
)
from agent.capture.rules import RuleError, parse
from agent.capture.seen import Seen
from agent.deployment.captures import read_capture
from agent.deployment.fields import Fields, Problems
from agent.messages import BINARY, JSON, MSGPACK

ROOT = Path(__file__).parent.parent


def seen(output: Any, event: Any = None, *, path: str = "", topic: str = "t") -> Seen:
    """A request as judges see it, by way of JSON."""
    import json

    given = (JSON, json.dumps(event).encode())
    return Seen(topic, given, (JSON, json.dumps(output).encode()), tuple(path.split(".")) if path else ())


def why(strategy: Strategy, look: Seen, *, now: float = 0.0, chance: float = 0.5) -> str | None:
    return Bench(Capture(strategy)).reason(look, now, lambda: chance)


# -- the original -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original() -> Iterator[types.ModuleType]:
    """The ML Feedback connector's own strategies, out of the package `feedbackloop`, which is never installed."""
    found = sorted((ROOT / ".cache").glob("feedbackloop-1.0.2-*.whl"))
    assert found, "scripts/test fetches feedbackloop; or: pip download --no-deps --dest .cache feedbackloop==1.0.2"
    name = "feedbackloop/sampling/sampling_strategy.py"
    module = types.ModuleType("sampling_strategy")
    with zipfile.ZipFile(found[-1]) as wheel:
        exec(compile(wheel.read(name), name, "exec"), module.__dict__)
    logging.disable(logging.WARNING)  # it logs each decision
    yield module
    logging.disable(logging.NOTSET)


def vectors(count: int) -> Iterator[list[float]]:
    """Score vectors of 2 to 12 classes: sure ones and unsure ones, exact ones, not normalised ones."""
    chance = random.Random(17)
    for n in range(count):
        size = chance.randint(2, 12)
        raw = [chance.gammavariate(chance.choice([0.1, 0.5, 1.0, 5.0]), 1.0) + 1e-12 for _ in range(size)]
        total = 1.0 if n % 7 == 0 else sum(raw)
        found = [x / total for x in raw]
        if n % 5 == 0:
            found = [round(x, 2) for x in found]  # ties, zeros, and figures on the threshold to the digit
        if sum(found) > 0:
            yield found


def test_decisions_are_the_original_connectors_on_10000_score_vectors(original: types.ModuleType) -> None:
    """The one difference: the original normalises for the entropy only where the sum is more than 1e-8 off 1."""
    thresholds = random.Random(3)
    counts = {"kept": 0, "not": 0}
    for vector in vectors(10_200):
        share, nats = round(thresholds.random(), 2), round(thresholds.uniform(0.01, 2.4), 2)
        pairs: list[tuple[Strategy, Any]] = [
            (LeastConfidence(share), original.LeastConfidenceSamplingStrategy(share)),
            (Margin(share), original.MarginSamplingStrategy(share)),
            (Entropy(nats), original.EntropySamplingStrategy(nats)),
        ]
        for ours, theirs in pairs:
            kept = why(ours, seen({"scores": vector})) is not None
            assert kept == theirs.should_use_sample(vector), (ours, vector)
            counts["kept" if kept else "not"] += 1
    assert min(counts.values()) > 5000, counts


def test_random_sampling_is_the_originals(original: types.ModuleType) -> None:
    theirs = original.RandomSamplingStrategy(0.3, seed=5)
    expected = [theirs.should_use_sample(None) for _ in range(10_000)]
    random.seed(5)
    bench = Bench(Capture(Random(0.3)))
    assert [bench.reason(seen(None), 0.0, random.random) == "random" for _ in range(10_000)] == expected


def test_where_the_original_fails_we_do_not(original: types.ModuleType) -> None:
    with pytest.raises(IndexError):
        original.MarginSamplingStrategy(0.5).should_use_sample([0.7])
    assert why(Margin(0.5), seen([0.7])) is None, "a single score has a margin of 1"
    with pytest.raises(ValueError, match="negative"):
        original.EntropySamplingStrategy(0.5).should_use_sample([-1.0, 2.0])
    assert why(Entropy(0.5), seen([-1.0, 2.0])) is None
    with pytest.raises(original.GreengrassInvalidSamplingStrategyException):
        original.EntropySamplingStrategy(0)
    assert why(Entropy(0.0), seen([0.5, 0.5])) == "entropy"


def test_the_reference_pages_own_figure() -> None:
    assert scores.entropy([0.5, 0.25, 0.25]) == pytest.approx(1.0397, abs=1e-4)
    assert why(Entropy(1.03), seen([0.5, 0.25, 0.25])) == "entropy"
    assert why(Entropy(1.04), seen([0.5, 0.25, 0.25])) is None


@pytest.mark.parametrize("strategy", [LeastConfidence(0.6), Margin(0.2)])
def test_a_figure_on_the_threshold_is_not_below_it(strategy: Strategy) -> None:
    assert why(strategy, seen([0.6, 0.4] if isinstance(strategy, LeastConfidence) else [0.5, 0.3, 0.2])) is None


# -- where the scores are ---------------------------------------------------------------------------------------------

PACKED = struct.pack("<3f", 0.5, 0.25, 0.25)
LABEL = {"name": "label", "datatype": "INT64", "shape": [1], "data": [2]}
SHARES = {"name": "p", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.25, 0.25]}
OIP = {"model_name": "m", "outputs": [LABEL, SHARES]}


@pytest.mark.parametrize(
    ("output", "path", "values"),
    [
        ([0.5, 0.25, 0.25], "", [0.5, 0.25, 0.25]),
        ([[0.5, 0.25, 0.25]], "", [0.5, 0.25, 0.25]),
        ({"scores": [0.5, 0.25, 0.25], "label": "a", "meta": {"request": "1"}}, "", [0.5, 0.25, 0.25]),
        ({"scores": [0.5, 0.5], "box": [1, 2, 3, 4]}, "", [0.5, 0.5]),
        ({"odds": [0.5, 0.5], "box": [1, 2, 3, 4]}, "", None),
        ({"odds": [0.5, 0.5], "box": [1, 2, 3, 4]}, "odds", [0.5, 0.5]),
        ({"walk": 0.2, "run": 0.8, "meta": {}}, "", [0.2, 0.8]),
        ({"x": 1.5, "y": 2}, "", None),
        ({"result": {"by": {"walk": 0.2, "run": 0.8}}}, "result.by", [0.2, 0.8]),
        ({"result": {"by": {"walk": 0.2, "run": 0.8}}}, "result.of", None),
        (OIP, "", [0.5, 0.25, 0.25]),
        (OIP, "outputs.p", [0.5, 0.25, 0.25]),
        (OIP, "outputs.1.data", [0.5, 0.25, 0.25]),
        ({"outputs": [SHARES, {**SHARES, "name": "q"}]}, "", None),
        ({"outputs": [{"name": "p", "datatype": "FP32", "shape": [2, 2], "data": [0.5, 0.5, 1, 0]}]}, "", None),
        ({"scores": ["a", "b"]}, "", None),
        ({"scores": [True, False]}, "", None),
        ({"scores": []}, "", None),
        ("text", "", None),
        (None, "", None),
    ],
)  # fmt: skip
def test_scores_are_found_by_the_stated_rule(output: Any, path: str, values: list[float] | None) -> None:
    found = seen(output, path=path).scores
    assert (list(found.values) if found else None) == values


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [1, 3], "dtype": "float32", "data": PACKED},
        {"shape": [3], "dtype": "float64", "data": struct.pack("<3d", 0.5, 0.25, 0.25)},
        {"shape": [3], "dtype": "float16", "data": struct.pack("<3e", 0.5, 0.25, 0.25)},
        {"outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 3], "data": PACKED}]},
        {"probabilities": {"shape": [3], "dtype": "float32", "data": PACKED}},
    ],
)
def test_scores_in_a_binary_tensor_are_read(tensor: Any) -> None:
    found = Seen("t", (BINARY, b""), (MSGPACK, msgpack.packb(tensor))).scores
    assert found is not None
    assert list(found.values) == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("data", [b"", b"\x01", PACKED[:-1], struct.pack("<f", math.nan)])
def test_a_broken_tensor_has_no_scores(data: bytes) -> None:
    body = msgpack.packb({"shape": [3], "dtype": "float32", "data": data})
    assert Seen("t", (BINARY, b""), (MSGPACK, body)).scores is None


def test_what_is_too_large_is_not_read_on_the_way() -> None:
    assert seen([0.5] * 20_000).scores is None


numbers = st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.none())
anything = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner)
)


@given(anything, anything)
@settings(max_examples=60)
def test_no_result_and_no_event_whatever_ever_raises(output: Any, event: Any) -> None:
    look = Seen("t", (MSGPACK, msgpack.packb(event, default=str) if _packs(event) else b"\xc1"), None)
    look._output = output
    rule = parse("event.a.b > 3 or output[0] == 'x' or not (len(event) * 2 - 1 <= margin) or event['a'] in [1, 2]")
    strategies = (LeastConfidence(0.5), Margin(0.5), Entropy(0.5), Rate(1, 1.0, per_class=True), Matching(rule))
    bench = Bench(Capture(AnyOf((*strategies, Drift("event.a", reference=100, window=20)))))
    bench.reason(look, 0.0, lambda: 0.5)
    assert 0 <= bench.value(look, lambda: 0.5) <= 1


def _packs(value: Any) -> bool:
    try:
        msgpack.packb(value)
    except (OverflowError, ValueError):
        return False
    return True


# -- value ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=20).filter(lambda found: sum(found) > 1e-3))
def test_a_value_is_a_share_and_greatest_where_the_model_knows_least(found: list[float]) -> None:
    even = [1.0] * len(found)
    for measure in ("entropy", "least_confidence", "margin"):
        worth, most = scores.worth(measure, found), scores.worth(measure, even)
        assert worth is not None and most is not None  # noqa: PT018
        assert 0 <= worth <= most + 1e-9 <= 1 + 2e-9


def test_without_scores_the_value_is_chance() -> None:
    assert Bench(Capture(Entropy(0.5))).value(seen("no scores"), lambda: 0.25) == 0.25
    assert Bench(Capture(Random(1.0))).value(seen([0.5, 0.5]), lambda: 0.25) == 0.25
    assert Bench(Capture(Random(1.0), value="margin")).value(seen([0.5, 0.5]), lambda: 0.25) == 1.0


# -- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_is_never_more_than_its_count_in_any_span() -> None:
    bench, chance = Bench(Capture(Rate(3, 10.0))), random.Random(1)
    now, kept = 0.0, []
    for _ in range(5000):
        now += chance.expovariate(1.0)
        if bench.reason(seen(None), now, chance.random) == "rate":
            kept.append(now)
    assert all(c - a >= 10.0 for a, c in zip(kept, kept[3:], strict=False))
    assert len(kept) > 5000 / 10 * 3 * 0.7, "and near it"


def test_a_rate_per_class_counts_each_class() -> None:
    bench = Bench(Capture(Rate(1, 10.0, per_class=True)))
    outputs = [{"a": 0.9, "b": 0.1}, {"a": 0.8, "b": 0.2}, {"a": 0.1, "b": 0.9}, {"a": 0.1, "b": 0.9}]
    assert [bench.reason(seen(each), 0.0, random.random) for each in outputs] == ["per_class", None, "per_class", None]
    assert bench.reason(seen(outputs[0]), 10.0, random.random) == "per_class"


# -- combinations -----------------------------------------------------------------------------------------------------


def test_any_gives_every_reason_and_all_asks_for_every_one() -> None:
    unsure, sure = seen([0.5, 0.5], {"t": 90}), seen([0.9, 0.1], {"t": 90})
    hot = Matching(parse("event.t > 80"), "hot")
    assert why(AnyOf((Entropy(0.5), hot)), unsure) == "entropy+rule:hot"
    assert why(AnyOf((Entropy(0.5), hot)), sure) == "rule:hot"
    assert why(AllOf((Entropy(0.5), hot)), unsure) == "entropy+rule:hot"
    assert why(AllOf((Entropy(0.5), hot)), sure) is None
    assert why(AllOf((hot, AnyOf((Margin(0.1), Random(0.1))))), unsure) == "rule:hot+margin"


def test_a_rate_counts_only_what_the_others_would_keep() -> None:
    bench = Bench(Capture(AllOf((Rate(1, 60.0), Entropy(0.5)))))
    assert bench.reason(seen([0.9, 0.1]), 0.0, random.random) is None
    assert bench.reason(seen([0.5, 0.5]), 1.0, random.random) == "entropy+rate"
    assert bench.reason(seen([0.5, 0.5]), 2.0, random.random) is None


def test_asked_keeps_nothing_by_itself() -> None:
    assert why(Asked(), seen([0.5, 0.5])) is None


# -- rules ------------------------------------------------------------------------------------------------------------

EVENT = {"temperature": 81.5, "list": [1, 2, {"x": "y"}], "text": "run", "a-b": 1, "flag": True, "none": None}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("event.temperature > 80", True),
        ("80 < event.temperature <= 81.5", True),
        ("event.temperature > 80 and output.best == 'walk'", True),
        ('event["a-b"] == 1', True),
        ("event.list[0] + event.list[1] == 3", True),
        ("event.list[2].x == 'y' and event.list[-1].x == 'y'", True),
        ("event.text in ['run', 'walk']", True),
        ("'u' in event.text", True),
        ("event.text not in ['run']", False),
        ("event.flag", True),
        ("event.flag == true", True),
        ("not event.nothing", True),
        ("event.nothing == null", False),
        ("event.nothing != 3", False),
        ("event.nothing.deeper[3].x > 1", False),
        ("exists(event.none)", True),
        ("exists(event.nothing)", False),
        ("event.text > 3", False),
        ("event.text * 1000000000 == 1", False),
        ("event.temperature / 0 > 1", False),
        ("len(event.list) == 3 and abs(-event.temperature) > 81", True),
        ("topic == 'sensors/a'", True),
        ("best == 0 and confidence == 0.5 and margin == 0.25 and entropy > 1", True),
    ],
)
def test_a_rule_says_yes_or_no(text: str, holds: bool) -> None:
    look = seen({"best": "walk", "scores": [0.5, 0.25, 0.25]}, EVENT, topic="sensors/a")
    assert parse(text).holds(look.look) is holds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("event.temperature >", "cannot be read (column"),
        ("evnt.x > 3", "'evnt' is not known; known are event, output"),
        ("event.x > hot", "a text is written in quotes"),
        ("__import__('os').system('x')", "the only functions are len(..)"),
        ("event.x.__class__()", "the only functions are"),
        ("[x for x in event]", "ListComp has no place"),
        ("lambda: event", "Lambda has no place"),
        ("event.x ** 99999999", "of arithmetic there is + - * /"),
        ("event.x is 3", "values are compared with"),
        ("event[event.x] == 1", "what stands in [] must be"),
        ("event.x == b'x'", "neither a number nor a text"),
        ("1 < 2", "looks at nothing of the request"),
        ("event.x == 1" + " or event.x == 1" * 80, "characters; at most 1000"),
        ("event.x<1 or " * 70 + "event.x<1", "is too long"),
        ("(" * 450 + "event" + ")" * 450, "cannot be read"),
    ],
)
def test_what_is_no_rule_says_why(text: str, words: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert words in str(caught.value)


# -- drift ------------------------------------------------------------------------------------------------------------


def test_the_index_is_the_sum_over_the_bins() -> None:
    reference, recent = [100, 300, 600], [300, 300, 400]
    expected = sum((p - q) * math.log(p / q) for p, q in ((0.3, 0.1), (0.3, 0.3), (0.4, 0.6)))
    assert psi([n * 1000 for n in reference], [n * 1000 for n in recent]) == pytest.approx(expected, rel=1e-4)
    assert ks(reference, recent) == pytest.approx(0.2)
    assert psi([10, 0], [0, 10]) > 1, "an empty bin is no division by zero"


@pytest.mark.parametrize(("distance", "threshold"), [("psi", 0.25), ("ks", 0.2)])
@pytest.mark.parametrize("seed", range(5))
def test_drift_is_told_from_chance(distance: str, threshold: float, seed: int) -> None:
    chance, meter = random.Random(seed), DriftMeter(distance, 1000, 200)
    for _ in range(4000):
        meter.take(chance.gauss(0, 1))
        assert (meter.distance or 0) < threshold, "a false alarm"
    for _ in range(200):
        meter.take(chance.gauss(1, 1))
    assert meter.distance is not None
    assert meter.distance > threshold


def test_drift_keeps_what_has_become_more_frequent() -> None:
    chance = random.Random(2)
    bench = Bench(Capture(Drift("event.t", reference=500, window=100)))
    kept: list[float] = []
    for n in range(2000):
        value = chance.gauss(20 if n < 1500 or n % 2 else 30, 1)
        if bench.reason(seen(None, {"t": value}), 0.0, chance.random):
            assert n > 1500, "nothing before"
            kept.append(value)
    assert len(kept) > 150
    assert sum(value > 25 for value in kept) / len(kept) > 0.8


def test_drift_of_classes_and_of_lists() -> None:
    meter = DriftMeter("psi", 100, 20)
    for n in range(120):
        meter.take("ab"[n % 2])
    assert meter.distance is not None
    assert meter.distance < 0.25
    assert [meter.take("c") for _ in range(20)][-1], "one that is new is among the others"
    assert meter.distance > 1
    bench = Bench(Capture(Drift("event.x", reference=100, window=20)))
    reasons = [bench.reason(seen(None, {"x": [n % 10 + (n > 300) * 20] * 5}), 0.0, random.random) for n in range(400)]
    assert "drift" not in reasons[:300]
    assert reasons[-1] == "drift"


def test_a_reference_goes_on_after_a_restart() -> None:
    chance, first = random.Random(4), DriftMeter("psi", 1000, 200)
    for _ in range(1000):
        first.take(chance.gauss(0, 1))
    second = DriftMeter("psi", 1000, 200)
    found = first.snapshot()
    assert found is not None
    second.restore(found)
    for _ in range(200):
        second.take(chance.gauss(2, 1))
    assert second.distance is not None
    assert second.distance > 1
    third = DriftMeter("psi", 1000, 200)
    for broken in ({}, {"edges": [1], "classes": [], "counts": [1]}, {"edges": "x", "classes": [], "counts": [1]}):
        third.restore(broken)  # type: ignore[arg-type]
        assert not third.is_whole


# -- the document -----------------------------------------------------------------------------------------------------


def read(capture: Any) -> tuple[Capture | None, list[str]]:
    problems = Problems()
    return read_capture(Fields({"Capture": capture}, "Marram", problems)), [text for _, text in problems.found]


@pytest.mark.parametrize(
    ("capture", "strategy"),
    [
        ({"Strategy": "random", "Rate": 0.1}, Random(0.1)),
        ({"Strategy": "RANDOM_SAMPLING", "Rate": 0.1}, Random(0.1)),
        ({"Strategy": "LEAST_CONFIDENCE", "Threshold": 0.6}, LeastConfidence(0.6)),
        ({"Strategy": "margin", "Threshold": 0.2}, Margin(0.2)),
        ({"Strategy": "ENTROPY", "Threshold": 0.75}, Entropy(0.75)),
        ({"Strategy": "rate", "Seconds": 60}, Rate(1, 60.0)),
        ({"Strategy": "per_class", "Seconds": 60, "Count": 5}, Rate(5, 60.0, per_class=True)),
        ({"Strategy": "drift"}, Drift()),
        ({"Strategy": "drift", "Of": "event.a.b", "Distance": "ks"}, Drift("event.a.b", "ks", 0.2)),
        ({"Strategy": "rule", "When": "event.x > 3"}, Matching(parse("event.x > 3"))),
        ({"Strategy": "asked"}, Asked()),
        ({"All": [{"Strategy": "margin", "Threshold": 0.2}, {"Strategy": "rate", "Seconds": 1}]},
         AllOf((Margin(0.2), Rate(1, 1.0)))),
    ],
)  # fmt: skip
def test_a_policy_is_read(capture: Any, strategy: Strategy) -> None:
    assert read(capture) == (Capture(strategy), [])


def test_where_the_scores_are_and_what_a_sample_is_worth_may_be_said() -> None:
    found, problems = read({"Strategy": "margin", "Threshold": 0.2, "Scores": "a.0.b", "Value": "entropy"})
    assert (found, problems) == (Capture(Margin(0.2), ("a", "0", "b"), "entropy"), [])


@pytest.mark.parametrize(
    ("capture", "words"),
    [
        ({"Strategy": "entrophy", "Threshold": 1}, 'did you mean "entropy"?'),
        ({"Strategy": "entropy"}, "Threshold: is missing"),
        ({"Strategy": "margin", "Threshold": 1.5}, "must be a number from 0 to 1"),
        ({"Strategy": "margin", "Treshold": 0.5}, 'did you mean "Threshold"?'),
        ({"Strategy": "rate"}, "Seconds: is missing"),
        ({"Strategy": "rule"}, "When: is missing"),
        ({"Strategy": "rule", "When": "event.x >"}, "Capture.When: cannot be read (column"),
        ({"Strategy": "drift", "Of": "confidnce"}, 'did you mean "confidence"?'),
        ({"Any": []}, "Any: is empty"),
        ({"Any": [{"Strategy": "random"}]}, "Capture.Any[0].Rate: is missing"),
        ({"Any": [], "All": []}, "more than one of Strategy, Any and All"),
        ({"All": [{"All": [{"All": [{"Strategy": "asked"}]}]}]}, "at most 3 are allowed"),
        ({"Strategy": "asked", "Value": "worth"}, "must be one of entropy"),
        ({"Strategy": "asked", "Scores": "a b"}, "a path of keys and places"),
        ("random", "must be an object"),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(capture: Any, words: str) -> None:
    _, problems = read(capture)
    assert any(words in each for each in problems), problems


def test_a_decision_costs_microseconds() -> None:
    """No timing asserts: how many times the code around a decision runs is what is counted."""
    import sys

    bench, look = Bench(Capture(Entropy(0.5))), seen({"scores": [0.1] * 10})
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> Callable[..., Any] | None:
        nonlocal calls
        calls += event == "call"
        return None

    sys.setprofile(count)
    try:
        bench.reason(look, 0.0, random.random)
    finally:
        sys.setprofile(None)
    assert calls < 60
