"""Breaks the package in twelve ways, in a copy, and shows that the fast tests notice each.

    python tools/mutate.py       # some minutes
    python tools/mutate.py mask  # those with "mask" in their names

Exit code 1 if the tests pass on a broken copy, if the test that fails there fails on the unbroken
code too, or if a mutation fits the code no more.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTATIONS = {  # what breaks: the file, what stands there, what takes its place
    "epsilon moved inside the root": (
        "optimizer.py",
        '"eps_in_sqrt": config.eps_in_sqrt',
        '"eps_in_sqrt": True',
    ),
    "the last batch dropped": (
        "input_pipeline.py",
        "    return batch_rows(rows, batch_size)\n",
        "    return batch_rows(rows, batch_size)[:-1]\n",
    ),
    "the mask ignored in the mean": (
        "metrics.py",
        "jnp.where(mask, cross_entropy(logits, labels), 0.0)",
        "cross_entropy(logits, labels)",
    ),
    "the division by 255 left out": ("input_pipeline.py", "np.float32(255)", "np.float32(1)"),
    "relu replaced by gelu": ("model.py", "nn.relu", "nn.gelu"),
    "biases initialised to 0.1": (
        "model.py",
        "bias_init=nn.initializers.zeros",
        "bias_init=nn.initializers.constant(0.1)",
    ),
    "the same order in every epoch": (
        "input_pipeline.py",
        "jax.random.fold_in(key, epoch)",
        "jax.random.fold_in(key, 0)",
    ),
    "evaluation that drops the remainder": (
        "steps.py",
        "jnp.any(order >= 0, axis=1)",
        "jnp.all(order >= 0, axis=1)",
    ),
    "the test split used for training": (
        "input_pipeline.py",
        '"train": range(num_train)',
        '"train": range(num_all, num_all + num_test)',
    ),
    "labels shifted by one": (
        "input_pipeline.py",
        "np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32)",
        "(np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32) + 1) % 10",
    ),
    "softmax applied twice": (
        "model.py",
        "return self._dense(self.num_classes, dot_general=narrow_dot_general)(x)",
        "return jax.nn.softmax(self._dense(self.num_classes)(x))",
    ),
    "gradients of the sum instead of the mean": (
        "steps.py",
        "return metrics.loss_sum / metrics.count.astype(jnp.float32), metrics",
        "return metrics.loss_sum, metrics",
    ),
}


def main(wanted: str = "") -> int:
    """Tries the mutations whose names contain `wanted`. Returns the exit code."""
    chosen = {name: mutation for name, mutation in MUTATIONS.items() if wanted in name}
    if not chosen:
        raise SystemExit(f"no mutation is called {wanted!r}; there are: {', '.join(MUTATIONS)}")
    for file, old, _ in chosen.values():
        if (count := (ROOT / "mnist_jax" / file).read_text().count(old)) != 1:
            raise SystemExit(f"{file} has {count} times: {old}")
    failed = {name: run_tests(mutation) for name, mutation in chosen.items()}
    for name, test in failed.items():
        print(f"{name}: {f'noticed by {test}' if test else 'NOT NOTICED'}", flush=True)
    noticed = sorted({test for test in failed.values() if test})
    if noticed and (test := run_tests(None, *noticed)):
        raise SystemExit(f"a test fails on the unbroken code: {test}")
    return 0 if all(failed.values()) else 1


def run_tests(mutation: tuple[str, str, str] | None, *tests: str) -> str | None:
    """Runs tests, or all fast ones, on a copy with the mutation: returns the first that fails."""
    with tempfile.TemporaryDirectory() as directory:
        for part in ("mnist_jax", "configs", "docs", "notebooks", "tests", "tools"):
            shutil.copytree(ROOT / part, Path(directory, part))
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, directory)
        if mutation:
            file, old, new = mutation
            path = Path(directory, "mnist_jax", file)
            path.write_text(path.read_text().replace(old, new))
            likeliest = f"tests/test_{file}", "tests/test_numerics.py"
            return first_failure(directory, *likeliest) or first_failure(directory, "tests")
        return first_failure(directory, *tests)


def first_failure(directory: str, *tests: str) -> str | None:
    """The first of `tests` that fails in `directory`."""
    # Here "python -m" puts the copy before the installed package.
    options = ["-x", "-q", "--tb=no", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    process = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if process.returncode not in (0, 1):  # 1: a test failed; anything else is no verdict
        raise SystemExit(process.stdout + process.stderr)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", process.stdout, re.MULTILINE)
    return failed[1] if failed else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
