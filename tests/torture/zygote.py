"""Forks training processes from one that has done all imports: each is a real process, without eight seconds of start.

Requests on stdin, a line of JSON each: {"id", "argv", "env", "log", "cwd"}; answers on stdout: {"id", "pid"} when forked
and {"id", "status"} when over, negative for a signal. Nothing is computed here before the fork, so no thread is lost.
"""

import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from scaleearth_pl.cli import collector_at_rest  # noqa: E402

with collector_at_rest():
    import child
    import torch.distributed.checkpoint.state_dict  # noqa: F401
    import transformers.models.qwen3_vl.modeling_qwen3_vl  # noqa: F401

    import scaleearth_pl.data.datamodule
    import scaleearth_pl.training.callbacks.stop_signals
    import scaleearth_pl.training.command
    import scaleearth_pl.training.stage1
    import scaleearth_pl.training.stage2  # noqa: F401
    from scaleearth_pl.model.backbone import import_bitsandbytes

    import_bitsandbytes()


def run(request: dict) -> None:
    """In the child: becomes the process that was asked for; never returns."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [str(Path(__file__).with_name("child.py")), *request["argv"]]
    status = 1
    try:
        status = child.main()
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # What Python does at exit, waiting for loader workers included.
        import atexit
        import multiprocessing.util

        multiprocessing.util._exit_function()
        atexit._run_exitfuncs()
        os._exit(status)


def answer(row: dict) -> None:
    os.write(3, (json.dumps(row) + "\n").encode())


def main() -> None:
    """Serves until stdin closes, then kills what is left."""
    os.dup2(1, 3)
    os.dup2(2, 1)
    running: dict[int, int] = {}
    waiting = b""
    answer({"id": -1, "pid": os.getpid()})
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            waiting += data
            *lines, waiting = waiting.split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    run(request)
                running[pid] = request["id"]
                answer({"id": request["id"], "pid": pid})
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                answer({"id": running.pop(pid), "status": os.waitstatus_to_exitcode(status)})
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # nothing to tidy, and with these libraries an orderly end takes seconds


if __name__ == "__main__":
    main()
