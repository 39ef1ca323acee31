"""One training in a folder at a time, and no lock that outlives its process."""

import errno
import os
import signal

import pytest

from sdpo_cli.engine.disk import locking
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.locking import LOCK, is_locked, locked
from sdpo_cli.engine.training.run import resume
from sdpo_cli.errors import UsageError


@pytest.fixture
def elsewhere(tmp_path):
    """Another process that holds the lock of `tmp_path` until it is killed; gives its number."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with locked(tmp_path):
                os.write(tell, b"locked")
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 6) == b"locked"
        yield child
    finally:
        os.close(told)
        if is_locked(tmp_path):
            kill(child)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def refusal(folder, number: int) -> str:
    return f"{folder}: is in use by process {number}; wait until it ends, or stop it"


def test_the_lock_of_another_process_is_refused_and_dies_with_it(tmp_path, elsewhere):
    with pytest.raises(UsageError) as fault, locked(tmp_path):
        pass
    assert str(fault.value) == refusal(tmp_path, elsewhere)
    assert is_locked(tmp_path)
    kill(elsewhere)
    assert (tmp_path / LOCK).exists()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_run_in_use_is_not_resumed(tmp_path, elsewhere):
    with pytest.raises(UsageError) as fault:
        next(resume(RunFolder(tmp_path), []))
    assert str(fault.value) == refusal(tmp_path, elsewhere)


def test_the_same_process_is_refused_too(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError) as fault, locked(tmp_path):
        pass
    assert str(fault.value) == refusal(tmp_path, os.getpid())


def test_a_lock_that_its_holder_removes_is_not_taken(tmp_path, monkeypatch):
    """Two processes that have opened the same file, which is removed before the second locks it: it tries again."""
    removed = []

    def acquire_late(handle: int) -> bool:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        return acquire(handle)

    acquire = locking.acquire
    monkeypatch.setattr(locking, "acquire", acquire_late)
    with locked(tmp_path):
        assert is_locked(tmp_path)


def test_a_holder_on_another_machine_is_named_with_it(tmp_path):
    (tmp_path / LOCK).write_text("17 elsewhere.example\n")
    assert locking.holder(tmp_path / LOCK) == "process 17 on elsewhere.example"
    (tmp_path / LOCK).write_text("")
    assert locking.holder(tmp_path / LOCK) == "another process"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_nothing_is_said(tmp_path, monkeypatch, number):
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    with locked(tmp_path), locked(tmp_path):
        assert not is_locked(tmp_path)
