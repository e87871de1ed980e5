"""How long `mutransfer --help` takes, beside a bare interpreter and beside importing torch, in turns.

`python benchmarks/startup.py` prints one JSON document; medians of wall seconds.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPETITIONS = 10
COMMANDS = {
    "help": [str(Path(sys.executable).with_name("mutransfer")), "--help"],
    "bare_interpreter": [sys.executable, "-c", "pass"],
    "import_torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repetition in range(REPETITIONS + 1):  # the first warms the disk cache
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["help"] / medians["bare_interpreter"]
    print(json.dumps({"benchmark": "startup", "seconds": medians, "help_over_bare_interpreter": ratio}, indent=1))


if __name__ == "__main__":
    main()
