"""How one step is evaluated and committed."""
