# SPDX-License-Identifier: MIT
"""Immutable data with named fields, for the modules that run before the program starts.

`Record` is what `@dataclass(frozen=True, kw_only=True)` would be, and type checkers treat it as
that. It exists because `dataclasses` imports `inspect`, which costs the launcher and the agent as
much time as starting the interpreter; the other modules use `dataclasses`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_options: object) -> Callable[[T], T]:
        """Stand in for `typing.dataclass_transform`, which only type checkers look at."""
        return lambda cls: cls


__all__ = ("Record",)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Base of immutable data: keyword arguments, equality, a representation.

    >>> class Point(Record):
    ...     x: int
    ...     y: int = 0
    >>> Point(x=1)
    Point(x=1, y=0)
    >>> Point(x=1) == Point(x=1, y=0)
    True
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = (n for n, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar"))
        cls._fields = (*cls._fields, *own)

    def __init__(self, **values: Any) -> None:
        for name in self._fields:
            if name not in values and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
            self.__dict__[name] = values.pop(name) if name in values else getattr(type(self), name)
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((type(self), *self.as_dict().values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of the fields, in their order of declaration."""
        return cls._fields

    def replaced(self, **changes: Any) -> Self:
        """Return a copy in which some fields have other values.

        >>> class Point(Record):
        ...     x: int
        ...     y: int = 0
        >>> Point(x=1).replaced(y=2)
        Point(x=1, y=2)
        """
        return type(self)(**{**self.as_dict(), **changes})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, in their order of declaration."""
        return dict(self.__dict__)
