"""Commands as forks of a process that has imported what they import and done nothing else, one a session.

`Popen` and `run` take `python -m MODULE …` and `python -c CODE …` as `subprocess` does. What they start is a process
with a folder, an environment and output of its own, which runs MODULE or CODE as `__main__` and ends as an interpreter
does; it lacks an interpreter's start, the seconds of its imports and a seed of its own for the hashes of strings. Where
these, a shell or a terminal are part of what is tested, or a command is to be seen once as a user starts it,
`subprocess` starts it.
"""

import atexit
import gc
import importlib
import importlib.util
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
from contextlib import suppress

_IMPORTED = (
    "amcl_fast.pretraining.command", "amcl_fast.evaluate.command", "amcl_fast.report",
    "matplotlib.backends.backend_agg", "nvidia.dali.fn", "omegaconf", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
)  # fmt: skip
# What a library reads once, when it is imported or first used.
_READ_ONCE = (
    "OMP_NUM_THREADS", "TRITON_INTERPRET", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED",
    "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL",
)  # fmt: skip
_FORKS = "AMCL_FAST_TEST_FORKS"
_NUMBER = struct.Struct("i")


class Popen(subprocess.Popen):
    """As `subprocess.Popen`; a process that it has started may start others by it."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        *_, new_session, group = rest
        pipes = rest[3:9]
        python, *options = map(os.fspath, args)
        unbuffered = options[0] == "-u"
        how, what, *arguments = options[unbuffered:]
        if python != sys.executable or how not in ("-m", "-c") or executable or preexec_fn or pass_fds or group != -1:
            raise ValueError(f"a Python command alone can be a fork, got {args}")
        environment = sharing(os.environ if env is None else env)
        self._ended = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended.connect(f"{json.loads(environment[_FORKS])[0]}/socket")
        folder = os.path.abspath(cwd or ".")
        request = json.dumps([how, what, arguments, unbuffered, folder, environment, new_session]).encode()
        own = [fd if fd != -1 else usual for usual, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        socket.send_fds(self._ended, [request], own)
        (self.pid,) = _NUMBER.unpack(self._ended.recv(_NUMBER.size))
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags):
        self._ended.setblocking(not wait_flags & os.WNOHANG)
        try:
            return self.pid, *_NUMBER.unpack(self._ended.recv(_NUMBER.size))
        except BlockingIOError:
            return 0, 0

    def _internal_poll(self, *_, **__):
        with suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode


def run(command, timeout=None, **given):
    """As `subprocess.run`, which captures text."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def sharing(environment):
    """An environment in which whoever is started, by whatever means, starts forks of this session.

    Raises:
        ValueError: the session's commands have imported in another one.
    """
    now = {name: environment.get(name) for name in _READ_ONCE}
    if _FORKS not in os.environ:
        os.environ[_FORKS] = json.dumps([_start(environment), now])
    _, once = json.loads(os.environ[_FORKS])
    if now != once:
        raise ValueError(f"the session's first command had {once}, got {now}")
    return {**environment, _FORKS: os.environ[_FORKS]}


def _start(environment):
    folder = tempfile.mkdtemp(prefix="amcl-fast-forks-")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, folder], cwd=folder, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    atexit.register(process.communicate)  # it ends with its input
    told = process.stdout.readline()
    if told != b"ready\n":
        raise RuntimeError((told + process.stdout.read()).decode())
    return folder


def _request(folder):
    """Fork for all who ask; what is asked for, in the fork."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        listener.bind(f"{folder}/socket")
        listener.listen(16)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for ready, _ in selector.select():
                if ready.fileobj == 0:
                    shutil.rmtree(folder)
                    sys.exit()
                if ready.fileobj is not listener:
                    pid, asker = ready.data
                    with suppress(BrokenPipeError):
                        asker.send(_NUMBER.pack(os.waitpid(pid, 0)[1]))
                    asker.close()
                    selector.unregister(ready.fileobj)
                    os.close(ready.fileobj)
                    continue
                asker, _ = listener.accept()
                message, fds, *_ = socket.recv_fds(asker, 1 << 20, 3)
                pid = os.fork()
                if not pid:
                    asker.close()
                    for key in selector.get_map().values():
                        if key.data:
                            key.data[1].close()
                            os.close(key.fileobj)
                    signal.signal(signal.SIGINT, interrupt)
                    return json.loads(message), fds
                for fd in fds:
                    os.close(fd)
                asker.send(_NUMBER.pack(pid))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, asker))


def _become(how, what, arguments, unbuffered, folder, environment, new_session):
    """Do in this process what `python -m what` or `python -c what` does."""
    import numpy as np
    from lightning.fabric.utilities import rank_zero

    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)
        sys.stderr.reconfigure(write_through=True)
    np.random.seed()  # noqa: NPY002, that is what forks would share
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # read when Lightning is imported
    main = types.ModuleType("__main__")
    sys.path[0] = folder if how == "-m" else ""
    if how == "-m":
        main.__spec__ = importlib.util.find_spec(what)
        main.__file__, main.__package__ = main.__spec__.origin, main.__spec__.parent
        code = main.__spec__.loader.get_code(what)
        sys.argv = [main.__file__, *arguments]
    else:
        code = compile(what, "<string>", "exec")
        sys.argv = ["-c", *arguments]
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def _main():
    gc.disable()
    for name in _IMPORTED:
        importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"an import has started threads: {threads}"
    gc.freeze()  # else each fork copies all of it, when it first collects
    gc.enable()
    request, fds = _request(sys.argv[1])
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    _become(*request)


if __name__ == "__main__":
    _main()
