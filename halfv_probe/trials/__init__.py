"""Plans run on samples: which plans, what they do to the replies, what that costs."""
