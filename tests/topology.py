"""A program for test_devices: the first numbers of a run, on all devices of all processes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from mnist_jax.config import RunOptions
from mnist_jax.data.pipeline import epoch_order, load_dataset, take_batch
from mnist_jax.runtime.cli import LaunchOptions
from mnist_jax.runtime.devices import is_first_process, make_mesh, split_batches
from mnist_jax.runtime.program import prepare_process, run_command
from mnist_jax.steps import loss_fn, split_seed, train_steps
from mnist_jax.train import evaluate_split, init_train_state, set_up, train_epoch


@dataclasses.dataclass(frozen=True)
class Options(LaunchOptions, RunOptions):
    """Write the numbers to a file."""

    out: Path = Path("numbers.npz")


def main(options: Options) -> None:
    prepare_process(options)
    setup = set_up(options.config, load_dataset(options.config), make_mesh())
    examples, num_train = setup.dataset.examples, len(setup.dataset.splits["train"])
    _, order_key = split_seed(options.config.seed)
    order = epoch_order(order_key, 1, num_train, setup.batch_size)
    rows, state = split_batches(order[:1], setup.mesh), init_train_state(setup)

    @jax.jit
    def gradient(params, examples, rows):
        return jax.grad(lambda p: loss_fn(p, take_batch(examples, rows[0]), setup.model)[0])(params)

    grads = gradient(state.params, examples, rows)
    state, _ = train_steps(state, examples, rows, model=setup.model, tx=setup.tx)
    numbers = {f"gradient {i}": leaf for i, leaf in enumerate(jax.tree.leaves(grads))}
    numbers |= {f"params {i}": leaf for i, leaf in enumerate(jax.tree.leaves(state.params))}
    chunks = list(train_epoch(setup, init_train_state(setup), 1))
    _, first = chunks[0]
    test = evaluate_split(setup, chunks[-1][0], "test")
    numbers |= {"losses": np.array(first.loss_sum)[:10] / np.array(first.num_examples)[:10]}
    numbers |= {"accuracy": test.accuracy, "count": test.count, "devices": setup.mesh.size}
    if is_first_process():
        np.savez(options.out, **{name: np.array(value) for name, value in numbers.items()})


if __name__ == "__main__":
    run_command(Options, main, "topology")
