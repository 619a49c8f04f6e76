"""How programs meet machines and people: compilation, checkpoints, the loop, reports."""
