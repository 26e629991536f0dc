"""What several strategies are made of: ranking, dividing budgets, similarity, greedy loops, checks of parameters."""
