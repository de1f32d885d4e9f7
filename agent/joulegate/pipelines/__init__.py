"""How a generation pipeline is wrapped."""
