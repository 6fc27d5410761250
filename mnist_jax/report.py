"""The report of an evaluation: one HTML file with all that it shows, without scripts or links."""

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from PIL import Image

from mnist_jax.evaluation import CLASS_COLUMNS, class_rows, confusion_rows, describe
from mnist_jax.run_log import VERSIONS
from mnist_jax.runtime import describe_devices
from mnist_jax.trained import Trained, read_record

TEMPLATE = Path(__file__).with_name("report.html")


class Picture(NamedTuple):
    """A figure, drawn at twice the pixels that it is shown with, and its words."""

    name: str
    """Of its file."""
    title: str
    caption: str
    text: str
    """What it shows, for who cannot see it."""
    png: bytes


def format_report(
    trained: Trained, evaluation: dict[str, Any], pictures: Sequence[Picture], command: str
) -> str:
    """The page of an evaluation; `command` is the one that makes it again."""
    matrix = confusion_rows(evaluation)
    accuracy = f"{100 * evaluation['test_accuracy']:.2f} %"
    return Template(TEMPLATE.read_text()).substitute(
        title=escape(f"{evaluation['dataset']}: test accuracy {accuracy}"),
        summary=format_pairs(describe(evaluation)),
        pictures="\n".join(map(format_picture, pictures)),
        classes=format_numbers(CLASS_COLUMNS, class_rows(evaluation)),
        confusion=format_numbers(["class", *(row[0] for row in matrix)], matrix),
        run=format_pairs(describe_run(trained) | {"Made by": command}),
        settings=format_pairs(dataclasses.asdict(trained.config)),
    )


def describe_run(trained: Trained) -> dict[str, str]:
    """Which run it is, and what it has run on; what has evaluated it is told apart."""
    record = read_record(trained.workdir)
    sizes = {name: record[name] for name in ("train", "validation", "test") if name in record}
    versions = {name: record.get(name, "unknown") for name in VERSIONS}
    return {
        "Folder": str(trained.workdir),
        "After step": f"{trained.step:,}",
        "Dataset": f"{record['dataset']}: {_list(f'{n:,} {name}' for name, n in sizes.items())}",
        "Trained with": _list([*map(" ".join, versions.items()), record.get("devices", "")]),
        "Evaluated with": _list([*map(" ".join, VERSIONS.items()), describe_devices()]),
    }


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def format_picture(picture: Picture) -> str:
    """A figure in its section, its file inlined."""
    width, height = (n // 2 for n in Image.open(io.BytesIO(picture.png)).size)
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h2>{escape(picture.title)}</h2>\n<figure>\n"
        f'<img alt="{escape(picture.text)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )


def format_pairs(pairs: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in pairs.items()
    )
    return "\n".join(['<table class="text">', *rows, "</table>"])


def format_numbers(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers, whose first column names the rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = (
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{n}</td>" for n in rest)}</tr>'
        for first, *rest in rows
    )
    table = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>"]
    return "\n".join(['<div class="wide"><table class="numbers">', *table, "</table></div>"])
