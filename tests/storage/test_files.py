"""Reading text files and resolving globs."""

from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.storage.files import HOME, ensure_folder, locate, read_text, resolve


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_utf_8_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, bom: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(bom + "Grüße\r\n".encode())
    assert read_text(tmp_path / "a.txt") == "Grüße\r\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("Hi".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("Hi".encode("utf-16-be").join([b"\xfe\xff", b""]), "is UTF-16; save it as UTF-8"),
        (b"caf\xe9", "byte 3 is not UTF-8; save it as UTF-8"),
    ],
)
def test_another_encoding_is_refused_by_name(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_text(path)
    assert str(error.value) == f"{path}: {line}"


def test_a_file_that_cannot_be_read_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: Is a directory; must be a JSONL file$"):
        read_text(tmp_path, "must be a JSONL file")
    with pytest.raises(UserError, match=r"no\.txt: cannot be read: No such file or directory$"):
        read_text(tmp_path / "no.txt")


def test_a_pattern_names_files_here_or_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "[a].txt", "deep/c.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert resolve("*.txt") == [Path("[a].txt"), Path("a.txt"), Path("b.txt")]
    assert resolve("[a].txt") == [Path("[a].txt")]
    assert resolve("**/*.txt") == [Path(n) for n in ("[a].txt", "a.txt", "b.txt", "deep/c.txt")]
    assert resolve(tmp_path / "deep") == [tmp_path / "deep"]
    assert resolve("conf/format/ch*.yaml") == [
        HOME / "conf" / "format" / f"{n}.yaml" for n in ("chat", "chat_email", "chat_image")
    ]
    assert resolve("no/*.txt") == resolve("no.txt") == []


LONG = "a" * 300


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "~nobody-of-that-name/x",
            "there is no home folder ~nobody-of-that-name; write ./~nobody-of-that-name",
        ),
        (LONG, f"{LONG}: cannot be read: File name too long"),
        ("a\0b", None),
        ("loop", None),
        ("dangling", None),
    ],
)
def test_a_path_that_cannot_be_looked_up_is_one_line_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    if line is None:
        assert resolve(name) == [] and not locate(name).exists()
        return
    for look_up in (locate, resolve):
        with pytest.raises(UserError) as error:
            look_up(name)
        assert line in str(error.value)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert locate("~/a.txt") == tmp_path / "a.txt"
    assert resolve("~/*.txt") == [tmp_path / "a.txt"]


@pytest.mark.parametrize("name", ["loop", "dangling", "file", "link/file", LONG])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        ensure_folder(tmp_path / name / "runs")
