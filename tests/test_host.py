"""What both sides do to their machine: whole files, one writer for a folder, printable text, pauses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import every_crash

from sl_common.errors import ConfigError
from sl_common.host.backoff import Backoff
from sl_common.host.files import create_atomically, make_folder, remove_parts, write_atomically
from sl_common.host.locks import sole_writer
from sl_common.host.text import MAX_LINES, given, printable, printable_lines
from sl_common.names import is_name


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_links_laid_out_beforehand_are_not_followed(tmp_path: Path) -> None:
    """Neither a link under the final name nor one under the old, foreseeable part's name."""
    (tmp_path / "victim").write_bytes(b"precious")
    for name in ("one", "one.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "one", b"data")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "one").read_bytes() == b"data"
    assert not (tmp_path / "one").is_symlink()


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_name_that_is_there(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a file system without hard links, and where the name is a link that leads nowhere."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links here")))
    create_atomically(tmp_path / "one", b"first", mode=0o600)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("one", "link"):
        with pytest.raises(FileExistsError) as raised:
            create_atomically(tmp_path / name, b"second")
        assert raised.value.filename == str(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == b"first"
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "one"]


def test_a_file_is_the_old_or_the_new_one_at_any_crash(tmp_path: Path) -> None:
    """And what a killed writer left is no file of that name."""
    path = tmp_path / "one"

    def begin_again() -> None:
        remove_parts(tmp_path)
        path.write_bytes(b"old")

    seen = [path.read_bytes() for _ in every_crash(lambda: write_atomically(path, b"new"), begin_again)]
    assert seen == [b"old", b"old", b"new"], "before the file's fsync, before the rename, before the folder's fsync"


def test_permissions_are_asked_for_at_creation(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


HOLD = """
import sys
from pathlib import Path
from sl_common.host.locks import sole_writer
with sole_writer(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"--out .*in use by process {holder.pid} on "),
            sole_writer(tmp_path, "--out"),
        ):
            pass
        holder.kill()  # the lock ends with its process
        holder.wait()
        with sole_writer(tmp_path, "--out"):
            assert str(os.getpid()) in (tmp_path / ".lock.holder").read_text()
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü →", "plain ü →"), ("a\x1b[31mred\nb", "a [31mred b"), ("\u202egnp", " gnp"), ("x\x9b31m\0", "x 31m ")],
)
def test_what_is_shown_holds_no_control_character(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_long_text_is_cut_and_says_so() -> None:
    assert printable("x" * 20, most=10) == "x" * 9 + "…"
    assert printable("x" * 10, most=10) == "x" * 10


BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of text


@pytest.mark.parametrize(
    "one", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *BIDI, "\u2028", "\u2029", "\ud800"]
)
def test_no_name_and_no_line_holds_a_character_that_moves_others(one: str) -> None:
    assert printable(f"a{one}b") == "a b"
    assert not is_name(f"a{one}b")


def test_a_text_of_several_lines_keeps_newlines_and_no_other_control_character() -> None:
    assert printable_lines("a\x1b[2J\r\nb\x9b") == "a [2J \nb "
    assert printable_lines("\n" * 10_000).endswith("… and 9801 more lines")
    assert printable_lines("\n" * 10_000).count("\n") == MAX_LINES


def test_pauses_grow_are_jittered_and_bounded() -> None:
    backoff = Backoff(0.1, 1.0)
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    for longest in bounds:
        assert backoff.next_s == pytest.approx(longest)
        assert longest / 2 <= backoff.pause_s() <= longest
    backoff.reset()
    assert backoff.next_s == 0.1


def test_a_name_of_the_command_line_is_utf_8_where_the_locale_is_ascii() -> None:
    assert given("--id", "Gerät") == "Gerät"
    assert given("--id", "Gerät".encode().decode("ascii", "surrogateescape")) == "Gerät"
    with pytest.raises(ConfigError, match=r"--id 'Ger t': not UTF-8"):
        given("--id", "Gerät".encode("latin-1").decode("ascii", "surrogateescape"))
