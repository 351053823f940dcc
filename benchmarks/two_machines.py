"""Trains on two simulated machines (network namespaces), and compares with two processes on one machine.

    python benchmarks/two_machines.py                # as root, with iproute2 and util-linux

Each namespace has its own host name, address and /etc/hosts, and is connected to the other one by a virtual cable only;
both see the disk with the run folder. The command is that of docs/distributed.md, for the CPU and a small run:

1. two processes of one machine;
2. one process on each of two machines: the weights must be those of 1;
3. as 2, but the second machine's training process is killed with SIGKILL at step 5 of 12: torchrun starts both again,
   and the weights must be those of 1;
4. as 2, but everything on the second machine is killed, and the same command is given there again;
5. as 2, but everything on the first machine, where the processes meet, is killed: the second one must end too, and
   ``--resume`` on both must continue the run.

Only private addresses are used, and the namespaces are removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from kills import tensors  # noqa: E402
from tiny import TINY  # noqa: E402

from mnv2det.engine.checkpoint import load_checkpoint  # noqa: E402

NAMES = ("node1", "node2")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
SPACES = tuple(f"mnv2det-{name}" for name in NAMES)
STEPS, KILL_AT = 12, 5
SETTINGS = [*TINY, "data.batch_size=2", "data.workers=0", "train.eval_every=0", f"train.steps={STEPS}"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def ip(*arguments: str) -> None:
    """Calls ``ip``."""
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def machines() -> Iterator[None]:
    """Two namespaces and the cable between them."""
    homes = [Path("/etc/netns") / space for space in SPACES]
    try:
        for space, home in zip(SPACES, homes, strict=True):
            ip("netns", "add", space)
            home.mkdir(parents=True)  # `ip netns exec` lays its files over /etc
            rows = zip(ADDRESSES, NAMES, strict=True)
            lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in rows)]
            (home / "hosts").write_text("\n".join([*lines, ""]))
        ip("link", "add", "eth0", "netns", SPACES[0], "type", "veth", "peer", "name", "eth0", "netns", SPACES[1])
        for space, address in zip(SPACES, ADDRESSES, strict=True):
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
        yield
    finally:
        for space, home in zip(SPACES, homes, strict=True):
            subprocess.run(["ip", "netns", "delete", space], check=False)
            shutil.rmtree(home, ignore_errors=True)


def start(number: int, run: Path, log: Path, *, resume: bool = False) -> subprocess.Popen[bytes]:
    """Gives the command on one of the machines."""
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NAMES[0]}:29500", "--rdzv-id", run.name]
    command += ["-m", "mnv2det", *(["train", "--resume", str(run), "--device", "cpu"] if resume else training(run))]
    inside = ["unshare", "--uts", "sh", "-c", f'hostname {NAMES[number]}; exec "$@"', "sh", *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", SPACES[number], *inside], cwd=ROOT, env=environment(), stdout=output, stderr=output
        )


def training(run: Path) -> list[str]:
    """The arguments of ``mnv2det`` that every process is given."""
    return ["train", str(ROOT / "configs" / "ssdlite_shapes.yaml"), *SETTINGS, "--device", "cpu", "--out", str(run)]


def environment() -> dict[str, str]:
    """The environment of the processes: one thread each, and a store that restarts can use."""
    # torch 2.14.1 shares a store that a torchrun which joins later never hears of: 60 seconds, then an error
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def workers(agent: int) -> list[int]:
    """Processes that a torchrun has started."""
    return [int(word) for word in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def reached(run: Path, step: int, agent: subprocess.Popen[bytes]) -> None:
    """Waits until a run has logged a step."""
    log, end = run / "metrics.jsonl", time.monotonic() + 300
    while not log.exists() or f'"step": {step},' not in log.read_text():
        if agent.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{run}: step {step} was not reached")
        time.sleep(0.01)


def kill_process(agents: list[subprocess.Popen[bytes]], run: Path, logs: list[Path]) -> None:
    """Kills the second machine's training process."""
    reached(run, KILL_AT, agents[0])
    for worker in workers(agents[1].pid):
        os.kill(worker, signal.SIGKILL)


def kill_machine(agent: subprocess.Popen[bytes]) -> None:
    """Kills everything that runs on a machine."""
    for process in [agent.pid, *workers(agent.pid)]:
        os.kill(process, signal.SIGKILL)
    agent.wait()


def kill_second(agents: list[subprocess.Popen[bytes]], run: Path, logs: list[Path]) -> None:
    """Kills the second machine and gives it the command once more."""
    reached(run, KILL_AT, agents[0])
    kill_machine(agents[1])
    agents[1] = start(1, run, logs[1])


def kill_first(agents: list[subprocess.Popen[bytes]], run: Path, logs: list[Path]) -> None:
    """Kills the first machine, sees the second one end, and resumes on both."""
    reached(run, KILL_AT, agents[0])
    kill_machine(agents[0])
    if agents[1].wait(timeout=60) == 0:
        raise SystemExit(f"{run}: the second machine did not notice")
    for number, log in enumerate(logs):
        agents[number] = start(number, run, log, resume=True)


def together(folder: Path, name: str, befall: Callable[..., None] | None = None) -> tuple[Path, float]:
    """Trains on both machines; returns the run folder and how many seconds it took."""
    run, logs, begun = folder / name, [folder / f"{name}.{node}.log" for node in NAMES], time.monotonic()
    agents = [start(number, run, log) for number, log in enumerate(logs)]
    try:
        if befall is not None:
            befall(agents, run, logs)
        for agent in agents:
            agent.wait(timeout=600)
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()
                agent.wait(timeout=60)
    if any(agent.returncode for agent in agents):
        told = "\n".join(log.read_text()[-3000:] for log in logs)
        raise SystemExit(f"{name}: exit codes {[agent.returncode for agent in agents]}\n{told}")
    return run, time.monotonic() - begun


def compared(one: Path, two: Path) -> str:
    """Says how far model, average and optimizer of two runs are from each other."""
    states: list[dict[str, Any]] = [dict(tensors(load_checkpoint(run / "last.pt"))) for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    pairs = [(states[0][place], states[1][place]) for place in states[0]]
    torch.testing.assert_close(*map(list, zip(*pairs, strict=True)), rtol=1e-4, atol=1e-5)
    same = sum(torch.equal(*pair) for pair in pairs)
    rest = "" if same == len(pairs) else ", the rest within 1e-4 relative, 1e-5 absolute"
    return f"{same} of {len(pairs)} tensors bit-identical{rest}"


def main() -> int:
    """Prints a line for each run; returns 0 if all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="new folder for runs and logs (default: none are kept)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.keep or Path(name)
        folder.mkdir(exist_ok=True)
        one = folder / "one"
        command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "mnv2det", *training(one)]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
        print(f"one machine, two processes: {STEPS} steps", flush=True)
        befalls = {"process": kill_process, "second_machine": kill_second, "first_machine": kill_first}
        cases = {"undisturbed": None, **{f"killed_{what}": befall for what, befall in befalls.items()}}
        for what, befall in cases.items():
            with machines():
                run, seconds = together(folder, what, befall)
            print(f"two machines, {what}: {seconds:.0f} s; {compared(one, run)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
