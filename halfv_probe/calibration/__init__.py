"""From a model and samples to a profile: settings, measuring with a journal, choosing."""
