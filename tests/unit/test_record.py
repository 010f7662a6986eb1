# SPDX-License-Identifier: MIT
# Goal: a Record behaves as a frozen, keyword-only dataclass does.
# Method: the same expectations of both, side by side.
"""Immutable records."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from uffdswap.record import Record


class PointRecord(Record):
    x: int
    y: int = 2


class DeepRecord(PointRecord):
    z: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointDataclass:
    x: int
    y: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepDataclass(PointDataclass):
    z: int = 3


BOTH = pytest.mark.parametrize(
    ("point", "deep"), [(PointRecord, DeepRecord), (PointDataclass, DeepDataclass)]
)


@BOTH
def test_values_are_by_name_with_defaults(point: Any, deep: Any) -> None:
    assert (point(x=1).x, point(x=1).y, point(x=1, y=5).y) == (1, 2, 5)
    assert (deep(x=1).x, deep(x=1).y, deep(x=1).z) == (1, 2, 3)


@BOTH
def test_wrong_arguments_are_refused(point: Any, deep: Any) -> None:
    for wrong in ({}, {"y": 1}, {"x": 1, "z": 1}):
        with pytest.raises(TypeError):
            point(**wrong)
    with pytest.raises(TypeError):
        deep(x=1, w=1)
    with pytest.raises(TypeError):
        point(1)


@BOTH
def test_nothing_can_be_changed(point: Any, deep: Any) -> None:
    for thing in (point(x=1), deep(x=1)):
        with pytest.raises(AttributeError):
            thing.x = 5
        with pytest.raises(AttributeError):
            thing.new = 5
        with pytest.raises(AttributeError):
            del thing.x
        assert thing.x == 1


@BOTH
def test_equality_is_by_class_and_value(point: Any, deep: Any) -> None:
    assert point(x=1) == point(x=1, y=2)
    assert hash(point(x=1)) == hash(point(x=1, y=2))
    assert point(x=1) != point(x=2)
    assert point(x=1) != deep(x=1)
    assert point(x=1) != (1, 2)


@BOTH
def test_representation_can_be_read(point: Any, deep: Any) -> None:
    assert repr(point(x="a")) == f"{point.__name__}(x='a', y=2)"
    assert repr(deep(x=1)) == f"{deep.__name__}(x=1, y=2, z=3)"


def test_fields_are_listed_in_order() -> None:
    assert DeepRecord.field_names() == ("x", "y", "z")
    assert DeepRecord(x=1).as_dict() == {"x": 1, "y": 2, "z": 3}


def test_copy_differs_where_told() -> None:
    assert PointRecord(x=1).replaced(y=9) == PointRecord(x=1, y=9)
    with pytest.raises(TypeError):
        PointRecord(x=1).replaced(z=9)
