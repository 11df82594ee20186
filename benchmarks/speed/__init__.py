"""The benchmark suite: its cases, the gate they pass, how they are timed and reported."""
