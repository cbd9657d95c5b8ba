"""Starting real processes: `accelerate launch` on the CPU, with a limit in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def accelerated(
    *command: str, config: str = "ddp_cpu", timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with configs/CONFIG.yaml, two processes and, unless a run asks for it,
    no mixed precision; all die after `timeout`.
    """
    options = ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    made = subprocess.Popen(
        [*LAUNCH, "--config_file", f"configs/{config}.yaml", *options, *command],
        cwd=ROOT, env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, told = made.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        made.terminate()  # the launcher then ends its workers, each in a session of its own
        with suppress(subprocess.TimeoutExpired):
            made.wait(30)
        os.killpg(made.pid, signal.SIGKILL)
        out, told = made.communicate()
        raise AssertionError(f"no end after {timeout} s, a deadlock:\n{told[-4000:]}") from None
    return subprocess.CompletedProcess(made.args, made.returncode, out, told)


def played(
    out: Path, *scenes: str, script: str = "scenes.py", **options: Any
) -> list[dict[str, Any]]:
    """What the processes told of these scenes of `script`, by rank."""
    out.mkdir(parents=True, exist_ok=True)
    done = accelerated(str(HERE / script), str(out), *scenes, **options)
    paths = sorted(out.glob("rank*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    assert len(found) == 2, done.stderr[-4000:]
    print(done.stderr)
    return found


def scene(found: list[dict[str, Any]], name: str, *, part: str = "") -> list[Any]:
    """What each process told of a scene (or of a part of it), which must have gone well."""
    told = [one.get(name, {"failed": "never reached: see the scene before it"}) for one in found]
    for rank, one in enumerate(told):
        assert "failed" not in one, f"rank {rank}, {name}:\n{one['failed']}"
    return [one[part] for one in told] if part else told
