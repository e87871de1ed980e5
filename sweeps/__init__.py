"""What to run, running it, and what came back. Only `ray_backend` imports ray."""
