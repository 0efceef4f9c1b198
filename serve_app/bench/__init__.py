"""What the machine can do and what of it is used: counts and clocks, with torch and numpy alone."""
