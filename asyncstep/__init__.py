"""asyncstep."""
