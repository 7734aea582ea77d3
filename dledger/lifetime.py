"""Objects that are started and closed: `with` and `async with` do both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Lifetime(ABC):
    """Started by `with`, closed at its end."""

    @abstractmethod
    def start(self) -> None:
        """Makes the object ready."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything it holds."""

    def __enter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()


class AsyncLifetime(ABC):
    """Started by `async with`, closed at its end."""

    @abstractmethod
    async def start(self) -> None:
        """Makes the object ready."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything it holds."""

    async def __aenter__(self) -> Self:
        """Starts."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        await self.close()
