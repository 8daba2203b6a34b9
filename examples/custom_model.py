"""The layers of kerasllm alone, in models of your own: Sequential, Functional, any optimizer, sample weights.

    .venv/bin/python examples/custom_model.py

Two small tasks, each learnt in half a minute on two CPU cores: a Sequential classifier (does a 7 stand just before a 3
among sixteen digits?) and a Functional encoder-decoder that learns to write digits backwards.
"""

import argparse

import keras
import numpy as np
from keras import ops

from kerasllm.layers import LSTMStack, SinePositionEncoding, TransformerBlock

DIGITS, START, PAD = 10, 10, 11
"""Token ids 0 to 9 are digits; then the start of an answer, and padding."""


@keras.saving.register_keras_serializable(package="examples")
class Lion(keras.optimizers.Optimizer):
    """An optimizer of one's own: the sign of a momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

    def __init__(
        self, learning_rate: float = 1e-3, beta_1: float = 0.9, beta_2: float = 0.99, **kwargs: object
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def build(self, variables: list) -> None:
        """One momentum for each variable."""
        if not self.built:
            super().build(variables)
            self.momenta = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: object, variable: object, learning_rate: object) -> None:
        """What happens to one variable in one step."""
        momentum = self.momenta[self._get_variable_index(variable)]

        def mix(beta: float) -> object:
            # `ops` takes the gradient of an embedding too, which comes as rows and not as a table.
            return ops.add(beta * momentum, ops.multiply(gradient, 1 - beta))

        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * ops.sign(mix(self.beta_1)))
        self.assign(momentum, mix(self.beta_2))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}


def classifier(width: int = 32) -> keras.Sequential:
    """An LSTM stack with locked dropout, then a bidirectional Transformer block, in a Sequential model."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(DIGITS, width),
            LSTMStack([width, width], dropout=0.1),
            TransformerBlock(num_heads=4, intermediate_dim=2 * width, norm="rms_norm", activation="swiglu"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ],
        name="classifier",
    )


def reverser(width: int = 64) -> keras.Model:
    """An encoder-decoder in the Functional API: the decoder's block looks back and across."""
    question = keras.Input((None,), dtype="int32", name="question")
    answer = keras.Input((None,), dtype="int32", name="answer")  # what was written so far, from START on
    real = ops.not_equal(question, PAD)
    embedding = keras.layers.Embedding(PAD + 1, width, name="embedding")
    positions = SinePositionEncoding(name="positions")
    heads = {"num_heads": 4, "intermediate_dim": 2 * width}
    memory = TransformerBlock(**heads, name="encoder")(positions(embedding(question)), padding_mask=real)
    decoder = TransformerBlock(**heads, causal=True, cross_attention=True, name="decoder")
    hidden = decoder(positions(embedding(answer)), context=memory, context_mask=real)
    return keras.Model([question, answer], keras.layers.Dense(DIGITS, name="digits")(hidden), name="reverser")


def marked_digits(count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Sequences of digits, whether a 7 stands at once before a 3, and weights that make both answers equally heavy."""
    x = rng.integers(0, DIGITS, (count, 16)).astype("int32")
    marked = rng.random(count) < 0.2
    places = rng.integers(0, 15, count)
    x[marked, places[marked]], x[marked, places[marked] + 1] = 7, 3
    y = ((x[:, :-1] == 7) & (x[:, 1:] == 3)).any(axis=1).astype("float32")
    return x, y, np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean())).astype("float32")


def reversed_digits(count: int, rng: np.random.Generator, longest: int = 8) -> tuple[dict, np.ndarray, np.ndarray]:
    """Questions of 3 to `longest` digits, padded on the right, their answers, and weights 0 where there is padding."""
    lengths = rng.integers(3, longest + 1, count)
    real = np.arange(longest) < lengths[:, None]
    question = np.where(real, rng.integers(0, DIGITS, (count, longest)), PAD).astype("int32")
    target = np.zeros_like(question)
    for row, length in enumerate(lengths):
        target[row, :length] = question[row, :length][::-1]
    given = np.concatenate([np.full((count, 1), START), target[:, :-1]], axis=1).astype("int32")
    return {"question": question, "answer": given}, target, real.astype("float32")


def main() -> None:
    """Train both and say how well they do on examples they have not seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="batches of 64 that each model sees")
    count = 64 * parser.parse_args().steps
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)

    model = classifier()
    model.summary()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    accuracy = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    model.compile(optimizer=Lion(1e-3), loss=loss, weighted_metrics=[accuracy], jit_compile=False)
    x, y, weight = marked_digits(count, rng)
    model.fit(x, y, sample_weight=weight, batch_size=64, verbose=2)
    x, y, weight = marked_digits(2000, rng)
    print(f"classifier: balanced accuracy {model.evaluate(x, y, sample_weight=weight, verbose=0)[1]:.3f}")

    model = reverser()
    model.summary()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer=Lion(5e-4), loss=loss, weighted_metrics=[accuracy], jit_compile=False)
    inputs, target, weight = reversed_digits(count, rng)
    model.fit(inputs, target, sample_weight=weight, batch_size=64, verbose=2)
    inputs, target, weight = reversed_digits(2000, rng)
    print(f"reverser: accuracy {model.evaluate(inputs, target, sample_weight=weight, verbose=0)[1]:.3f} of digits")


if __name__ == "__main__":
    main()
