"""Runs that end in one JSON record each: the learning curve of the demo."""
