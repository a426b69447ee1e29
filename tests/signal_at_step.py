"""Run the command repeatedly, each time with a signal at a different step: ``python signal_at_step.py ARGUMENT...``.

For each line ``SIGNAL STEP MODE`` on standard input, run the command in a child process and send the signal before the
given step; in ``repeat`` mode, also before every later step. Write a line with the child's exit status (negative for a
signal) and the step's name (empty if there were fewer steps). A step is a Python audit event.
"""

import locale  # noqa: F401 - otherwise argparse would import it during the run
import os
import signal
import sys

from imagenet_aux import cli

STEPS = {
    *("open", "os.listdir", "os.scandir", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"),
    *("shutil.rmtree", "fcntl.flock", "time.sleep"),
}


def run(number: int, step: int, repeat: bool, report: int) -> None:
    """Run the command, send the signal at the step, and exit."""
    count = 0

    def send_signal(event: str, args: object) -> None:
        nonlocal count
        if event in STEPS:
            count += 1
            if count == step:
                os.write(report, event.encode())
            if count == step or (repeat and count > step):
                os.kill(os.getpid(), number)

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.addaudithook(send_signal)
    try:
        cli.run()
    except SystemExit as end:
        os._exit(int(end.code or 0))


if __name__ == "__main__":
    for line in sys.stdin:
        name, step, mode = line.split()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            run(signal.Signals[name], int(step), mode == "repeat", writer)
        status = os.waitpid(child, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        os.close(writer)
        print(code, os.read(reader, 99).decode(), flush=True)
        os.close(reader)
