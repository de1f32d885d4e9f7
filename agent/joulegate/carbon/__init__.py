"""Views on energy: emission factors, and what a joule means in CO2e, water and money (pure; law 6)."""
