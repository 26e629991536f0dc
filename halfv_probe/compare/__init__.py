"""All methods on the same samples, prompts and budgets: who competes, what they reply, what can be told apart."""
