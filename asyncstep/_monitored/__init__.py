"""How a loop lives, stops, recovers and ends."""
