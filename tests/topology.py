"""A program for test_sharding: numbers of a run's beginning, on all devices of all processes."""

import sys

import jax
import numpy as np

from mnist_jax.command_line import parse_args
from mnist_jax.input_pipeline import epoch_order, load_dataset
from mnist_jax.processes import is_first_process, join_processes, leave_processes
from mnist_jax.runtime import check_platform
from mnist_jax.sharding import make_mesh, split_batches
from mnist_jax.steps import loss_fn, take_batch, train_steps
from mnist_jax.task import evaluate_split, new_metrics, set_up
from mnist_jax.train import train_epoch


def main(out: str) -> None:
    """Writes them to `out`."""
    config, launch = parse_args(sys.argv[2:])
    join_processes(launch.coordinator_address, launch.num_processes, launch.process_id)
    check_platform(launch.require_platform)
    mesh = make_mesh()
    task, state = set_up(config, load_dataset(config), mesh)

    @jax.jit
    def gradient(params, examples, order):
        batch = take_batch(examples, order[0])
        return jax.grad(lambda params: loss_fn(params, batch, task.model)[0])(params)

    order = epoch_order(task.order_key, 1, len(task.splits["train"]), task.batch_size)
    rows = split_batches(order, mesh)
    grads = gradient(state.params, task.examples, rows)
    static = {"model": task.model, "tx": task.tx}
    one_step, _ = train_steps(state, new_metrics(task), task.examples, rows, 0, 1, **static)
    trees = {"gradient": grads, "step": one_step.params}
    arrays = {
        f"{name}{jax.tree_util.keystr(path)}": np.array(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    task, state = set_up(config, load_dataset(config), mesh)
    *_, (state, metrics, _) = train_epoch(task, state, new_metrics(task), epoch=1)
    test = evaluate_split(task, state, "test")
    arrays["losses"] = (np.array(metrics.loss_sum) / np.array(metrics.count))[:10]
    arrays |= {"accuracy": np.array(test.accuracy), "count": np.array(test.count)}
    arrays["shards"] = np.array(mesh.size)
    if is_first_process():
        np.savez(out, **arrays)
    leave_processes(failed=False)


if __name__ == "__main__":
    main(sys.argv[1])
