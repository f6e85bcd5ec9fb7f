"""The compiled programs of an engine, the least recently used going first when their bytes pass a budget.

A program is cheap to make again, but for folded fusions, whose weights take memory beside their packages'. What one batch needs is
kept within the budget too: fusions that would pass it are left unfolded, which is slower and answers the same.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

from server.core import Setup, setup_digests
from server.engine.program import BARE, Program, Resident, compile_setup

# Programs that are kept, however small: averages by other weights are other setups, and clients can make any number of them.
MAX_PROGRAMS = 4096


class Programs:
    """Programs by setup. Belongs to the engine thread."""

    def __init__(self, residents: Mapping[str, Resident], fast: bool, budget: int) -> None:
        self._residents, self._fast, self._budget = residents, fast, budget
        self._made: OrderedDict[Setup, Program] = OrderedDict()
        self._by_digest: defaultdict[str, set[Setup]] = defaultdict(set)
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._made)

    def of(self, setups: Iterable[Setup | None]) -> dict[Setup | None, Program]:
        """The programs of a batch's setups. Raises CompositionError where one is not defined for its members."""
        programs: dict[Setup | None, Program] = {}
        held = 0
        for setup in dict.fromkeys(setups):
            program = BARE if setup is None else self._program(setup, self._budget - held)
            held += program.nbytes
            programs[setup] = program
        return programs

    def forget(self, digest: str) -> None:
        """Drops the programs that a package is part of."""
        for setup in self._by_digest.pop(digest, ()):
            self._drop(setup)

    def _program(self, setup: Setup, room: int) -> Program:
        """The program of a setup, folded only if that leaves the batch within its room."""
        program = self._made.get(setup)
        if program is not None and program.nbytes <= room:
            self._made.move_to_end(setup)
            return program
        if program is None:
            program = compile_setup(setup, self._residents, self._fast)
            if program.nbytes <= room:
                return self._keep(setup, program)
        unfolded = compile_setup(setup, self._residents, self._fast, folded=False)
        return self._keep(setup, unfolded) if program.nbytes > self._budget >= unfolded.nbytes else unfolded

    def _keep(self, setup: Setup, program: Program) -> Program:
        while self._made and (self.nbytes + program.nbytes > self._budget or len(self._made) >= MAX_PROGRAMS):
            self._drop(next(iter(self._made)))
        self._made[setup] = program
        self.nbytes += program.nbytes
        for digest in setup_digests(setup):
            self._by_digest[digest].add(setup)
        return program

    def _drop(self, setup: Setup) -> None:
        program = self._made.pop(setup, None)
        if program is None:
            return
        self.nbytes -= program.nbytes
        for digest in setup_digests(setup):
            setups = self._by_digest.get(digest, set())
            setups.discard(setup)
            if not setups:
                self._by_digest.pop(digest, None)
