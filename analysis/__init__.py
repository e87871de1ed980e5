"""Results to numbers with uncertainty, and figures: pure functions on frozen records. Never torch or ray."""
