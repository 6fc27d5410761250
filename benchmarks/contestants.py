"""One way each to train the lesson's network; `compare.py` runs them in processes of their own.

    python benchmarks/contestants.py NAME MNIST.npz               # one epoch a line on stdin
    python benchmarks/contestants.py NAME MNIST.npz --num-epochs 5  # all of it, then a test

All get the same arrays (float32 rows in [0, 1], from this project's cache), take all 469 steps of
an epoch, the last one of 96 examples, in a new random order, and watch the running loss and
accuracy. Each is written as its own users would, and none is fed slowly. The last four are the
parts of the limit.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BATCH_SIZE, HIDDEN, LEARNING_RATE, DECAY, EPS = 128, 512, 1e-3, 0.9, 1e-7


class Data(NamedTuple):
    train_images: Any
    train_labels: Any
    test_images: Any
    test_labels: Any


class Contestant(NamedTuple):
    train_epoch: Callable[[], None]
    """Trains one epoch, and returns when the device has done it."""
    test: Callable[[], float]
    """The accuracy on the test set."""


def load(path: str) -> Data:
    """The arrays of this project's decoded cache, prepared as the lesson does it."""
    with np.load(path) as file:
        arrays = [file[field] for field in Data._fields]
    images = [(x.reshape(-1, 784) / np.float32(255)) for x in arrays[::2]]
    labels = [y.astype(np.int32) for y in arrays[1::2]]
    return Data(images[0], labels[0], images[1], labels[1])


def batches(order: Any) -> Any:
    """`order`, cut into batches, the last one short."""
    return (order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE))


def mnist_jax(data: Data) -> Contestant:
    """This project, as `train_and_evaluate` calls it, but for logs and checkpoints."""
    import jax

    from mnist_jax import task as tasks
    from mnist_jax import train
    from mnist_jax.config import Config
    from mnist_jax.input_pipeline import Dataset
    from mnist_jax.sharding import make_mesh
    from mnist_jax.steps import Examples

    examples = Examples(*(np.concatenate(pair) for pair in (data[::2], data[1::2])))
    num_train = len(data.train_labels)
    splits = {"train": range(num_train), "test": range(num_train, len(examples.labels))}
    task, state = tasks.set_up(Config(), Dataset("mnist", examples, splits), make_mesh())
    epoch = 0

    def train_epoch() -> None:
        nonlocal state, epoch
        epoch += 1
        chunks = train.train_epoch(task, state, tasks.new_metrics(task), epoch)
        for state, _, _ in chunks:
            pass
        jax.block_until_ready(state)

    return Contestant(train_epoch, lambda: tasks.evaluate_split(task, state, "test").accuracy)


