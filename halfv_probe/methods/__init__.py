"""Calibrations of other published methods, one a file: from what they measure to a plan."""
