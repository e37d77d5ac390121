"""Runs in processes of their own, forked from one that has imported all they need, so that a test can end many of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent


class Forks:
    """The process that a script of the tests is, which `serve`s orders: runs of its own, one after the other."""

    def __init__(self, parent):
        self._parent = parent

    def start(self, *order):
        """The id of the process that has begun to do this."""
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def code(self):
        """Of the process that was started last, once it has ended."""
        return int(self._parent.stdout.readline())

    def stop(self, child, reached, delay, send=signal.SIGKILL):
        """Its exit code; it is sent a signal `delay` seconds behind the moment when `reached` first says so."""
        alive = Path(f"/proc/{child}/fd")
        while not reached() and alive.exists():
            time.sleep(0.002)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, send)
        return self.code()


@contextlib.contextmanager
def forks_of(script):
    with subprocess.Popen(
        [sys.executable, str(TESTS / script)],
        cwd=TESTS, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        yield Forks(parent)
        parent.stdin.close()


def serve(run):
    """What such a script does: `run(*order)`, which gives an exit code, in a child for each order on stdin."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(run(*json.loads(line)))
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201
