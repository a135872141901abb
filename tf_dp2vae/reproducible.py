"""A SavedModel whose bytes follow from what it computes.

TensorFlow numbers the functions of a process as they are traced, and writes the numbers, the order of a hash table and a
random identifier into what it saves. So equal models are saved as different bytes, and the numbers tell how much was traced
before: how often a run was killed, for one. Here functions are numbered within the model, in the order of their tracing,
tables are sorted, and the identifier is left out (`SHA256SUMS` tells releases apart).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel  # pyright: ignore[reportAttributeAccessIssue]

_NUMBERED = re.compile(r"(?P<stem>.*)_(?P<number>\d+)")


def save(module: tf.Module, path: str | os.PathLike[str]) -> None:
    """`tf.saved_model.save`, with equal bytes for modules that are made alike and hold equal numbers."""
    folder = Path(path)
    tf.saved_model.save(module, os.fspath(folder))
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    file = folder / "saved_model.pb"
    model = SavedModel.FromString(file.read_bytes())
    libraries = [graph.graph_def.library.function for graph in model.meta_graphs]
    new_names = renumbered([function.signature.name for library in libraries for function in library])
    model = text_format.Parse(with_names(text_format.MessageToString(model), new_names), SavedModel())
    for graph in model.meta_graphs:
        graph.graph_def.library.function.sort(key=lambda function: function.signature.name)
    file.write_bytes(model.SerializeToString(deterministic=True))


def with_names(text: str, new_names: dict[str, str]) -> str:
    """The text with new names for old ones, also where they stand inside of others, as in those of arguments."""
    old = re.compile(rf"(?:{'|'.join(map(re.escape, new_names))})(?!\d)")
    return old.sub(lambda found: new_names[found[0]], text)


def renumbered(names: list[str]) -> dict[str, str]:
    """A new name for each that ends with a number: the number becomes its rank among the names that are alike otherwise."""
    alike: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            alike[found["stem"]].append((int(found["number"]), name))
    return {name: f"{stem}_{rank}" for stem, members in alike.items() for rank, (_, name) in enumerate(sorted(members))}
