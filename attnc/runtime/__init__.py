"""What a generated module needs at run time: torch and triton only."""
