"""What a push sends: one package file, or the files of an adapter's folder. Chosen and refused here, before anything is sent.

A body can be read again from the start, so that a try that failed can be repeated, and its length is known beforehand.
"""

import secrets
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from turret_client.errors import InvalidArgument

CHUNK = 256 * 1024  # bytes
FIELD = "files"
SETUP = "adapter_setup.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})

Progress = Callable[[int, int], None]
"""Called as (bytes handed to the connection, bytes in all); starts again at 0 when a try is repeated."""


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A file that is a piece of a body; `size` in bytes when it was chosen."""

    path: Path
    size: int

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes; raises InvalidArgument if it no longer has the size that was promised."""
        left = self.size
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        if left:
            raise InvalidArgument(f"{self.path} changed while it was being sent: push it again once it is complete.")


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body in pieces, of known size."""

    content_type: str
    pieces: tuple[bytes | FilePiece, ...]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in self.pieces)

    def chunks(self, progress: Progress | None = None) -> Iterator[bytes]:
        """The body from its start, a chunk at a time."""
        report = _Meter(self.size, progress)
        for chunk in self._plain():
            yield chunk
            report.add(len(chunk))

    async def achunks(self, progress: Progress | None = None) -> AsyncIterator[bytes]:
        """The same for an event loop: files are read in a worker thread, `progress` is called in the loop's."""
        report = _Meter(self.size, progress)
        chunks = self._plain()
        while chunk := await anyio.to_thread.run_sync(next, chunks, b""):
            yield chunk
            report.add(len(chunk))

    def _plain(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, FilePiece):
                yield from piece.chunks()
            elif piece:
                yield piece


class _Meter:
    """Counts what was sent and tells it on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._sent = 0
        self._total = total
        self._progress = progress
        self.add(0)

    def add(self, count: int) -> None:
        self._sent += count
        if self._progress is not None:
            self._progress(self._sent, self._total)


def package_body(path: Path) -> Body:
    """What to send for a package file, or for a folder as AdapterHub and PEFT write them; raises InvalidArgument with the reason."""
    if path.is_dir():
        return multipart(folder_files(path), path)
    if not path.exists():
        raise InvalidArgument(f"There is no file or folder {path}.")
    if not path.is_file():
        raise InvalidArgument(f"{path} is neither a file nor a folder.")
    if path.suffix in PICKLES:
        raise InvalidArgument(_convert_first(path, path.resolve().parent))
    if path.suffix != ".safetensors":
        raise InvalidArgument(f"{path} is not a package: expected a .safetensors package file or an adapter's folder.")
    return Body("application/octet-stream", (FilePiece(path, path.stat().st_size),))


def folder_files(folder: Path) -> list[Path]:
    """The files of an adapter's folder that are sent: *.json, *.safetensors and README.md at its top level, none hidden.

    Of a setup of several adapters (adapter_setup.json) also those in its folders, one level down.
    """
    files = _visible(folder)
    chosen = [file for file in files if file.suffix in (".json", ".safetensors") or file.name == "README.md"]
    suffixes = {file.suffix for file in files}
    if pickles := [file for inner in (folder, *setup_folders(folder)) for file in _only_pickled(inner)]:
        raise InvalidArgument(_convert_first(pickles[0], folder))
    if not {".json", ".safetensors"} <= suffixes:
        raise InvalidArgument(
            f"{folder} holds no adapter: expected its .safetensors weights and their .json configuration at the folder's top level."
        )
    return sorted(chosen, key=lambda file: (file.parent != folder, file))


def setup_folders(folder: Path) -> list[Path]:
    """The folders in the folder of a setup; none in one of a single adapter."""
    if not (folder / SETUP).is_file():
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def pickled(folder: Path) -> list[Path]:
    """The files of a folder that look like pickled weights."""
    return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".") and file.suffix in PICKLES]


def _only_pickled(folder: Path) -> list[Path]:
    """The pickles of a folder without any safetensors."""
    return sorted(pickled(folder)) if not any(file.suffix == ".safetensors" for file in folder.iterdir()) else []


def _visible(folder: Path) -> list[Path]:
    folders = (folder, *setup_folders(folder))
    return sorted(file for inner in folders for file in inner.iterdir() if file.is_file() and not file.name.startswith("."))


def _convert_first(pickle: Path, folder: Path) -> str:
    command = f"turret convert {shlex.quote(str(folder))} FILE"
    return f"{pickle} is a pickle, which a server never opens: run `{command}` (offline) and push what it writes."


def multipart(files: Sequence[Path], folder: Path) -> Body:
    """The files as multipart/form-data (RFC 7578), each in a part named "files" under its path within the folder."""
    boundary = f"turret-{secrets.token_hex(16)}"
    pieces: list[bytes | FilePiece] = []
    for file in files:
        name = file.relative_to(folder).as_posix().replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        pieces.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{FIELD}"; filename="{name}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n".encode(errors="surrogateescape")
        )
        pieces += [FilePiece(file, file.stat().st_size), b"\r\n"]
    return Body(f"multipart/form-data; boundary={boundary}", (*pieces, f"--{boundary}--\r\n".encode()))
