"""One torch thread in every test process, as in workers: small tensors on shared cores are slower with more."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
