"""A run of several processes: torchrun on each node, and srun where there are several nodes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from ..base import limits, signals
from ..errors import UserError
from ..training import ranks
from . import images, slurm

PATIENCE = 300  # seconds in which all nodes must have started their processes
# As `torchrun --standalone`, which is not told the name that a machine may not resolve.
STANDALONE = [
    "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=standalone",
    "--local-addr=localhost",
]  # fmt: skip

SAME_SECONDS = 5  # in which ranks that end by themselves do so, all for one reason


@dataclass(frozen=True)
class Call:
    """A call of `tokencache train` for a run of several processes.

    threads: of each node, 0 for as many as it has. within: what is put before the
    command on each node, such as `apptainer exec IMAGE`, or "". rendezvous: HOST:PORT
    where the nodes meet, or None before they are started.
    """

    plan: str
    target: str
    threads: int
    within: str
    rendezvous: str | None
    nodes: int
    processes: int

    def words(self, threads: int) -> list[str]:
        return ["train", "--plan", self.plan, "--threads", str(threads), self.target]


def start(call: Call) -> None:
    """Start the run's processes and wait for their end.

    Called once for the run, and for several nodes by srun once more on each of them.
    Raises UserError where a process fails, after all others have ended too.
    """
    if call.nodes == 1:
        _torchrun(call, STANDALONE)
    elif call.rendezvous is None:
        _srun(call)
    elif call.within:
        _enter(call)
    else:
        _torchrun(call, _meeting(call.nodes, call.rendezvous))


def _srun(call: Call) -> None:
    """One process on each node of this SLURM job, which starts the others there."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("srun") is None:
        raise UserError(
            f"training.nodes: {call.nodes} nodes need a job of SLURM, as `snakemake --profile "
            "slurm` submits it; here set nodes: 1, which gives the same result"
        )
    head = _field(["scontrol", "show", "job", "--oneliner", job], "BatchHost")
    address = _field(["scontrol", "show", "node", "--oneliner", head], "NodeAddr")
    command = [
        "srun", f"--nodes={call.nodes}", f"--ntasks={call.nodes}", "--ntasks-per-node=1",
        *([f"--cpus-per-task={call.threads}"] if call.threads else []),
        "--kill-on-bad-exit=1", "--wait=0", "--mpi=none",
        sys.executable, "-P", "-m", "tokencache", *call.words(call.threads),
        "--rendezvous", f"{address}:{_free_port()}",
    ]  # fmt: skip
    if call.within:
        command += ["--within", call.within]
    with signals.left_to_others():  # SLURM sends them to the ranks, for which srun waits
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if status:
        raise UserError(f"a node failed (srun ended with status {status}); what it said is above")


def _field(command: list[str], name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(rf"\b{name}=(\S+)", done.stdout)
    if found is None:
        raise UserError(f"`{shlex.join(command)}` says no {name}: {done.stdout}{done.stderr}")
    return found[1]


def _free_port() -> int:
    # The batch script of a job runs on its first node, where the others will look for it.
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]


def _enter(call: Call) -> None:
    """Go on in the container, with the environment that is this node's."""
    os.environ.update(images.node_environment())
    for name in images.NO_NETWORK:  # these ranks talk to those of other nodes
        os.environ.pop(name, None)
    command = [*shlex.split(call.within), "tokencache", *call.words(call.threads)]
    command += ["--rendezvous", call.rendezvous]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise UserError(f"{command[0]} can't be started: {error.strerror}") from None


def _meeting(nodes: int, rendezvous: str) -> list[str]:
    """torchrun's words for this node, one of several in a SLURM job."""
    host, _, port = rendezvous.rpartition(":")
    is_host = os.environ["SLURM_NODEID"] == "0"
    # Named, because a machine's own name may be known to itself alone.
    own = host if is_host else _address_towards(host, int(port))
    conf = f"is_host={int(is_host)},read_timeout={PATIENCE},join_timeout={PATIENCE}"
    return [
        f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}",
        f"--rdzv-id={os.environ['SLURM_JOB_ID']}", f"--rdzv-conf={conf}", f"--local-addr={own}",
    ]  # fmt: skip


def _address_towards(host: str, port: int) -> str:
    """The address of this machine in the network that leads to `host`."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as some:
        some.connect(address)  # of datagrams: nothing is sent
        return some.getsockname()[0]


def _torchrun(call: Call, words: list[str]) -> None:
    """What the command `torchrun` does, with a message of ours where a process fails."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    logging.disable()
    chosen = limits.settings()
    threads = max(1, chosen.workers.amount // call.processes)
    own = chosen.openmp.amount if chosen.openmp.by == limits.OPENMP else threads
    for name in (limits.OPENMP, "MKL_NUM_THREADS"):
        os.environ[name] = str(own)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # What stops the run goes to all processes, which get the time to write a checkpoint.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGUSR1,SIGINT,SIGHUP,SIGQUIT"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(slurm.WARNING_SECONDS))
    os.environ["PYTHONSAFEPATH"] = "1"  # the folder of the experiment holds no modules
    words = [*words, f"--nproc-per-node={call.processes}", "-m", "tokencache", *call.words(threads)]
    config, command, arguments = config_from_args(parse_args(words))
    try:
        elastic_launch(config, command)(*arguments)
    except ChildFailedError as error:
        raise UserError(_ends(error.failures)) from None
    except RendezvousError as error:
        raise UserError(
            f"{ranks.machine()} can't reach the other nodes at {call.rendezvous}, or the first one "
            f"has ended ({error})"
        ) from None
    except SignalException as error:
        if os.path.exists(call.target):
            return  # it came after the last step
        sys.exit(128 + error.sigval)


def _ends(failures: dict[int, Any]) -> str:
    stopped = -signal.SIGTERM  # by torchrun, because of another one
    first = min(failure.timestamp for failure in failures.values())
    # One that waits for another in a kernel hears nothing, and is killed half a minute later.
    own = {
        n: failure
        for n, failure in failures.items()
        if failure.exitcode not in (stopped, 128 - stopped)
        and failure.timestamp - first < SAME_SECONDS
    }
    said = []
    for rank, failure in sorted((own or failures).items()):
        how = f"ended with status {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"was killed by {failure.signal_name()}"
        said.append(f"rank {rank} {how}")
    return (
        f"{' and '.join(said)} on {ranks.machine()}, so all ranks were stopped; what they "
        "said is above. Started again, the run goes on from its last checkpoint"
    )
