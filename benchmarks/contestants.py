"""Several ways to train the lesson's network. `compare.py` runs each in its own process.

    python benchmarks/contestants.py NAME MNIST.npz                 # one epoch per line on stdin
    python benchmarks/contestants.py NAME MNIST.npz --num-epochs 5  # train and test

All contestants get the same arrays. Each epoch has 469 steps in a new random order; the last batch
has 96 examples. All compute the running loss and accuracy. Each is code as its users write it.
"""

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
from lesson import BATCH_SIZE, DECAY, EPS, HIDDEN, LEARNING_RATE, Contestant, Data, batches, load
from limit import products_numpy, products_torch, update_numpy, update_torch


def mnist_jax(data: Data) -> Contestant:
    """This project: what `train_and_evaluate` calls, without logs and checkpoints."""
    import jax

    from mnist_jax import train
    from mnist_jax.config import Config
    from mnist_jax.data.pipeline import Dataset, Examples
    from mnist_jax.runtime.devices import make_mesh

    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    num_train = len(data.train_labels)
    splits = {"train": range(num_train), "test": range(num_train, len(labels))}
    setup = train.set_up(Config(), Dataset("mnist", Examples(images, labels), splits), make_mesh())
    state = train.init_train_state(setup)
    epoch = 0

    def train_epoch() -> None:
        nonlocal state, epoch
        epoch += 1
        chunks = train.train_epoch(setup, state, epoch)
        for state, _ in chunks:
            pass
        jax.block_until_ready(state)

    return Contestant(train_epoch, lambda: train.evaluate_split(setup, state, "test").accuracy)


def flax_nnx(data: Data) -> Contestant:
    """The loop of Flax's MNIST tutorial: Python calls a compiled step for each batch."""
    import jax
    import optax
    from flax import nnx

    model, train_step = make_flax_model(), make_flax_step()
    tx = optax.rmsprop(LEARNING_RATE, decay=DECAY, eps=EPS, eps_in_sqrt=False)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    rng = np.random.default_rng(0)

    def train_epoch() -> None:
        metrics.reset()
        for rows in batches(rng.permutation(len(data.train_labels))):
            batch = {"image": data.train_images[rows], "label": data.train_labels[rows]}
            train_step(model, optimizer, metrics, batch)
        jax.block_until_ready((nnx.state(model), metrics.compute()))

    def test() -> float:
        logits = nnx.jit(lambda model, images: model(images))(model, data.test_images)
        return float((logits.argmax(1) == data.test_labels).mean())

    return Contestant(train_epoch, test)


def make_flax_model() -> Any:
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            init = nnx.initializers.glorot_uniform()
            self.linear1 = nnx.Linear(784, HIDDEN, kernel_init=init, rngs=rngs)
            self.linear2 = nnx.Linear(HIDDEN, 10, kernel_init=init, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.linear2(nnx.relu(self.linear1(x)))

    return Model(nnx.Rngs(0))


def make_flax_step() -> Any:
    """Returns a compiled function that updates model, optimizer and metrics with one batch."""
    import optax
    from flax import nnx

    def loss_fn(model: Any, batch: Any) -> Any:
        logits = model(batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), logits

    @nnx.jit
    def train_step(model: Any, optimizer: Any, metrics: Any, batch: Any) -> None:
        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
        metrics.update(loss=loss, logits=logits, labels=batch["label"])
        optimizer.update(model, grads)

    return train_step


def keras_jax(data: Data, steps: int = 1) -> Contestant:
    """The original lesson, on the JAX backend of Keras 3."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    train_labels = keras.utils.to_categorical(data.train_labels, 10)
    test_labels = keras.utils.to_categorical(data.test_labels, 10)
    hidden = keras.layers.Dense(HIDDEN, activation="relu")
    output = keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.layers.Input((784,)), hidden, output])
    optimizer = keras.optimizers.RMSprop(LEARNING_RATE, rho=DECAY, epsilon=EPS)
    model.compile(
        optimizer, loss="categorical_crossentropy", metrics=["accuracy"], steps_per_execution=steps
    )

    def train_epoch() -> None:
        model.fit(data.train_images, train_labels, BATCH_SIZE, epochs=1, verbose=0)

    def test() -> float:
        _, accuracy = model.evaluate(data.test_images, test_labels, BATCH_SIZE, verbose=0)
        return accuracy

    return Contestant(train_epoch, test)


def keras_jax_50(data: Data) -> Contestant:
    """The same, but Keras runs 50 steps before it returns to Python."""
    return keras_jax(data, steps=50)


def torch_eager(data: Data, compiled: bool = False) -> Contestant:
    """The usual PyTorch loop. A DataLoader would make it several times slower."""
    import torch

    model = make_torch_model()
    train_step = make_torch_step(model, compiled)
    train_images = torch.from_numpy(data.train_images)
    train_labels = torch.from_numpy(data.train_labels).long()  # cross_entropy needs int64

    def train_epoch() -> None:
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for rows in batches(torch.randperm(len(train_labels))):
            loss, batch_correct = train_step(train_images[rows], train_labels[rows])
            loss_sum += loss * len(rows)
            correct += batch_correct

    def test() -> float:
        with torch.no_grad():
            predictions = model(torch.from_numpy(data.test_images)).argmax(1)
            return float((predictions == torch.from_numpy(data.test_labels)).float().mean())

    return Contestant(train_epoch, test)


def make_torch_model() -> Any:
    import torch

    torch.manual_seed(0)
    linear1, linear2 = torch.nn.Linear(784, HIDDEN), torch.nn.Linear(HIDDEN, 10)
    for layer in (linear1, linear2):
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(linear1, torch.nn.ReLU(), linear2)


def make_torch_step(model: Any, compiled: bool) -> Any:
    """Returns a step: it trains on a batch, and returns the loss and the number correct."""
    import torch

    def loss_fn(images: Any, labels: Any) -> Any:
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    optimizer = torch.optim.RMSprop(model.parameters(), LEARNING_RATE, alpha=DECAY, eps=EPS)
    update = optimizer.step
    if compiled:
        # dynamic=False compiles one program for 128 examples and another for the last 96.
        loss_fn = torch.compile(loss_fn, dynamic=False)
        update = torch.compile(optimizer.step)

    def train_step(images: Any, labels: Any) -> tuple[Any, Any]:
        optimizer.zero_grad()
        loss, correct = loss_fn(images, labels)
        loss.backward()
        update()
        return loss.detach(), correct

    return train_step


def torch_compile(data: Data) -> Contestant:
    """The same with a compiled loss, gradient and update."""
    return torch_eager(data, compiled=True)


LIBRARIES = (mnist_jax, flax_nnx, keras_jax, keras_jax_50, torch_eager, torch_compile)
LIMITS = (products_numpy, products_torch, update_numpy, update_torch)
CONTESTANTS = {function.__name__: function for function in (*LIBRARIES, *LIMITS)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("data")
    parser.add_argument("--num-epochs", type=int, default=0)
    args = parser.parse_args()
    contestant = CONTESTANTS[args.name](load(args.data))
    if args.num_epochs:
        for _ in range(args.num_epochs):
            contestant.train_epoch()
        print(contestant.test())
    else:
        time_epochs(contestant)


def time_epochs(contestant: Contestant) -> None:
    """Trains one epoch for each line on stdin, and prints its seconds."""
    for _ in sys.stdin:
        started = time.perf_counter()
        contestant.train_epoch()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
