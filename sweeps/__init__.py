"""What to run, running it, and what came back. Only modules named `ray_*` import ray."""
