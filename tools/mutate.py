"""Breaks a copy of the package in twelve ways. The fast tests must notice each of them.

    python tools/mutate.py       # all mutations; takes some minutes
    python tools/mutate.py mask  # only the mutations with "mask" in their names

The exit code is 1 if the tests pass on a broken copy, if a test that notices a mutation also fails
on the unbroken code, or if the text that a mutation replaces is not found exactly once.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDERS = ("mnist_jax", "benchmarks", "configs", "docs", "notebooks", "tests", "tools")
FILES = ("pyproject.toml", "README.md")


class Mutation(NamedTuple):
    """Replaces `old` by `new` in a file of the package."""

    file: str
    old: str
    new: str


MUTATIONS = {
    "epsilon moved inside the root": Mutation(
        "optimizer.py", '"eps_in_sqrt": config.eps_in_sqrt', '"eps_in_sqrt": True'
    ),
    "the last batch dropped": Mutation(
        "data/pipeline.py",
        "    return batch_rows(rows, batch_size)\n",
        "    return batch_rows(rows, batch_size)[:-1]\n",
    ),
    "the mask ignored in the mean": Mutation(
        "steps.py",
        "jnp.where(batch.mask, cross_entropy(logits, batch.labels), 0.0)",
        "cross_entropy(logits, batch.labels)",
    ),
    "the division by 255 left out": Mutation(
        "data/pipeline.py", "np.float32(255)", "np.float32(1)"
    ),
    "relu replaced by gelu": Mutation("model.py", "nn.relu", "nn.gelu"),
    "biases initialised to 0.1": Mutation(
        "model.py", "bias_init=nn.initializers.zeros", "bias_init=nn.initializers.constant(0.1)"
    ),
    "the same order in every epoch": Mutation(
        "data/pipeline.py", "jax.random.fold_in(key, epoch)", "jax.random.fold_in(key, 0)"
    ),
    "evaluation that drops the remainder": Mutation(
        "train.py",
        "batch_rows(setup.dataset.splits[split], setup.batch_size)",
        "batch_rows(setup.dataset.splits[split], setup.batch_size)"
        "[: len(setup.dataset.splits[split]) // setup.batch_size]",
    ),
    "the test split used for training": Mutation(
        "data/pipeline.py",
        '"train": range(num_train)',
        '"train": range(num_all, num_all + num_test)',
    ),
    "labels shifted by one": Mutation(
        "data/pipeline.py",
        "np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32)",
        "(np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32) + 1) % 10",
    ),
    "softmax applied twice": Mutation(
        "model.py",
        "return dense(self.num_classes, dot_general=narrow_dot_general)(x)",
        "return nn.softmax(dense(self.num_classes)(x))",
    ),
    "gradients of the sum instead of the mean": Mutation(
        "steps.py",
        "return metrics.loss_sum / num_examples.astype(jnp.float32), metrics",
        "return metrics.loss_sum, metrics",
    ),
}


def main(wanted: str = "") -> None:
    """Tests the mutations whose names contain `wanted`."""
    chosen = {name: mutation for name, mutation in MUTATIONS.items() if wanted in name}
    if not chosen:
        sys.exit(f"no mutation is called {wanted!r}; choose from: {', '.join(MUTATIONS)}")
    for mutation in chosen.values():
        check_text(mutation)
    missed, noticed_by = [], set()
    for name, mutation in chosen.items():
        test = try_mutation(mutation)
        print(f"{name}: {f'noticed by {test}' if test else 'NOT NOTICED'}", flush=True)
        if test:
            noticed_by.add(test)
        else:
            missed.append(name)
    check_unbroken(sorted(noticed_by))
    if missed:
        sys.exit(f"the tests did not notice: {', '.join(missed)}")


def check_text(mutation: Mutation) -> None:
    """Exits unless the text to replace occurs exactly once."""
    count = (ROOT / "mnist_jax" / mutation.file).read_text().count(mutation.old)
    if count != 1:
        sys.exit(f"{mutation.file} contains this text {count} times: {mutation.old}")


def try_mutation(mutation: Mutation) -> str | None:
    """Returns the first fast test that fails on a mutated copy. Starts with the likeliest tests."""
    with tempfile.TemporaryDirectory() as copy:
        copy_project(copy)
        path = Path(copy, "mnist_jax", mutation.file)
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        return first_failure(copy, *likeliest_tests(mutation.file)) or first_failure(copy, "tests")


def check_unbroken(tests: list[str]) -> None:
    """Exits if one of `tests` fails on an unbroken copy."""
    with tempfile.TemporaryDirectory() as copy:
        copy_project(copy)
        if tests and (test := first_failure(copy, *tests)):
            sys.exit(f"a test fails on the unbroken code: {test}")


def copy_project(copy: str) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, Path(copy, folder))
    for file in FILES:
        shutil.copy(ROOT / file, copy)


def likeliest_tests(file: str) -> list[str]:
    """Returns the tests of a module, and the tests against the NumPy reference."""
    tests = (f"tests/test_{Path(file).stem}.py", "tests/test_numerics.py")
    return [test for test in tests if (ROOT / test).exists()]


def first_failure(directory: str, *tests: str) -> str | None:
    """Runs `tests` in `directory`. Returns the first one that fails."""
    # "python -m" puts the copy in `directory` before the installed package.
    options = ["-x", "-q", "--tb=no", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    process = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if process.returncode not in (0, 1):  # 1 means that a test failed; others are pytest's errors
        sys.exit(process.stdout + process.stderr)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", process.stdout, re.MULTILINE)
    return failed[1] if failed else None


if __name__ == "__main__":
    main(*sys.argv[1:])
