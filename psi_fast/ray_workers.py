"""The workers of a Ray cluster, on this machine or on many: parts go to whoever is free, and again where a worker is lost."""

import functools
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from psi_fast.environment import pick_device
from psi_fast.errors import ConfigError, PsiFastError
from psi_fast.networks.network import require
from psi_fast.store import code_fingerprint
from psi_fast.workers import Result

RETRIES = 10
"""Times that a part is given to another worker after the one that had it was lost."""
ANSWER = 10.0
"""Seconds that a cluster's address may take to answer."""
INSTEAD = "start one there (ray start --head), give the address that it told, or leave --ray-address out"
_held: dict[str, Any] = {}
"""Of a worker: the last `shared` it was given, opened."""


class RayWorkers:
    """Workers of a Ray cluster; use as a context, which ends one that was started here.

    On a CPU a worker takes as many threads as this process, since the last bits of a network's activations depend on
    their number, and claims as many CPUs; with device cuda it claims a GPU.

    Parameters
    ----------
    address : str, optional
        Of a running cluster, "auto" for the one that this machine is part of; None starts one on this machine.
    workers : int, optional
        Parts that are worked on at once, at least 1; None is as many as the cluster has room for.
    device : {"auto", "cpu", "cuda"}
        As `psi_fast.score` takes it.

    Raises
    ------
    ConfigError
        There is no such cluster, it has no room for a worker, or this process has joined another one.
    ModelError
        The package ray is missing.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, device: str = "auto") -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"--ray-workers must be at least 1, got {workers}")
        self._ray = require("ray", "psi-fast[ray]", "--ray")
        self._threads = torch.get_num_threads()
        self._gpus = int(pick_device(device).type == "cuda")
        threads = (
            f"{self._threads} CPU{'s' * (self._threads > 1)}, as many as this process has threads (OMP_NUM_THREADS)"
        )
        self.claim = "a GPU" if self._gpus else threads
        self._own = not self._ray.is_initialized()
        if self._own:
            with _same_answer_to_sigterm():
                self._begin(address, workers)
        elif address is not None:
            raise ConfigError(f"this process has joined a Ray cluster already, and cannot join {address}; leave it out")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        each = ("GPU", 1) if self._gpus else ("CPU", self._threads)
        fitting = sum(int(node.get(each[0], 0)) // each[1] for node in nodes)  # a part cannot take CPUs of two machines
        if fitting < 1:
            self.close()
            raise ConfigError(
                f"a worker claims {self.claim}, and no machine of the Ray cluster has room for that; give it more, or fewer "
                "threads"
            )
        self.count = min(workers or fitting, fitting)
        # where the cluster's room is the limit, one that waits for each that is worked on
        self._given = self.count if self.count < fitting else 2 * self.count
        claims = {"num_cpus": 0 if self._gpus else self._threads, "num_gpus": self._gpus}
        self._run = self._ray.remote(max_retries=RETRIES, max_calls=0, **claims)(_run)

    def _begin(self, address: str | None, workers: int | None) -> None:
        """Join the cluster, or start one whose CPUs are as many as the workers claim."""
        if address is not None:
            _require_answer(address)
        given: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "error"}
        if address is None:
            given["include_dashboard"] = False
            if workers is not None and not self._gpus:
                given["num_cpus"] = workers * self._threads
        try:
            self._ray.init(**given)
        except Exception as error:  # whatever Ray finds wrong
            said = " ".join(str(error).split())
            raise ConfigError(
                f"cannot reach a Ray cluster at {address or 'this machine'}: {said}; {INSTEAD}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a cluster that was started here, or leave one that was joined."""
        if self._own:
            self._ray.shutdown()

    def own(self, stage: str, number: int) -> bool:
        """See `Workers`."""
        return True

    def results(
        self, work: Callable[..., Result], tasks: Mapping[int, tuple[Any, ...]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        """See `Workers`.

        Raises
        ------
        PsiFastError
            What a part raised; or workers were lost over one part again and again.
        """
        ray = self._ray
        # nested, so that it is not opened anew for each part
        given = None if shared is None or not tasks else [self._sent(shared)]
        left = list(tasks.items())
        running: dict[Any, int] = {}
        try:
            while left or running:
                while left and len(running) < self._given:
                    number, task = left.pop(0)
                    running[self._run.remote(work, self._threads, sys.path, _code(), given, *task)] = number
                (done,), _ = ray.wait(list(running))
                number = running.pop(done)
                yield number, self._result(done, number)
        finally:
            for part in running:
                ray.cancel(part, force=True)

    def _sent(self, shared: Any) -> Any:
        try:
            return self._ray.put(shared)
        except Exception as error:  # whatever a user's objects raise when they are packed
            said = " ".join(str(error).split())
            raise PsiFastError(
                f"network, images or encoder cannot be sent to workers: {said[:300]}; give them by name, as the command "
                "takes them"
            ) from error

    def _result(self, done: Any, number: int) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            said = " ".join(str(error).split())
            raise PsiFastError(
                f"workers were lost {RETRIES + 1} times over part {number}: {said[:300]}; look at Ray's log, and give workers "
                "more memory or a smaller batch_size"
            ) from error


def _require_answer(address: str) -> None:
    """See that something answers at HOST:PORT: Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():  # auto, or one of Ray's other ways to say it
        return
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot reach a Ray cluster at {address}: {error}; {INSTEAD}") from error


@contextmanager
def _same_answer_to_sigterm() -> Generator[None]:
    """Ray answers SIGTERM in its own way from when it begins; within, the answer there was is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@functools.cache
def _code() -> str:
    return code_fingerprint()


def _run(
    work: Callable[..., Any], threads: int, paths: list[str], code: str, given: list[Any] | None, *task: Any
) -> Any:
    """A part, in a worker, which finds the modules that the sender finds."""
    sys.path += [path for path in paths if path not in sys.path]
    if code != _code():
        raise PsiFastError(
            "a worker of the Ray cluster has another psi_fast than this process; install the same version on all machines"
        )
    torch.set_num_threads(threads)
    if given is None:
        return work(*task)
    import ray

    (reference,) = given
    name = reference.hex()
    if name not in _held:
        _held.clear()  # of another run: its weights would stay
        _held[name] = ray.get(reference)
    return work(_held[name], *task)
