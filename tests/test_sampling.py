"""Drawing the next token against plain Python written from the papers: in `generation` and on the phone alike."""

import math

import numpy as np
from keras import ops

from kerasllm import edge
from kerasllm.generation import greedy, penalize_repetition, sample


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def reference_sample(logits, uniform, temperature, top_k, top_p, min_p=0.0):
    """Plain Python: order, cut to k, to the shortest head with share p of what is left, to p of the first; invert."""
    if temperature == 0:
        return max(range(len(logits)), key=lambda token: (logits[token], -token))
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: top_k or None]
    masses = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    head, total = 0, 0.0
    while head < len(order) and (head == 0 or total < top_p * sum(masses)):
        total += masses[head]
        head += 1
    head = sum(mass >= min_p * masses[0] for mass in masses[:head])
    total = sum(masses[:head])
    threshold, cumulative = uniform * total, 0.0
    for token, mass in zip(order[:head], masses, strict=False):
        cumulative += mass
        if cumulative > threshold:
            return token
    return order[head - 1]


SETTINGS = [(t, k, p, 0.0) for t in (0.0, 0.3, 1.0, 2.5) for k in (0, 1, 5, 99) for p in (1.0, 0.7, 0.05)]
SETTINGS += [(t, k, p, m) for t in (0.5, 1.0, 2.5) for k in (0, 5) for p in (1.0, 0.9) for m in (0.03, 0.4, 1.0)]


def test_sampling_is_the_plain_python_reference_and_what_the_phone_does():
    logits = normal(0, 24, 37) * 2
    uniforms = np.random.default_rng(1).random(24, "float32")
    uniforms[:3] = 0.0, 0.999, 0.5
    for setting in SETTINGS:
        drawn = np.array(sample(logits, uniforms, *setting)).tolist()
        plain = [
            reference_sample(row.astype("float64"), float(u), *setting) for row, u in zip(logits, uniforms, strict=True)
        ]
        phone = [edge.sample(row, float(u), *setting) for row, u in zip(logits, uniforms, strict=True)]
        assert drawn == plain == phone, setting


def test_the_largest_uniform_draws_a_token_that_was_kept():
    """Rounding must not carry it past the last token that has a share."""
    logits, last = normal(0, 50, 37) * 2, np.float32(1 - 2**-24)
    best = np.argsort(-logits, axis=-1)[:, :5]
    drawn = np.array(sample(logits, np.full(50, last), 1.0, 5, 1.0))
    assert (drawn[:, None] == best).any(-1).all()
    assert all(edge.sample(row, float(last), 1.0, 5, 1.0) in kept for row, kept in zip(logits, best, strict=True))


def test_ties_go_to_the_lower_token_everywhere():
    logits = np.zeros((4, 6), "float32")
    logits[:, 3:5] = 1
    uniforms = np.array([0, 0.25, 0.5, 0.75], "float32")
    assert np.array(greedy(logits)).tolist() == [3] * 4
    for setting in ((0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 2, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.2), (1.0, 2, 0.5)):
        drawn = np.array(sample(logits, uniforms, *setting)).tolist()
        assert drawn == [edge.sample(logits[0], u, *setting) for u in uniforms.tolist()]
        assert drawn == [reference_sample(logits[0].tolist(), u, *setting) for u in uniforms.tolist()]


def test_samples_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], "float32"))
    uniforms = (np.arange(1000, dtype="float32") + 0.5) / 1000
    drawn = np.array(sample(np.tile(logits, (1000, 1)), uniforms, 1.0, 0, 1.0))
    assert np.abs(np.bincount(drawn, minlength=4) / 1000 - [0.5, 0.2, 0.2, 0.1]).max() <= 0.002


def test_repetition_penalty_is_keskar_section_4_1():
    logits = np.array([[2.0, -2.0, 0.0, 3.0, -3.0]], "float32")
    seen = np.array([[True, True, True, False, False]])
    assert np.array(penalize_repetition(logits, seen, 2.0)).tolist() == [[1.0, -4.0, 0.0, 3.0, -3.0]]
    assert ops.convert_to_numpy(penalize_repetition(logits, seen, 1.0)).tolist() == logits.tolist()
