"""Runs notebooks/mnist_jax.ipynb, keeps what it prints and draws, and the README's picture.

    python tools/run_notebook.py

MNIST comes from where the notebook has it from: the cache in ~/tensorflow_datasets, or the
directory in MNIST_JAX_MANUAL_DIR, or a download.
"""

import base64
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NOTEBOOK = NOTEBOOKS / "mnist_jax.ipynb"
PICTURE = NOTEBOOKS / "network.png"


def run(notebook: NotebookNode, **kernel: Any) -> None:
    """Fills in the outputs, without what would differ from one run to the next for no reason.

    Args:
        kernel: `env` and what else jupyter_client starts a kernel with.
    """
    NotebookClient(notebook, timeout=600, coalesce_streams=True, record_timing=False).execute(
        cwd=NOTEBOOKS, **kernel
    )
    notebook.metadata.language_info = {"name": "python"}


def find_picture(notebook: NotebookNode) -> bytes:
    """What the cell with the tag `readme` has drawn, as PNG."""
    (cell,) = (c for c in notebook.cells if "readme" in c.metadata.get("tags", []))
    (png,) = (output.data["image/png"] for output in cell.outputs)
    return base64.b64decode(png)


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    run(notebook)
    nbformat.write(notebook, NOTEBOOK)
    PICTURE.write_bytes(find_picture(notebook))
