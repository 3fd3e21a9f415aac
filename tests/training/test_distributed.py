"""One run on several processes and nodes: the result of one process, whole or not there."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import make_tokenizer
from helpers.training import SOURCES, deterministic, make_cache, make_run, records, trained
from helpers.workflow import TINY, Workflow, kill, rows
from safetensors.torch import load_file

from tokencache.plan.plan import Plan

# In one worker, so that what the tests share is made once.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("distributed")]

RANK = """
import json, os, sys
from pathlib import Path
import transformers.trainer
from tokencache.training import run as train
for run, folder, port in json.loads(sys.argv[1]):
    if process := os.fork():
        if os.waitpid(process, 0)[1]:
            sys.exit(1)
        continue
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    train.train(run, Path(folder, "out"), Path(folder, ".out.checkpoints"))
    break
"""


def start(run, folder, processes):
    """A run on several processes of this machine, as torchrun starts them."""
    return start_each([(run, folder)], processes)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start_each(runs, processes):
    """Several runs, each with its folder, one after the other; it is the start that takes long."""
    for _, folder in runs:
        folder.mkdir(exist_ok=True)
    script = runs[0][1] / "rank.py"
    script.write_text(RANK)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(script),
        json.dumps([(run, str(folder), free_port()) for run, folder in runs]),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def log_of(process):
    log = process.communicate(timeout=200)[1]
    assert process.returncode == 0, log
    return log


def assert_nearly_equal(some, other, file="model.safetensors"):
    """Sums in another order differ in the last digits."""
    for name in ("loss", "validation_loss", "grad_norm", "learning_rate", "tokens", "documents"):
        found = [[r[name] for r in records(out) if name in r] for out in (some, other)]
        assert found[0] == pytest.approx(found[1], rel=1e-4), name
    assert [r["step"] for r in records(some)] == [r["step"] for r in records(other)]
    weights = [load_file(out / file) for out in (some, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
           "output_router_logits": True, "router_aux_loss_coef": 0.5}  # fmt: skip
SHARED = {
    # 45 rows are five steps of 8 and one of 5, which is 3 rows for one rank, 2 for the other.
    "rows": (False, {"per_device_train_batch_size": 8}),
    # A last step of one row, which only one rank has; batches of 1 and 2 rows.
    "accumulated": (
        False, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ),
    "packed": (True, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}),
    "checkpointing": (False, {"gradient_checkpointing": True, "max_steps": 3}),
    # Whole batches of about 64 tokens; an epoch's last step may have one for one rank alone.
    "tokens": (False, {"max_tokens": 64, "gradient_accumulation_steps": 2}),
    "packed-tokens": (
        True, {"max_tokens": 64, "gradient_accumulation_steps": 4, "dataloader_num_workers": 1},
    ),
    "by-length": (False, {"per_device_train_batch_size": 8, "group_by_length": True}),
    # The router loss is one of all tokens of a step.
    "experts": (False, {"per_device_train_batch_size": 8, "architecture": EXPERTS}),
}  # fmt: skip


def test_two_processes_are_as_good_as_one(tokenizer, tmp_path):
    caches = {p: make_cache(tmp_path / f"cache-{p}", packed=p, rows=45) for p in (False, True)}
    runs = {
        name: make_run(caches[packed], tokenizer, logging_steps=1, num_train_epochs=2, **settings)
        for name, (packed, settings) in SHARED.items()
    }
    log = log_of(start_each([(run, tmp_path / name) for name, run in runs.items()], 2))
    assert log.count("2 processes on 1 node") == len(runs)
    assert log.count("documents are kept apart") == 2
    for name, run in runs.items():
        assert_nearly_equal(tmp_path / name / "out", trained(run, tmp_path / f"{name}-alone"))


def killed_at_a_checkpoint(run, folder):
    """A run on two processes, all killed once, and what it says when it goes on."""
    process = start(run, folder, 2)
    only(folder, ".out.checkpoints/checkpoint-*")
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.communicate()
    assert not (folder / "out").exists()
    return log_of(start(run, folder, 2))


def test_two_processes_that_are_killed_go_on_to_the_same_bytes(tokenizer, tmp_path):
    cache = make_cache(tmp_path / "cache", rows=90)
    run = make_run(cache, tokenizer, None, {"attention_dropout": 0.1}, num_train_epochs=12,
                   max_tokens=64, gradient_accumulation_steps=2, save_steps=7)  # fmt: skip
    log_of(start(run, tmp_path / "undisturbed", 2))
    log = killed_at_a_checkpoint(run, tmp_path / "killed")
    assert "goes on from the checkpoint at step" in log
    outs = [deterministic(tmp_path / name / "out") for name in ("undisturbed", "killed")]
    assert outs[0] == outs[1]


def test_a_model_that_two_processes_share_is_as_one(tokenizer, tmp_path):
    """Tied embeddings, which no layer has, and an epoch whose last validation batch is odd."""
    cache = make_cache(tmp_path / "cache", packed=True, rows=90)
    architecture = {"tie_word_embeddings": True}
    run = make_run(cache, tokenizer, None, architecture, num_train_epochs=2, save_steps=7,
                   logging_steps=1, gradient_checkpointing=True, fsdp=True)  # fmt: skip
    log = log_of(start(run, tmp_path / "shared", 2))
    assert "each holds a part of the model (FSDP2)" in log
    assert "goes on from the checkpoint" in killed_at_a_checkpoint(run, tmp_path / "killed")
    outs = [tmp_path / name / "out" for name in ("shared", "killed")]
    assert deterministic(outs[0]) == deterministic(outs[1])
    # The folder is one process's: files, names in them, config.json.
    alone = trained(run, tmp_path / "alone")
    assert_nearly_equal(outs[0], alone)
    assert {file.name for file in outs[0].iterdir()} == {file.name for file in alone.iterdir()}
    assert (outs[0] / "config.json").read_bytes() == (alone / "config.json").read_bytes()


def test_a_second_copy_waits_with_all_its_processes(tokenizer, tmp_path):
    cache = make_cache(tmp_path / "cache")
    run = make_run(cache, tokenizer, max_steps=60, save_steps=2)
    copies = [start(run, tmp_path / "run", 2) for _ in range(2)]
    logs = sorted(map(log_of, copies), key=len)
    assert "trains this run already" in logs[0] and "another process made it" in logs[0]
    assert "step 60/60" in logs[1] and "goes on" not in logs[1]
    assert not list((tmp_path / "run").glob(".out.*"))


FAILS = """
import os, sys, torch
from tokencache.training import collectives, ranks
from tokencache.errors import UserError
try:
    with collectives.group():
        collectives.gathered(0)
        if ranks.rank() == 1 and sys.argv[1] == "ends":
            os._exit(0)
        if ranks.rank() == 0 and sys.argv[1] == "memory":
            raise torch.distributed.DistBackendError(
                "NCCL error: unhandled cuda error. Cuda failure 'out of memory' (net, socket)"
            )
        collectives.gathered(1)
