"""Runs notebooks/mnist_jax.ipynb and saves its outputs. Also writes the README's figure.

    python tools/run_notebook.py

The notebook finds MNIST in the cache in ~/tensorflow_datasets or in the directory
MNIST_JAX_MANUAL_DIR. Otherwise it downloads MNIST.
"""

import base64
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NOTEBOOK = NOTEBOOKS / "mnist_jax.ipynb"
FIGURE = NOTEBOOKS / "network.png"


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    run(notebook)
    nbformat.write(notebook, NOTEBOOK)
    FIGURE.write_bytes(find_figure(notebook))


def run(notebook: NotebookNode, **kernel_arguments: Any) -> None:
    """Runs all cells and stores their outputs.

    Metadata that changes with every run (times, Python's version) is left out.

    Args:
        kernel_arguments: how jupyter_client starts the kernel, for example `env`.
    """
    client = NotebookClient(notebook, timeout=600, coalesce_streams=True, record_timing=False)
    client.execute(cwd=NOTEBOOKS, **kernel_arguments)
    notebook.metadata.language_info = {"name": "python"}


def find_figure(notebook: NotebookNode) -> bytes:
    """Returns the PNG of the cell with the tag `readme`."""
    cells = [cell for cell in notebook.cells if "readme" in cell.metadata.get("tags", [])]
    (cell,) = cells
    (output,) = cell.outputs
    return base64.b64decode(output.data["image/png"])


if __name__ == "__main__":
    main()
