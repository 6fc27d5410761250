"""Breaks the package in twelve ways, in a copy, and shows that the fast tests notice each.

    python tools/mutate.py  # about five minutes; a part of a name picks some of the mutations

Exit code 1 if the tests fail on the unbroken copy or pass on a broken one, or if a mutation fits
the code no more. Set MNIST_JAX_MANUAL_DIR to have the tests on the full MNIST help.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTATIONS = {  # what breaks: the file, what stands there, what takes its place
    "nothing": ("steps.py", "", ""),
    "epsilon moved inside the root": (
        "optimizer.py",
        '"eps_in_sqrt": config.eps_in_sqrt',
        '"eps_in_sqrt": True',
    ),
    "the last batch dropped": (
        "input_pipeline.py",
        "return batch_rows(np.asarray(_permutation(key, epoch, num_examples)), batch_size)",
        "return batch_rows(np.asarray(_permutation(key, epoch, num_examples)), batch_size)[:-1]",
    ),
    "the mask ignored in the mean": (
        "metrics.py",
        "jnp.where(mask, cross_entropy(logits, labels), 0.0)",
        "cross_entropy(logits, labels)",
    ),
    "the division by 255 left out": ("input_pipeline.py", " / np.float32(255)", ""),
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
        "metrics.py",
        "with_integer_labels(logits, labels)",
        "with_integer_labels(jnp.exp(logits - logits.max(-1, keepdims=True)) / "
        "jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True), labels)",
    ),
    "gradients of the sum instead of the mean": (
        "steps.py",
        "return metrics.loss_sum / metrics.count.astype(jnp.float32), metrics",
        "return metrics.loss_sum, metrics",
    ),
}


def main(wanted: str = "") -> int:
    """Tries the mutations whose names contain `wanted`. Returns the exit code."""
    fine = True
    for name in [name for name in MUTATIONS if wanted in name]:
        noticed, by = try_mutation(*MUTATIONS[name])
        fine &= noticed == (name != "nothing")
        print(f"{name}: {f'noticed by {by}' if noticed else 'NOT NOTICED'}", flush=True)
    return 0 if fine else 1


def try_mutation(file: str, old: str, new: str) -> tuple[bool, str]:
    """Runs the fast tests on a copy with `old` replaced: whether one failed, and which."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        path = copy / "mnist_jax" / file
        code = path.read_text()
        if old and code.count(old) != 1:
            raise SystemExit(f"{file} has {code.count(old)} times: {old}")
        path.write_text(code.replace(old, new) if old else code)
        # Here "python -m" puts the copy before the installed package.
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        process = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    if process.returncode not in (0, 1):  # 1: a test failed; anything else is no verdict
        raise SystemExit(process.stdout + process.stderr)
    failed = re.search(r"^FAILED (\S+)", process.stdout, re.MULTILINE)
    return process.returncode == 1, failed[1] if failed else "an error"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
