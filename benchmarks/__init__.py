"""How fast asyncstep is, as ratios against references timed in the same process, interleaved."""