except UserError as error:
    print("UserError:", error)
except RuntimeError as error:
    print("RuntimeError:", error)
"""


@pytest.mark.parametrize("way, answer", [
    ("ends", r"UserError: lost the connection to another rank, .* \(.*127.0.0.1.*\)\n"),
    ("memory", r"RuntimeError: NCCL error: .* 'out of memory'"),
])  # fmt: skip
def test_only_a_lost_rank_is_called_that(way, answer, tmp_path):
    (tmp_path / "rank.py").write_text(FAILS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(tmp_path / "rank.py"), way],
        env=os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert re.search(answer, done.stdout), done.stdout + done.stderr


CONFIG = {
    "models": {"one": {"tokenizer": "tokenizer", "architecture": TINY}},
    "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [32],
    "training": {
        "max_steps": 150,
        "per_device_train_batch_size": 4,
        "save_steps": 20,
        "processes_per_node": 2,
    },
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A workflow with its caches, and nothing trained."""
    folder = tmp_path_factory.mktemp("packed") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data.jsonl": rows(300)})
    workflow.run("caches")
    return workflow


@pytest.fixture(scope="module")
def undisturbed(packed, tmp_path_factory):
    """What two processes of this machine make of it."""
    workflow = packed.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    assert "2 processes on 1 node: of a step's 4 rows each takes 2" in workflow.run()
    return workflow.results()


