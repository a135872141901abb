"""Frozen dataclasses that Keras can save."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T", bound="Configuration")


@dataclass(frozen=True)
class Configuration:
    """A frozen dataclass with Keras's two verbs of saving."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        """The inverse of `get_config`."""
        return cls(**config)