def flax_nnx(data: Data) -> Contestant:
    """The loop of Flax's MNIST tutorial: a compiled step, called from Python for each batch."""
    import jax
    import optax
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            init = nnx.initializers.glorot_uniform()
            self.linear1 = nnx.Linear(784, HIDDEN, kernel_init=init, rngs=rngs)
            self.linear2 = nnx.Linear(HIDDEN, 10, kernel_init=init, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.linear2(nnx.relu(self.linear1(x)))

    def loss_fn(model: Model, batch: Any) -> Any:
        logits = model(batch["image"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, logits

    @nnx.jit
    def train_step(model: Model, optimizer: Any, metrics: Any, batch: Any) -> None:
        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
        metrics.update(loss=loss, logits=logits, labels=batch["label"])
        optimizer.update(model, grads)

    model = Model(nnx.Rngs(0))
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


def keras_jax(data: Data, steps_per_execution: int = 1) -> Contestant:
    """The lesson itself on Keras 3's JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    data = data._replace(
        train_labels=keras.utils.to_categorical(data.train_labels, 10),
        test_labels=keras.utils.to_categorical(data.test_labels, 10),
    )
    layers = [
        keras.layers.Input((784,)),
        keras.layers.Dense(HIDDEN, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(
        optimizer=keras.optimizers.RMSprop(LEARNING_RATE, rho=DECAY, epsilon=EPS),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )

    def train_epoch() -> None:
        model.fit(data.train_images, data.train_labels, BATCH_SIZE, epochs=1, verbose=0)

    def test() -> float:
        return model.evaluate(data.test_images, data.test_labels, BATCH_SIZE, verbose=0)[1]

    return Contestant(train_epoch, test)


def keras_jax_50(data: Data) -> Contestant:
    """The same with `steps_per_execution`: Keras 3.15 then looks up from its steps less often."""
    return keras_jax(data, steps_per_execution=50)


def torch_eager(data: Data, compiled: bool = False) -> Contestant:
    """PyTorch's usual loop, without a DataLoader, which would be several times slower."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Linear(784, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
    model = torch.nn.Sequential(*layers)
    for layer in (model[0], model[2]):
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.RMSprop(model.parameters(), LEARNING_RATE, alpha=DECAY, eps=EPS)
    tensors = Data(*(torch.from_numpy(x) for x in data))
    train_labels = tensors.train_labels.long()  # cross_entropy wants 64 bits

    def loss_fn(images: Any, labels: Any) -> Any:
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    step = optimizer.step
    if compiled:
        # Not dynamic: else one program for all sizes would serve the 96 and the 128 alike.
        loss_fn = torch.compile(loss_fn, dynamic=False)
        step = torch.compile(optimizer.step)

    def train_epoch() -> None:
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for rows in batches(torch.randperm(len(data.train_labels))):
            optimizer.zero_grad()
            loss, hits = loss_fn(tensors.train_images[rows], train_labels[rows])
            loss.backward()
            step()
            loss_sum += loss.detach() * len(rows)
            correct += hits

    def test() -> float:
        with torch.no_grad():
            hits = model(tensors.test_images).argmax(1) == tensors.test_labels
            return float(hits.float().mean())

    return Contestant(train_epoch, test)


def torch_compile(data: Data) -> Contestant:
    """The same with the loss, its gradients and the update compiled."""
    return torch_eager(data, compiled=True)


def products(data: Data, library: Any, like: Callable[[Any], Any]) -> Contestant:
    """The matrix products that no trainer can do without.

    For each batch x of an epoch x W1 and h W2 forwards, g W2', h' g and x' d backwards.
    """
    images = like(data.train_images)
    h, d, g = (like(np.ones((BATCH_SIZE, n), np.float32)) for n in (HIDDEN, HIDDEN, 10))
    w1, w2 = (like(np.ones(shape, np.float32)) for shape in ((784, HIDDEN), (HIDDEN, 10)))
    grads1, grads2 = (like(np.ones_like(w)) for w in (w1, w2))

    def train_epoch() -> None:
        for x in batches(images):
            n = len(x)
            library.matmul(x, w1, out=h[:n])
            library.matmul(h[:n], w2, out=g[:n])
            library.matmul(g[:n], w2.T, out=d[:n])
            library.matmul(h[:n].T, g[:n], out=grads2)
            library.matmul(x.T, d[:n], out=grads1)

    return Contestant(train_epoch, lambda: float("nan"))


def update(data: Data, library: Any, like: Callable[[Any], Any]) -> Contestant:
    """The memory traffic of RMSprop, as much as one pass needs.

    Gradients, running squares and weights are read once; the latter two are written.
    """
    grads, squares, weights = (like(np.zeros((784, HIDDEN), np.float32)) for _ in range(3))

    def train_epoch() -> None:
        for _ in batches(data.train_labels):
            library.add(grads, squares, out=squares)
            library.add(weights, 0, out=weights)

    return Contestant(train_epoch, lambda: float("nan"))


def products_numpy(data: Data) -> Contestant:
    """With the BLAS that NumPy has."""
    return products(data, np, lambda array: array)


def products_torch(data: Data) -> Contestant:
    """With the one that PyTorch has."""
    import torch

    return products(data, torch, torch.as_tensor)


def update_numpy(data: Data) -> Contestant:
    """On one core."""
    return update(data, np, lambda array: array)


def update_torch(data: Data) -> Contestant:
    """On all cores."""
    import torch

    return update(data, torch, torch.as_tensor)


CONTESTANTS = {
    f.__name__: f
    for f in (
        mnist_jax, flax_nnx, keras_jax, keras_jax_50, torch_eager, torch_compile,
        products_numpy, products_torch, update_numpy, update_torch,
    )
}  # fmt: skip


def main() -> None:
    """Runs one contestant."""
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
        return
    for line in sys.stdin:
        started = time.perf_counter()
        contestant.train_epoch()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
