"""The one step, the optimiser, the loop's bookkeeping, the plan."""
