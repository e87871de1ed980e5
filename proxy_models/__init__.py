"""Models, width rules, optimizers, data and the training loop. Imports torch; never ray, never results on disk."""
