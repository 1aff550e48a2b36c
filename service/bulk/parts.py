"""Answers as Parquet: the columns, named as in the answers of `/v1/classify` and `classify --json`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pyarrow
from pyarrow import parquet

from service.bulk.predictor import Answered, Verdict
from service.errors import FoveaError
from service.spec import Contract

ROWS = 1000  # buffered before they are compressed

_CLASS = pyarrow.struct([("label", pyarrow.string()), ("index", pyarrow.int32()), ("probability", pyarrow.float64())])


def schema(*, ids: bool, features: bool) -> pyarrow.Schema:
    """Of every part of a folder.

    Args:
        ids: Whether images have names of their own.
        features: Whether they are wanted.
    """
    return pyarrow.schema(
        [
            pyarrow.field("file", pyarrow.string(), nullable=False),
            ("row", pyarrow.int64()),
            *([("id", pyarrow.string())] if ids else []),
            pyarrow.field("model", pyarrow.string(), nullable=False),
            pyarrow.field("version", pyarrow.string(), nullable=False),
            ("label", pyarrow.string()),
            ("probability", pyarrow.float64()),
            ("classes", pyarrow.list_(_CLASS)),
            ("prediction_set", pyarrow.list_(pyarrow.string())),
            ("coverage", pyarrow.float64()),
            ("abstained", pyarrow.bool_()),
            ("abstained_by", pyarrow.string()),
            ("error_code", pyarrow.string()),
            ("error_detail", pyarrow.string()),
            *([("features", pyarrow.list_(pyarrow.float32()))] if features else []),
        ]
    )


class Part:
    """Gathers one part, compressed, in memory.

    Args:
        spec: Of what answers.
        ids, features: As for `schema`.
    """

    def __init__(self, spec: Contract, *, ids: bool, features: bool) -> None:
        self._spec = spec
        self._schema = schema(ids=ids, features=features)
        self._rows: list[Answered] = []
        self._sink = pyarrow.BufferOutputStream()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def add(self, answers: Iterable[Answered]) -> None:
        self._rows += answers
        if len(self._rows) >= ROWS:
            self._flush()

    def finish(self) -> pyarrow.Buffer:
        """The whole file."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(_table(self._spec, self._rows, self._schema))
            self._rows = []


def _table(spec: Contract, rows: list[Answered], schema: pyarrow.Schema) -> pyarrow.Table:
    names = [row.name for row in rows]
    found = [row.result if isinstance(row.result, Verdict) else None for row in rows]
    errors = [row.result if isinstance(row.result, FoveaError) else None for row in rows]
    labels, calibration = spec.labels, spec.calibration
    by = "energy" if calibration.abstain_above_distance is None else "distance"
    sets = calibration.conformal_quantile is not None
    columns = {
        "file": [name.file for name in names],
        "row": [name.row for name in names],
        "id": [name.id for name in names],
        "model": [spec.name] * len(rows),
        "version": [spec.version] * len(rows),
        "label": [labels[one.classes[0]] if one else None for one in found],
        "probability": [one.probabilities[0] if one else None for one in found],
        "classes": _classes(labels, found),
        "prediction_set": [[labels[k] for k in one.prediction_set or ()] if one and sets else None for one in found],
        "coverage": [calibration.coverage if one and sets else None for one in found],
        "abstained": [one.abstained if one else None for one in found],
        "abstained_by": [by if one and one.abstained else None for one in found],
        "error_code": [error and error.code for error in errors],
        "error_detail": [error and error.message for error in errors],
        "features": _features(found) if "features" in schema.names else None,
    }
    return pyarrow.table({name: columns[name] for name in schema.names}, schema=schema)


def _classes(labels: tuple[str, ...], found: list[Verdict | None]) -> pyarrow.ListArray:
    """Lists of classes, from flat columns: a thousandth of the objects that dictionaries would be."""
    indices = list(chain.from_iterable(one.classes for one in found if one))
    flat = pyarrow.StructArray.from_arrays(
        [
            pyarrow.array([labels[index] for index in indices], pyarrow.string()),
            pyarrow.array(indices, pyarrow.int32()),
            pyarrow.array(list(chain.from_iterable(one.probabilities for one in found if one)), pyarrow.float64()),
        ],
        fields=list(_CLASS),
    )
    return _lists([len(one.classes) if one else None for one in found], flat)


def _features(found: list[Verdict | None]) -> pyarrow.ListArray:
    rows = [one.features for one in found if one and one.features is not None]
    flat = pyarrow.array(np.concatenate(rows) if rows else np.zeros(0, np.float32), pyarrow.float32())
    return _lists([len(rows[0]) if one else None for one in found], flat)


def _lists(lengths: list[int | None], flat: pyarrow.Array) -> pyarrow.ListArray:
    """Lists of so many of the flat values each; None where a length is."""
    ends = np.cumsum([0, *(length or 0 for length in lengths)])
    missing = pyarrow.array([length is None for length in lengths])
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), flat, mask=missing)