@pytest.fixture
def workflow(packed, tmp_path):
    return packed.copy(tmp_path / "w")


def configure(workflow, **training):
    workflow.configure(CONFIG | {"training": CONFIG["training"] | training})


CHECKPOINT = "results/one/qa/.*.checkpoints/checkpoint-*"


def only(folder, pattern):
    """The one path that fits, waited for."""
    deadline = time.time() + 120
    while not (found := list(folder.glob(pattern))):
        assert time.time() < deadline, f"no {pattern}"
        time.sleep(0.01)
    return found[0]


def ranks_of(folder):
    """The training processes of a workflow's folder, by rank."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if process.cwd() == str(folder) and "TORCHELASTIC_RUN_ID" in environment:
                found[int(environment["RANK"])] = process
    return found


def test_a_rank_that_is_killed_or_told_to_stop_ends_the_run_which_then_goes_on(
    workflow, undisturbed
):
    process = workflow.start()
    only(workflow.folder, CHECKPOINT)
    ranks_of(workflow.folder)[1].kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "rank 1 was killed by SIGKILL" in said and "Traceback" not in said
    assert not ranks_of(workflow.folder) and not workflow.targets("results")
    process = workflow.start()
    first = int(only(workflow.folder, CHECKPOINT).name.partition("-")[2])
    only(workflow.folder, CHECKPOINT.replace("t-*", f"t-{first + 20}"))
    # As a scheduler does it: to the shell, what it started, and what takes its words.
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and not ranks_of(workflow.folder)
    told = re.search(r"stopped by SIGUSR1 after step (\d+) of 150, with a check", said)
    assert f"goes on from the checkpoint at step {told[1]}\n" in workflow.run()
    assert workflow.results() == undisturbed
    # The number of processes is no part of the result.
    configure(workflow, processes_per_node=1, save_steps=500)
    assert "1 cache and 1 run: all fresh" in workflow.run("-n")


def test_ranks_end_with_the_process_that_started_them(workflow):
    process = workflow.start()
    only(workflow.folder, CHECKPOINT)
    kill(process)
    psutil.wait_procs(ranks_of(workflow.folder).values(), timeout=10)
    assert not ranks_of(workflow.folder) and not workflow.targets("results")


def test_what_stops_every_rank_is_said_once(workflow):
    configure(workflow, learning_rate=1e30, max_grad_norm=0)
    workflow.run(fails=True)
    log = only(workflow.folder, "logs/train/one/qa/*.log").read_text()
    assert log.count("loss is nan") == 1 and "Traceback" not in log
    assert "rank 0 ended with status 1" in log


CORES = """
import os, sys
from tokencache import cli
os.sched_getaffinity = lambda _: range(6)  # more than most machines that run this test have
sys.exit(cli.main(sys.argv[1:]))
"""


def test_without_a_word_on_threads_the_ranks_share_the_cores(workflow):
    [plan] = workflow.folder.glob(".tokencache/plans/*.json")
    made = Plan.read(plan).data
    [(out, run)] = made["runs"].items()
    run["training"]["max_steps"] = 1
    plan.write_text(json.dumps(made))
    free = {n: v for n, v in os.environ.items() if not n.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", CORES, "train", "--plan", str(plan), out], cwd=workflow.folder,
        env=free | {"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # PyTorch takes no more than there are.
    script = "import torch; print(torch.get_num_threads())"
    most = subprocess.run([sys.executable, "-c", script], env=free | {"OMP_NUM_THREADS": "3"},
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    assert done.returncode == 0 and f", {most} threads, " in done.stderr, done.stderr


def test_several_nodes_need_slurm(workflow):
    configure(workflow, nodes=2, processes_per_node=1)
    assert "training.nodes: 2 nodes need a job of SLURM" in workflow.run(fails=True)
