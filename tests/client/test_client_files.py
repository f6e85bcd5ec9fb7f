"""What a push takes from a folder, and files that are written whole or not at all."""

import functools
import hashlib
from email.parser import BytesParser
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from turret_client.download import AtomicFile, Download
from turret_client.errors import DigestMismatch, InvalidArgument
from turret_client.upload import CHUNK, Body, FilePiece, folder_files, package_body


def folder(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def test_of_a_folder_only_the_known_files_of_its_top_level_are_sent(tmp_path: Path) -> None:
    path = folder(
        tmp_path, "adapter_config.json", "adapter.safetensors", "README.md", "notes.txt", "optimizer.pt", "._adapter_config.json", "NEWS.md"
    )
    (path / "checkpoint-1").mkdir()
    (path / "checkpoint-1" / "adapter.safetensors").touch()
    assert [file.name for file in folder_files(path)] == ["README.md", "adapter.safetensors", "adapter_config.json"]


def setup_folder(tmp_path: Path, weights: str) -> Path:
    path = folder(tmp_path, "adapter_setup.json")
    for name in ("de", "a,b"):
        (path / name).mkdir()
        for file in ("adapter_config.json", weights, "notes.txt"):
            (path / name / file).write_bytes(b"x")
    (path / ".cache").mkdir()
    (path / ".cache" / "x.json").touch()
    return path


def test_of_a_setup_the_files_of_its_folders_are_sent_too(tmp_path: Path) -> None:
    path = setup_folder(tmp_path, "adapter.safetensors")
    body = package_body(path)
    data = b"".join(body.chunks())
    message = BytesParser().parsebytes(b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + data)
    names = [part.get_filename() for part in message.get_payload()]  # type: ignore[union-attr]
    inner = ["a,b/adapter.safetensors", "a,b/adapter_config.json", "de/adapter.safetensors", "de/adapter_config.json"]
    assert names == ["adapter_setup.json", *inner]


def test_a_setup_with_pickles_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="turret convert"):
        package_body(setup_folder(tmp_path, "pytorch_adapter.bin"))


@pytest.mark.parametrize("weights", ["pytorch_adapter.bin", "adapter.pt", "model.pth"])
def test_pickles_are_never_sent(tmp_path: Path, weights: str) -> None:
    path = folder(tmp_path, "adapter_config.json", weights)
    for chosen in (path, path / weights):
        with pytest.raises(InvalidArgument, match="pickle") as caught:
            package_body(chosen)
        assert f"`turret convert {path} FILE` (offline)" in caught.value.message


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("adapter_config.json",), ("adapter.safetensors",)])
def test_folders_without_an_adapter(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="holds no adapter"):
        package_body(folder(tmp_path, *names))


def test_paths_that_are_nothing_to_push(tmp_path: Path) -> None:
    (tmp_path / "adapter.zip").touch()
    for name, sentence in (("gone", "There is no file or folder"), ("adapter.zip", "is not a package")):
        with pytest.raises(InvalidArgument, match=sentence):
            package_body(tmp_path / name)


def test_a_folder_as_multipart(tmp_path: Path) -> None:
    path = folder(tmp_path, "adapter_config.json", 'we"ird\r\n.safetensors')
    body = package_body(path)
    data = b"".join(body.chunks())
    assert len(data) == body.size
    message = BytesParser().parsebytes(b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + data)
    parts = message.get_payload()
    assert isinstance(parts, list)
    assert [part.get_param("name", header="content-disposition") for part in parts] == ["files", "files"]  # type: ignore[union-attr]
    assert [part.get_filename() for part in parts] == ["adapter_config.json", "we%22ird%0D%0A.safetensors"]  # type: ignore[union-attr]
    assert parts[0].get_payload() == "adapter_config.json"  # type: ignore[union-attr]


@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 2 * CHUNK + 1)), max_size=4))
def test_bodies_can_be_read_again_and_report_their_progress(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes | int]) -> None:
    base = tmp_path_factory.mktemp("body")
    pieces: list[bytes | FilePiece] = []
    expected = b""
    for index, part in enumerate(parts):
        data = part if isinstance(part, bytes) else bytes([index]) * part
        expected += data
        if isinstance(part, int):
            (base / str(index)).write_bytes(data)
        pieces.append(part if isinstance(part, bytes) else FilePiece(base / str(index), part))
    body = Body("x/y", tuple(pieces))
    assert body.size == len(expected)
    seen: list[tuple[int, int]] = []

    async def read() -> bytes:
        return b"".join([chunk async for chunk in body.achunks(lambda done, total: seen.append((done, total)))])

    def read_blocking() -> bytes:
        return b"".join(body.chunks(lambda done, total: seen.append((done, total))))

    for reader in (read_blocking, functools.partial(anyio.run, read)):
        assert reader() == expected
        assert seen[0] == (0, len(expected))
        assert seen[-1] == (len(expected), len(expected))
        assert seen == sorted(seen)
        seen.clear()


@pytest.mark.parametrize("content", [b"shorter", b"longer than it was before"])
def test_a_file_that_changes_meanwhile(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"as it was chosen")
    body = package_body(file)
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match="changed while it was being sent"):
        b"".join(body.chunks())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    target.write_bytes(b"old")
    writer = AtomicFile(target)
    with writer:
        writer.write(b"half")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"t.safetensors": b"old"}
    with writer:
        writer.write(b"n")
        writer.write(b"ew")
        writer.commit()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"t.safetensors": b"new"}
    assert (writer.digest, writer.size) == (f"sha256:{hashlib.sha256(b'new').hexdigest()}", 3)


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is a folder"):
        AtomicFile(tmp_path)
    with pytest.raises(InvalidArgument, match="no folder"):
        AtomicFile(tmp_path / "gone" / "file")


def test_other_bytes_than_promised_leave_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Download(tmp_path / "p", lambda done, total: seen.append((done, total))) as download:
        download.start("sha256:" + "0" * 64, 4)
        download.write(b"data")
        with pytest.raises(DigestMismatch, match="nothing was written"):
            download.finish()
    assert list(tmp_path.iterdir()) == []
    assert seen == [(0, 4), (4, 4)]
