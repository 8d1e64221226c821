"""Runs scripts in subprocesses without repeating imports, which take eight seconds.

One server process per test worker imports the library without using it, and forks for each script.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def run_script(script: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run([python, script, *words], capture_output=True, text=True)`."""
    server = started()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        argv = [str(word) for word in (script, *words)]
        request = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(argv, code, out.read_text(), err.read_text())


@cache
def started() -> subprocess.Popen[str]:
    """The server process; it ends with this process, when its pipe is closed."""
    command = [sys.executable, __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    import nextembed.cli
    import nextembed.recipes  # noqa: F401  and with it all that runs use

    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(request)
            runpy.run_path(request["argv"][0], run_name="__main__")
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(request: dict) -> None:
    """Changes this process to the state of a newly started script."""
    files = {0: (os.devnull, os.O_RDONLY), 1: (request["out"], os.O_CREAT | os.O_WRONLY),
             2: (request["err"], os.O_CREAT | os.O_WRONLY)}  # fmt: skip
    for number, (name, flags) in files.items():
        os.dup2(os.open(name, flags), number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    serve()
