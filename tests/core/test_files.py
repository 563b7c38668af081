"""Durable files: what a kill, a full disk or a damaged byte leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lightningrun.errors import DiskFull, Locked, UsageError
from lightningrun.files import (
    Journal,
    RunLock,
    canonical_json,
    commit_folder,
    digest,
    inside,
    read_journal,
    safe_name,
    verify_folder,
    write_atomic,
)


def spawn(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    records = [{}, {"a": 1}, {"text": "naïve \n \u2028 \x00", "nested": [{"x": None}]}]
    offsets = [journal.append(record) for record in records]
    assert [journal.read(offset) for offset in offsets] == records
    assert [(offset, record) for offset, record in read_journal(tmp_path / "j")] == list(
        zip(offsets, records, strict=True)
    )
    for line in (tmp_path / "j").read_text().rstrip("\n").split("\n"):
        json.loads(line)  # each line is JSON for any other tool too


def test_lone_surrogates_do_not_break_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"a": "x\ud800y"})
    journal.append({"a": "after"})
    journal.close()
    assert len(list(read_journal(tmp_path / "j"))) == 2


def test_kill_9_while_appending_loses_at_most_the_record_in_flight(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lightningrun.files import Journal
        journal = Journal(Path(sys.argv[1]))
        for n in range(10**9):
            journal.append({"n": n, "text": "x" * (n % 5000)})
            if n % 100 == 0:
                print(n, flush=True)
    """
    for round_ in range(4):
        path = tmp_path / f"journal-{round_}"
        writer = spawn(code, str(path))
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(1 + 3 * round_)]
        time.sleep(0.003 * round_)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        journal = Journal(path)
        numbers = [record["n"] for _, record in read_journal(path)]
        assert numbers == list(range(len(numbers)))
        assert numbers[-1] >= said[-1]
        assert journal.damaged is None
        journal.append({"n": "next"})
        assert list(read_journal(path))[-1][1] == {"n": "next"}


def test_torn_end_is_cut_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    for n in range(3):
        journal.append({"n": n})
    journal.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        reopened = Journal(path)
        assert [r["n"] for _, r in read_journal(path)] == [0, 1]
        assert reopened.damaged is None
        reopened.close()


def test_a_flipped_byte_in_the_middle_is_set_aside_and_said(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    for n in range(5):
        journal.append({"n": n})
    journal.close()
    data = bytearray(path.read_bytes())
    data[data.index(b'"n":2') + 4] ^= 1
    path.write_bytes(bytes(data))
    reopened = Journal(path)
    assert reopened.damaged is not None and reopened.damaged.name == "j.corrupt-1"
    assert reopened.damaged.read_bytes() == bytes(data)
    assert [r["n"] for _, r in read_journal(path)] == [0, 1]


def test_a_full_disk_raises_disk_full_and_keeps_what_was_written(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from lightningrun.errors import DiskFull
        from lightningrun.files import Journal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        journal, n = Journal(Path(sys.argv[1])), 0
        try:
            while True:
                journal.append({"n": n})
                n += 1
        except DiskFull as error:
            print(n, int(error.exit_code), error.where)
    """
    for limit in (300, 301, 317, 333):
        path = tmp_path / f"j-{limit}"
        done = spawn(code, str(path), str(limit))
        out, _ = done.communicate()
        written, exit_code, where = out.decode().split()
        assert exit_code == "74" and where == str(path)
        assert [r["n"] for _, r in read_journal(path)] == list(range(int(written)))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_masking_reaches_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", mask=lambda text: text.replace("hunter2hunter2", "***"))
    offset = journal.append({"header": "Bearer hunter2hunter2"})
    assert journal.read(offset) == {"header": "Bearer ***"}
    assert b"hunter2" not in (tmp_path / "j").read_bytes()


def test_write_atomic_is_old_or_new_under_kill(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lightningrun.files import write_atomic
        path = Path(sys.argv[1])
        print("go", flush=True)
        for n in range(10**9):
            write_atomic(path, str(n % 10) * 20000)
    """
    path = tmp_path / "state.json"
    write_atomic(path, "0" * 20000)
    for round_ in range(6):
        writer = spawn(code, str(path))
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.01 * round_)
        writer.kill()
        writer.wait()
        text = path.read_text()
        assert len(text) == 20000 and len(set(text)) == 1


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        write_atomic(target, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_committed_folder_verifies_until_anything_changes(tmp_path: Path) -> None:
    built = tmp_path / "built"
    (built / "prompts").mkdir(parents=True)
    (built / "prompts" / "system.md").write_text("hello")
    final = tmp_path / "cache" / "k"
    commit_folder(built, final, {"key": "k"})
    assert not built.exists()
    manifest = verify_folder(final)
    assert manifest is not None and manifest["key"] == "k"
    (final / "prompts" / "system.md").write_text("hellO")
    assert verify_folder(final) is None
    (final / "prompts" / "system.md").unlink()
    assert verify_folder(final) is None
    assert verify_folder(tmp_path / "nothing") is None


def test_a_damaged_commit_is_set_aside_and_replaced(tmp_path: Path) -> None:
    final = tmp_path / "k"
    for text in ("one", "two"):
        built = tmp_path / "built"
        built.mkdir()
        (built / "a").write_text(text)
        commit_folder(built, final, {})
        if text == "one":
            (final / "a").write_text("damaged")
    assert (final / "a").read_text() == "two"
    assert (tmp_path / "k.corrupt-1" / "a").read_text() == "damaged"


def test_a_manifest_that_names_a_file_outside_does_not_verify(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "k"
    folder.mkdir()
    sha = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    (folder / "manifest.json").write_text(json.dumps({"files": {"../secret": sha}}))
    assert verify_folder(folder) is None


def test_second_locker_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(Locked) as caught:
        RunLock(tmp_path)
    assert caught.value.exit_code == 75 and str(os.getpid()) in str(caught.value)
    lock.release()
    RunLock(tmp_path).release()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = spawn(
        """
        import sys, time
        from pathlib import Path
        from lightningrun.files import RunLock
        lock = RunLock(Path(sys.argv[1]))
        print("held", flush=True)
        time.sleep(60)
        """,
        str(tmp_path),
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(Locked):
        RunLock(tmp_path)
    holder.kill()
    holder.wait()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "a/b", ".hidden", "a\nb", "x" * 200, "a\0b"])
def test_names_that_are_not_file_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        safe_name(name, "run name")


def test_paths_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    for name in ("../x", "/etc/passwd", "link/passwd", "a/../../x"):
        with pytest.raises(UsageError):
            inside(tmp_path, name)
    assert inside(tmp_path, "a/b") == (tmp_path / "a" / "b").resolve()


def test_digest_ignores_key_order_and_nothing_else() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert canonical_json({"é": 1}) == '{"é":1}'


def test_disk_full_is_exit_74() -> None:
    assert DiskFull.exit_code == 74
