"""One torch thread in every test process, as in workers: small tensors on shared cores are slower with more.

What a step takes here is measured and kept apart from the user's own measurements.
"""

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"mutransfer-tests-{os.getuid()}")
