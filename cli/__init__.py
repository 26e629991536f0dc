"""The ``halfv`` command: arguments, progress and printing; everything else lives in the packages behind it."""
