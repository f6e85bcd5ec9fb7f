"""Bodies of requests whose faults cost little: a body is judged by its sizes before its parts are looked at one by one.

pydantic describes every fault of a value, so a small body of a million faults would take seconds and gigabytes to refuse.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, model_validator

MAX_FIELDS = 64

T = TypeVar("T")


class _FirstFault(FailFast):
    """pydantic's, with a hash, which the parts of a union need."""

    def __hash__(self) -> int:
        return hash(type(self))


# Lists and tuples that are refused at their first fault.
FastList = Annotated[list[T], _FirstFault()]
FastTuple = Annotated[tuple[T, ...], _FirstFault()]


class Body(BaseModel):
    """A body, or an object in one: strict about its fields, and about how many there are."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object of {len(value)} fields; it may have {', '.join(cls.model_fields)}")
        return value
