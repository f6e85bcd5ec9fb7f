"""What an alias pointed to, and when: which digests an answer may come from, given when its request was sent and answered."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tests.endurance.fleet import Part


@dataclass(frozen=True, slots=True)
class State:
    """Digests by weight, in force from some moment between `began` (the change was sent) and `acknowledged`."""

    weights: Mapping[str, int]
    began: float
    acknowledged: float


class Timeline:
    """The states of every alias in their order."""

    def __init__(self) -> None:
        self._states: dict[Part, list[State]] = defaultdict(list)

    def moved(self, part: Part, weights: Mapping[str, int], began: float, acknowledged: float) -> None:
        """Notes that an alias points elsewhere."""
        self._states[part].append(State(weights, began, acknowledged))

    def possible(self, part: Part, sent: float, received: float) -> list[int]:
        """The numbers of the states in which a request of that time may have been admitted."""
        states = self._states[part]
        return [
            number
            for number, state in enumerate(states)
            if state.began <= received and (number + 1 == len(states) or states[number + 1].acknowledged >= sent)
        ]

    def state(self, part: Part, number: int) -> State:
        """One state of an alias."""
        return self._states[part][number]

    def allowed(self, part: Part, sent: float, received: float) -> set[str]:
        """The digests that an answer of that time may come from."""
        return {digest for number in self.possible(part, sent, received) for digest in self._states[part][number].weights}
