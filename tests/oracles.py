"""Short numpy references, straight from the papers' formulas, for the tests of layers and models."""

import math

import numpy as np


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def weights(layer, scale=0.5):
    """Random weights (biases too) for a built layer, and the same by path."""
    for index, variable in enumerate(layer.trainable_variables):
        variable.assign(normal(index, *variable.shape) * scale)
    return {
        variable.path.split("/", 1)[1]: np.array(variable.value, "float64") for variable in layer.trainable_variables
    }


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(np.array(actual), expected, rtol=tolerance, atol=tolerance)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(w, name, x):
    return x @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0)


def attention(w, x, context, heads, groups, visible, prefix="", rotate=lambda q: q):
    """Head after head, query after query: `softmax(q K^T / sqrt(d)) V` over the visible keys alone."""
    q, k, v = (affine(w, prefix + n, s) for n, s in (("query", x), ("key", context), ("value", context)))
    size = q.shape[-1] // heads
    scores = np.zeros((len(x), heads, x.shape[1], context.shape[1]))
    joined = np.zeros(q.shape)
    for row in range(len(x)):
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            shared = head // (heads // groups)
            shared = slice(shared * size, (shared + 1) * size)
            queries, keys = rotate(q[row, :, columns]), rotate(k[row, :, shared])
            for i in range(x.shape[1]):
                seen = np.flatnonzero(visible[row, i])
                share = softmax(queries[i] @ keys[seen].T / math.sqrt(size))
                scores[row, head, i, seen] = share
                joined[row, i, columns] = share @ v[row, seen, shared]
    return affine(w, prefix + "output", joined), scores


def rotate(x, positions, base, scaling=None):
    """Half-split layout: feature i and feature i + d/2 are a complex number, turned by position * base^(-2i/d)."""
    half = x.shape[-1] // 2
    rates = np.array([stretched(base ** (-2.0 * i / x.shape[-1]), scaling) for i in range(half)])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.asarray(positions)[..., None] * rates)
    return np.concatenate([turned.real, turned.imag], -1)


def stretched(rate, scaling):
    """Llama 3.1's reference code: long waves slow down, short ones stay, and between them the two are mixed."""
    if scaling is None:
        return rate
    wavelength = 2 * math.pi / rate
    if wavelength < scaling.original_length / scaling.high_frequency_factor:
        return rate
    if wavelength > scaling.original_length / scaling.low_frequency_factor:
        return rate / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = (scaling.original_length / wavelength - low) / (high - low)
    return (1 - smooth) * rate / scaling.factor + smooth * rate


def sine_positions(length, dim, max_wavelength=10_000):
    """Vaswani et al. 2017, section 3.5: `sin(p / w^(2i/d))` in even features, `cos` of the same in odd ones."""
    table = np.zeros((length, dim))
    for p, c in np.ndindex(length, dim):
        angle = p / max_wavelength ** (2 * (c // 2) / dim)
        table[p, c] = math.sin(angle) if c % 2 == 0 else math.cos(angle)
    return table


def activate(name, x):
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu_approximate":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def feedforward(w, name, x, prefix=""):
    up = affine(w, prefix + "up", x)
    if name == "swiglu":
        gate = affine(w, prefix + "gate", x)
        return affine(w, prefix + "down", gate * sigmoid(gate) * up)
    return affine(w, prefix + "down", activate(name, up))


def normalize(w, name, x, kind, epsilon):
    if kind == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}/scale"]
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * w[f"{name}/gamma"] + w.get(f"{name}/beta", 0)


def recurrent(step, x, state, mask=None):
    """A cell step after step; where the mask is false its state stays."""
    outputs = []
    for t in range(x.shape[1]):
        new = step(x[:, t], *state)
        keep = np.ones((len(x), 1), bool) if mask is None else mask[:, t, None]
        state = [np.where(keep, later, before) for later, before in zip(new, state, strict=True)]
        outputs.append(state[0])
    return np.stack(outputs, 1), *state


def lstm(w, x, h, c, mask=None):
    def step(x, h, c):
        i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    return recurrent(step, x, [h, c], mask)


def gru(w, x, h, mask=None):
    """Cho et al. 2014, equations 5 to 8, in the variant of cuDNN: the reset gate is applied behind the matrix."""

    def step(x, h):
        z, r, g = np.split(x @ w["kernel"] + w["bias"][0], 3, -1)
        from_z, from_r, from_g = np.split(h @ w["recurrent_kernel"] + w["bias"][1], 3, -1)
        z, r = sigmoid(z + from_z), sigmoid(r + from_r)
        return (z * h + (1 - z) * np.tanh(g + r * from_g),)

    return recurrent(step, x, [h], mask)


def rnn(w, x, h, mask=None):
    return recurrent(lambda x, h: (np.tanh(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"]),), x, [h], mask)


CELLS = {"lstm": (lstm, "lstm_cell", 2), "gru": (gru, "gru_cell", 1), "rnn": (rnn, "simple_rnn_cell", 1)}


def recurrent_stack(w, cell, layers, x, prefix="", mask=None, states=None, both=False):
    """Outputs and final states of a stack; of two directions side by side where there are `both`."""
    function, name, parts = CELLS[cell]
    finals = []
    for index in range(layers):
        found = []
        for way in ("", "backward_") if both else ("",):
            path = f"{prefix}{way}{cell}_{index}/{name}/"
            kernels = {key: w[path + key] for key in ("kernel", "recurrent_kernel", "bias")}
            width = kernels["recurrent_kernel"].shape[0]
            start = [np.zeros((len(x), width))] * parts
            if states is not None:
                columns = slice(width, None) if way else slice(width)
                start = [part[:, columns] for part in states[index]]
            order = slice(None, None, -1 if way else 1)
            outputs, *final = function(kernels, x[:, order], *start, None if mask is None else mask[:, order])
            found.append((outputs[:, order], *final))
        x, *final = (np.concatenate(pair, -1) for pair in zip(*found, strict=True))
        finals.append(final)
    return x, finals


def global_attention(w, alignment, x, context, visible, prefix=""):
    """Luong et al. 2015, equations 5 and 7, query after query: `tanh(W_c [c; h])`."""
    outputs, scores = np.zeros(x.shape), np.zeros((*x.shape[:2], context.shape[1]))
    for row, i in np.ndindex(*x.shape[:2]):
        seen = np.flatnonzero(visible[row])
        keys = affine(w, prefix + "key", context[row, seen])
        if alignment == "general":
            energy = keys @ x[row, i]
        else:
            energy = affine(w, prefix + "score", np.tanh(affine(w, prefix + "query", x[row, i]) + keys))[:, 0]
        share = softmax(energy)
        scores[row, i, seen] = share
        both = np.concatenate([share @ context[row, seen], x[row, i]])
        outputs[row, i] = np.tanh(affine(w, prefix + "output", both))
    return outputs, scores
