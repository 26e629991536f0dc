"""All methods on the same samples: who competes, how they are run, what can be told apart, and the report."""
