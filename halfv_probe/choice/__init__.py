"""Chosen from what was measured and tried: stages, the plan, how sure, and why."""
