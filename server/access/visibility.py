"""Which names a caller may know of. A name that it may not know of is answered as one that does not exist, whether it does or not.

The answer depends on the caller's patterns and the text alone, never on the store, so nothing about the store can be read from it.
"""

from adapter_store.catalog import Catalog
from adapter_store.composition import parse, references
from server.core import Caller

NOTHING = Catalog()


def check_name(caller: Caller, name: str) -> None:
    """Raises NotFound, with the sentence of an unknown name, for a name that the caller may not know of."""
    if not caller.sees(name):
        NOTHING.entry(name)


def check_model(caller: Caller, model: str) -> None:
    """Raises NotFound for the first name in a model string that the caller may not know of; InvalidName where it is none."""
    if "*" in caller.patterns:
        return
    composition = parse(model)
    named = [] if composition.root is None else list(references(composition.root))
    for reference in (*named, *([composition.head] if composition.head is not None else [])):
        check_name(caller, reference.name)
