"""Stands in for training on a worker: ends with the code that plan.json has for this start."""

import json
import signal
import sys
import time
from pathlib import Path

home = Path(sys.argv[1])
starts = home.parent / f"{home.name}.starts"
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
code = json.loads((home.parent / "plan.json").read_text())["codes"][number][home.name]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("step 1", flush=True)
if code == "runs":  # until it is ended
    time.sleep(60)
sys.exit(code)
