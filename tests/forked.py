"""Child processes that are copies of this one.

A fresh process needs ten seconds for its imports before it does anything, and a copy has them done.
What is not about starting (killed runs, ranks that differ) is tested in copies; that the commands
themselves start, alone and under torchrun, is tested in fresh processes.
"""

import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """What children left: the first exit code that is not 0 (of a signal: minus its number), and
    what they said.
    """

    returncode: int
    stdout: str
    stderr: str


def forked(script, *arguments, processes=1, timeout_s=120, cwd=None, home=None):
    """Run a script, or the module behind "-m", in copies of this process, as ranks of one run if
    there are several.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        ranks = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                os.environ.update({} if home is None else {"HOME": str(home)})
                os.chdir(cwd or ".")
                _be(Path(folder), rank, processes, port, command)
            ranks.append(child)
        codes = _wait(ranks, timeout_s)
        said = [
            "".join(Path(folder, f"{rank}.{kind}").read_text() for rank in range(processes))
            for kind in ("out", "err")
        ]
    return Ended(next((code for code in codes if code), 0), *said)


def load_deepspeed():
    """Import here what DeepSpeed imports when it is first used; every copy would do it anew, for
    five seconds.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    names = ("checkpoint.ds_to_universal", "runtime.zero.stage3", "runtime.zero.stage_1_and_2")
    for name in (*names, "runtime.zero.muon.muon_optimizer"):
        importlib.import_module(f"deepspeed.{name}")
    gc.collect()
    gc.freeze()  # as in conftest.py


def _wait(ranks, timeout_s):
    """Exit codes; who has not ended in time is killed."""
    codes = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(ranks):
        for child in set(ranks) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    return [codes[child] for child in ranks]


def _be(folder, rank, processes, port, command):
    """Become a rank; never returns."""
    code = 1
    try:
        for number, kind in ((1, "out"), (2, "err")):
            place = os.open(folder / f"{rank}.{kind}", os.O_CREAT | os.O_WRONLY)
            os.dup2(place, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for good
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - for good
        if processes > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        _forget_engines()
        code = _run(command)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - shown as a fresh process would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command):
    module = command[0] == "-m"
    sys.argv = command[1:] if module else command
    if module:
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")
    return 0


def _forget_engines():
    """What an earlier run of this process left in accelerate, which would not look at the ranks."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def _free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
